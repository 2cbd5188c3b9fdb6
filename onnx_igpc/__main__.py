"""``python -m onnx_igpc``: the command line."""

from onnx_igpc.cli import main

if __name__ == "__main__":
    main(prog_name="onnx-igpc")
