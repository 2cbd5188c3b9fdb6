"""onnx-igpc: make the pointwise convolutions of a trained CNN cheap; ONNX in, ONNX out."""

from onnx_igpc._version import __version__

__all__ = ["__version__"]
