"""Small networks, data and views for the tests of calibration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_igpc.data.batches import Batch, BatchedData, Data, Sample
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.data.sources import open_data
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.view import GraphView
from onnx_igpc.sites.find import Rewritable, SiteFilter, find_sites
from tests.helpers import GraphBuilder


class ListData(BatchedData):
    """Samples from arrays by input name, ``batch_size`` a batch unless the model fixes it."""

    def __init__(
        self, model: onnx.ModelProto, arrays: dict[str, np.ndarray], batch_size: int = 4
    ) -> None:
        super().__init__("arrays", model_inputs(model), batch_size)
        self._arrays = arrays
        self.size = len(next(iter(arrays.values())))

    def _samples(self) -> Iterator[Sample]:
        for index in range(self.size):
            yield {name: values[index] for name, values in self._arrays.items()}, None


class EndlessData:
    """The same random batch any number of times, made when it is asked for."""

    def __init__(self, batches: int, shape: Sequence[int]) -> None:
        self._batches = batches
        self._shape = tuple(shape)
        self.size = batches * shape[0]
        self.labelled = False
        self.classes: tuple[str, ...] | None = None
        self.preprocessing: Preprocessing | None = None
        self.skipped: list[str] = []

    def __iter__(self) -> Iterator[Batch]:
        for index in range(self._batches):
            generator = np.random.default_rng(index)
            values = generator.standard_normal(self._shape).astype(np.float32)
            yield Batch({"x": values}, None, self._shape[0])

    def describe(self) -> dict[str, object]:
        return {"source": "random", "samples": self.size, "skipped": []}


def sites_of(model: OpenModel, **chosen: bool) -> dict[str, Rewritable]:
    """The sites that are not kept, by the name of the tensor that they make."""
    found = find_sites(GraphView(model), SiteFilter(**chosen))  # type: ignore[arg-type]
    return {site.ref.proto.output[0]: site for site in found.rewritable}


def saved(folder: Path, **arrays: np.ndarray) -> Path:
    """The arrays in an .npz file."""
    path = folder / "data.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def opened(model: onnx.ModelProto, path: Path, batch_size: int = 4) -> Data:
    """The .npz file as data for the model."""
    return open_data(path, model_inputs(model), batch_size=batch_size)


def images(count: int, channels: int = 8, side: int = 6, seed: int = 0) -> np.ndarray:
    """Samples with correlated channels and a mean that is not zero; float32."""
    generator = np.random.default_rng(seed)
    mixing = generator.standard_normal((channels, channels)) / np.sqrt(channels)
    values = generator.standard_normal((count, channels, side, side)) + 1.0
    return np.asarray(np.einsum("dc,nchw->ndhw", mixing, values), np.float32)


def residual_model(
    channels: int = 8,
    *,
    batch: int | str = "batch",
    dtype: type[np.generic] = np.float32,
    blocks: int = 2,
) -> onnx.ModelProto:
    """x -> blocks of (1x1 ``a<i>``, ReLU, depthwise, 1x1 ``b<i>``, added to the block's input) -> y.

    ``a<i>`` doubles the channels and has a bias, ``b<i>`` is followed by a BatchNormalization.
    """
    graph = GraphBuilder(17, dtype)
    x = graph.input("x", [batch, channels, 6, 6])
    for index in range(blocks):
        y = graph.conv(x, f"a{index}", channels, 2 * channels, bias=True)
        y = graph.activation(y, f"a{index}_act", "Relu")
        y = graph.conv(
            y,
            f"d{index}",
            2 * channels,
            2 * channels,
            kernel=3,
            group=2 * channels,
            pads=[1] * 4,
        )
        y = graph.conv(y, f"b{index}", 2 * channels, channels)
        y = graph.batch_norm(y, f"b{index}_bn", channels)
        x = graph.add("Add", [x, y], f"sum{index}")
    graph.add("GlobalAveragePool", [x], "pooled")
    graph.add("Flatten", ["pooled"], "y")
    graph.output("y")
    return graph.model()


def hidden_sites_model(channels: int = 8) -> onnx.ModelProto:
    """1x1 convolutions in each branch of an If, one in a function, one in the main graph."""
    branches = {}
    for name in ("then", "else"):
        inner = GraphBuilder(seed=len(name))
        inner.conv("x", f"{name}_conv", channels, channels)
        inner.output(f"{name}_conv", ["batch", channels, 6, 6])
        branches[f"{name}_branch"] = inner.graph(name)
    graph = GraphBuilder()
    graph.input("x", ["batch", channels, 6, 6])
    graph.initializer("flag", np.array(True))
    graph.add("If", ["flag"], "chosen", **branches)
    function = onnx.helper.make_function(
        "local",
        "f",
        ["u"],
        ["v"],
        [
            onnx.helper.make_node(
                "Constant",
                [],
                ["w"],
                value=onnx.numpy_helper.from_array(
                    np.random.default_rng(0)
                    .standard_normal((channels, channels, 1, 1))
                    .astype(np.float32)
                ),
            ),
            onnx.helper.make_node("Conv", ["u", "w"], ["v"], name="inner"),
        ],
        [onnx.helper.make_opsetid("", 17)],
    )
    graph.functions.append(function)
    graph.add("f", ["chosen"], "called", domain="local")
    graph.conv("called", "conv", channels, 16)
    graph.activation("conv", "y", "Relu")
    graph.output("y", ["batch", 16, 6, 6])
    return graph.model()


def faint(model: onnx.ModelProto, **factors: float) -> onnx.ModelProto:
    """A :func:`residual_model` whose block ``b<i>`` adds so many times as much to its input."""
    for tensor in model.graph.initializer:
        block, _, part = tensor.name.partition("_bn_")
        if block in factors and part in ("scale", "shift"):
            values = numpy_helper.to_array(tensor)
            values = (values * factors[block]).astype(values.dtype)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model
