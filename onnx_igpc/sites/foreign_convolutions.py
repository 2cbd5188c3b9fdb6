"""Pointwise convolutions that are not a Conv of ONNX itself: why each of them is kept.

Quantized operators, and those that onnxruntime puts into a model which it optimises for itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnx_igpc.graph.view import NodeRef

_STANDARD = "ai.onnx"
_MICROSOFT = "com.microsoft"
_NCHWC = "com.microsoft.nchwc"
_NHWC = "com.ms.internal.nhwc"

_OPTIMISED = "optimised by onnxruntime ({kind}): give the model from before"
_QUANTIZED = "quantized ({kind}): give the model from before quantization"


@dataclass(frozen=True)
class ForeignConvolution:
    """weight: which input it is. reason: why it is kept. channels_last: the layout of the weight."""

    weight: int
    reason: str
    channels_last: bool = False


_KINDS: Mapping[tuple[str, str], ForeignConvolution] = {
    (_STANDARD, "QLinearConv"): ForeignConvolution(3, _QUANTIZED),
    (_STANDARD, "ConvInteger"): ForeignConvolution(1, _QUANTIZED),
    (_MICROSOFT, "QLinearConv"): ForeignConvolution(3, _QUANTIZED),
    (_MICROSOFT, "ConvInteger"): ForeignConvolution(1, _QUANTIZED),
    (_MICROSOFT, "FusedConv"): ForeignConvolution(1, _OPTIMISED),
    (_MICROSOFT, "NhwcFusedConv"): ForeignConvolution(1, _OPTIMISED),
    (_MICROSOFT, "NhwcConv"): ForeignConvolution(1, _OPTIMISED, channels_last=True),
    (_NCHWC, "Conv"): ForeignConvolution(1, _OPTIMISED),
    (_NHWC, "Conv"): ForeignConvolution(1, _OPTIMISED),
    (_NHWC, "FusedConv"): ForeignConvolution(1, _OPTIMISED),
    (_NHWC, "QLinearConv"): ForeignConvolution(3, _QUANTIZED),
    (_NHWC, "ConvInteger"): ForeignConvolution(1, _QUANTIZED),
}


def foreign_convolution(ref: NodeRef) -> ForeignConvolution | None:
    """What a node is, if it is a convolution but no Conv of ONNX itself."""
    return _KINDS.get((ref.proto.domain or _STANDARD, ref.op_type))


def foreign_reason(ref: NodeRef, kind: ForeignConvolution) -> str:
    """Why it is kept, in words for a person."""
    return kind.reason.format(kind=ref.op_type)
