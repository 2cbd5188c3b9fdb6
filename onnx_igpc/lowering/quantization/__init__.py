"""Quantization to int8 by onnxruntime's own quantizer: what it is given, what is chosen, what is kept.

:mod:`~onnx_igpc.lowering.quantization.quantize` has the phases in order.
"""
