"""The operators that the bridge runs, one file per family. Importing this package registers them."""

from onnx_igpc.torch_bridge.operators import (
    activation,
    arrange,
    convolution,
    detection,
    elementwise,
    indexing,
    linear,
    logic,
    normalization,
    padding,
    pooling,
    quantization,
    recurrent,
    reduction,
    resize,
    shapes,
)

__all__ = [
    "activation",
    "arrange",
    "convolution",
    "detection",
    "elementwise",
    "indexing",
    "linear",
    "logic",
    "normalization",
    "padding",
    "pooling",
    "quantization",
    "recurrent",
    "reduction",
    "resize",
    "shapes",
]
