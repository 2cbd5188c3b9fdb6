"""Writes a large synthetic model of pointwise convolutions, to measure time and memory with.

``python benchmarks/large_model.py DIR --gib 3 --channels 2048`` writes ``DIR/large.onnx`` and its
external data; ``--single-file --parameters 100e6`` writes one file without external data. The
model is only written: measure what you like on it. Weights are random, different in every layer
and the same in every run; external data is streamed to disk one layer at a time.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# A script runs with its own folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from onnx_igpc.errors import IgpcError, UsageError
from onnx_igpc.graph.external_data import ALIGNMENT, MAX_INLINE_BYTES, set_location
from onnx_igpc.graph.model import write_atomically

_OPSET = 17
_IR_VERSION = 8
_BYTES_PER_WEIGHT = 4
_SIDE = 7


def layer_weight(layer: int, channels: int) -> np.ndarray:
    """The dense weight of a layer, shape (channels, channels, 1, 1), float32, drawn per layer."""
    generator = np.random.default_rng([layer, channels])
    weight = generator.standard_normal((channels, channels, 1, 1), dtype=np.float32)
    weight *= np.float32(np.sqrt(2 / channels))
    return weight


def build_graph(layers: int, channels: int) -> onnx.ModelProto:
    """``x`` -> (1x1 Conv, Relu) per layer -> mean over the map -> Gemm -> ``scores``, no weights.

    The layers' weights are initializers without data; those of the Gemm are stored.
    """
    nodes, weights = [], []
    value = "x"
    for layer in range(layers):
        dims = [channels, channels, 1, 1]
        weights.append(TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=dims))
        nodes += [
            helper.make_node("Conv", [value, f"w{layer}"], [f"c{layer}"], name=f"conv{layer}"),
            helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"], name=f"relu{layer}"),
        ]
        value = f"r{layer}"
    classifier = layer_weight(layers, channels)[:10, :, 0, 0]
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "w_scores"], ["scores"], name="scores", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", channels, _SIDE, _SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 10])],
        [*weights, numpy_helper.from_array(classifier, "w_scores")],
    )
    opset = helper.make_opsetid("", _OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)


def write_external(folder: Path, layers: int, channels: int) -> Path:
    """Write the model with its weights in ``large.data``; returns the model's path."""
    model = build_graph(layers, channels)
    length = channels * channels * _BYTES_PER_WEIGHT
    step = -(-length // ALIGNMENT) * ALIGNMENT
    with (folder / "large.data").open("wb") as data:
        for layer in range(layers):
            data.seek(layer * step)
            data.write(layer_weight(layer, channels).tobytes())
            set_location(model.graph.initializer[layer], "large.data", layer * step, length)
    path = folder / "large.onnx"
    write_atomically(path, lambda file: file.write(model.SerializeToString()))
    return path


def write_single_file(folder: Path, layers: int, channels: int) -> Path:
    """Write the model with its weights inside; returns its path.

    Raises:
        UsageError: the weights would not fit into one protobuf message.
    """
    if layers * channels * channels * _BYTES_PER_WEIGHT > MAX_INLINE_BYTES:
        raise UsageError("one file holds at most 2 GiB: leave out --single-file")
    model = build_graph(layers, channels)
    for layer in range(layers):
        model.graph.initializer[layer].raw_data = layer_weight(layer, channels).tobytes()
    path = folder / "large.onnx"
    write_atomically(path, lambda file: file.write(model.SerializeToString()))
    return path


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--gib", type=click.FloatRange(min=0, min_open=True), help="Size of the weights.")
@click.option("--parameters", type=click.FloatRange(min=1), help="The same as a count.")
@click.option("--channels", type=click.IntRange(min=16), default=2048, show_default=True)
@click.option("--single-file", is_flag=True, help="Weights inside the model file.")
def main(
    folder: Path, gib: float | None, parameters: float | None, channels: int, single_file: bool
) -> None:
    """Write one model and say what it holds."""
    try:
        if (gib is None) == (parameters is None):
            raise UsageError("give either --gib or --parameters")
        wanted = parameters or (gib or 0) * 2**30 / _BYTES_PER_WEIGHT
        layers = max(1, round(wanted / channels**2))
        folder.mkdir(parents=True, exist_ok=True)
        write = write_single_file if single_file else write_external
        path = write(folder, layers, channels)
    except IgpcError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        click.echo(f"error: cannot write to {folder}: {error.strerror}", err=True)
        sys.exit(2)
    click.echo(
        f"{path}: {layers} pointwise layers of {channels} channels, "
        f"{layers * channels**2:,} weights, {layers * channels**2 / 2**28:.2f} GiB"
    )


if __name__ == "__main__":
    main()
