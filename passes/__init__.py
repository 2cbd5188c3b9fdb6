"""Graph passes, imported as :mod:`onnx_igpc.passes`; one pass per file."""

if __name__ != "onnx_igpc.passes":
    raise ImportError(
        f"import this package as onnx_igpc.passes, not as {__name__}: "
        "the bare name would load a second copy of every class"
    )
