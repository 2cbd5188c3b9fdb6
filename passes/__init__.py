"""Graph passes, imported as :mod:`onnx_igpc.passes`; one pass per file."""

if __name__ != "onnx_igpc.passes":
    raise ImportError(
        f"import this package as onnx_igpc.passes, not as {__name__}: "
        "the bare name would load a second copy of every class"
    )

from onnx_igpc.passes.absorb_gathers import AbsorbGathers
from onnx_igpc.passes.base import Pass, PassResult, Pipeline
from onnx_igpc.passes.fold_batch_norm import FoldBatchNorm
from onnx_igpc.passes.group_pointwise import GroupPointwise
from onnx_igpc.passes.merge_gathers import MergeGathers
from onnx_igpc.passes.remove_dead import RemoveDead

__all__ = [
    "AbsorbGathers",
    "FoldBatchNorm",
    "GroupPointwise",
    "MergeGathers",
    "Pass",
    "PassResult",
    "Pipeline",
    "RemoveDead",
]
