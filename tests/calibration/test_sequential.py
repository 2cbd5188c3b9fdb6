"""Sequential calibration equals running both whole models on all images for every site."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_igpc import compress
from onnx_igpc.calibration.graph_cuts import GraphCuts
from onnx_igpc.calibration.sequential import SequentialCalibration
from onnx_igpc.calibration.taps import Tap
from onnx_igpc.data.batches import random_data
from onnx_igpc.errors import DataError
from onnx_igpc.fitting.moments import PairAccumulator, SiteStatistics
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.planning.options import Published
from onnx_igpc.runtime.session import make_session, run_session
from onnx_igpc.sites.find import Rewritable
from tests.calibration_graphs import EndlessData, ListData, images, residual_model, sites_of
from tests.helpers import GraphBuilder, node_named

Arrays = dict[str, np.ndarray]


def _damaged(site: Rewritable) -> tuple[np.ndarray, np.ndarray]:
    """A matrix and a bias that are not the site's own."""
    generator = np.random.default_rng(site.ref.index)
    W = site.weight_matrix().astype(np.float64)
    return W + 0.3 * generator.standard_normal(W.shape), generator.standard_normal(len(W))


def _with_weight(
    proto: onnx.ModelProto, site: Rewritable, matrix: np.ndarray, bias: np.ndarray
) -> onnx.ModelProto:
    """The model with a weight and bias of its own at one site."""
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    node = node_named(changed, site.ref.proto.output[0])
    del node.input[1:]
    for name, values in (("new_w", matrix.reshape(*matrix.shape, 1, 1)), ("new_b", bias)):
        tensor = numpy_helper.from_array(values.astype(site.dtype), f"{node.output[0]}_{name}")
        changed.graph.initializer.append(tensor)
        node.input.append(tensor.name)
    return changed


def _brute_force(
    original: onnx.ModelProto, rewritten: onnx.ModelProto, tap: Tap, feeds: Arrays
) -> SiteStatistics:
    def values(model: onnx.ModelProto) -> np.ndarray:
        if tap.tensor in feeds:
            return feeds[tap.tensor]
        return run_session(make_session(model, extra_outputs=[tap.tensor]), feeds)[tap.tensor]

    count = len(next(iter(feeds.values())))
    x, damaged = (tap.read(values(model), count, count) for model in (original, rewritten))
    sums = PairAccumulator(len(x))
    sums.add(x, damaged)
    found = sums.result()
    assert found is not None
    return found


def _check(
    proto: onnx.ModelProto,
    feeds: Arrays,
    *,
    skip: tuple[str, ...] = (),
    tolerance: float = 2e-4,
    reference: onnx.ModelProto | None = None,
    **options: int,
) -> SequentialCalibration:
    """Compare every site's statistics with brute force; ``skip`` are sites that stay as they are."""
    model = OpenModel(proto)
    sites = sites_of(model)
    original = reference or proto
    rewritten = original
    data = ListData(proto, feeds)
    with SequentialCalibration(model, list(sites.values()), data, **options) as calibration:
        for name, site in sites.items():
            if name in skip:
                continue
            found = calibration.statistics(site)
            assert found is not None
            expected = _brute_force(original, rewritten, Tap.of(site), feeds)
            assert found.count == expected.count
            for field in ("mean", "mean_rewritten", "second", "cross", "second_rewritten"):
                ours, theirs = getattr(found, field), getattr(expected, field)
                scale = np.abs(theirs).max()
                np.testing.assert_allclose(ours, theirs, atol=tolerance * scale, err_msg=name)
            matrix, bias = _damaged(site)
            calibration.advance(site, matrix, bias)
            rewritten = _with_weight(rewritten, site, matrix, bias)
        assert calibration.samples == len(next(iter(feeds.values())))
        return calibration


@pytest.mark.parametrize("memory_bytes", [0, 1 << 30])
def test_residual_blocks(memory_bytes: int) -> None:
    calibration = _check(
        residual_model(64, blocks=3), {"x": images(11, 64)}, memory_bytes=memory_bytes
    )
    assert (calibration.peak_spilled_bytes > 0) == (memory_bytes == 0)
    assert calibration.peak_bytes > 11 * 64 * 36 * 4


def test_a_site_that_is_left_out_stays_dense() -> None:
    _check(residual_model(), {"x": images(5)}, skip=("b0", "a1"))


def test_fixed_batch() -> None:
    _check(residual_model(batch=4), {"x": images(10)}, reference=residual_model())


def test_half_precision() -> None:
    feeds = {"x": images(6).astype(np.float16)}
    _check(residual_model(dtype=np.float16), feeds, tolerance=0.01)


def _branches(graph: GraphBuilder) -> None:
    """Four sites that read one tensor, the input again behind them, a concatenation."""
    x = graph.input("x", ["batch", 8, 6, 6])
    for index in range(4):
        stride = 2 if index == 3 else 1
        graph.conv(x, f"c{index}", 8, 8, bias=index % 2 == 0, strides=[stride] * 2)
    graph.add("MaxPool", ["c3"], "small", kernel_shape=[1, 1])
    graph.add("Resize", ["small", "", graph.initializer("s", _SCALES)], "c3_up")
    graph.add("Concat", ["c0", "c1", "c2", "c3_up"], "joined", axis=1)
    graph.conv("joined", "mix", 32, 8)
    graph.add("Add", ["mix", x], "sum")
    graph.conv("sum", "last", 8, 16)
    graph.activation("last", "y", "Relu")
    graph.output("y")


_SCALES = np.array([1, 1, 2, 2], np.float32)


def _shared(graph: GraphBuilder) -> None:
    """One weight at two sites, the second behind the first."""
    x = graph.input("x", ["batch", 8, 6, 6])
    graph.conv(x, "first", 8, 8, bias=True)
    graph.activation("first", "act", "Relu")
    graph.add("Conv", ["act", "first_w"], "second")
    graph.activation("second", "y", "Relu")
    graph.output("y")


def _computed_shapes(graph: GraphBuilder) -> None:
    """A Reshape by a shape that is computed, a Constant chain, a sequence of tensors, an If."""
    x = graph.input("x", ["batch", 8, 6, 6])
    graph.add("Shape", [x], "shape")
    graph.conv(x, "first", 8, 8)
    graph.add("Reshape", ["first", graph.initializer("flat", np.array([0, 8, 36]))], "flattened")
    graph.add("Reshape", ["flattened", "shape"], "back")
    graph.add("Constant", [], "two", value=numpy_helper.from_array(np.array(2.0, np.float32)))
    graph.add("Neg", ["two"], "minus_two")
    graph.add("Mul", ["back", "minus_two"], "scaled")
    graph.add(
        "SplitToSequence", ["scaled", graph.initializer("sizes", np.array([4, 4]))], "parts", axis=1
    )
    graph.add("SequenceAt", ["parts", graph.initializer("zero", np.array(0))], "head")
    graph.conv("head", "second", 4, 8)
    graph.add("SequenceAt", ["parts", graph.initializer("one", np.array(1))], "tail")
    branches = {}
    for name, source in (("then_branch", "second"), ("else_branch", "scaled")):
        inner = GraphBuilder()
        inner.add("Concat", [source, "tail"], f"{name}_out", axis=1)
        inner.output(f"{name}_out", None)
        branches[name] = inner.graph(name)
    graph.add("Mul", ["two", "minus_two"], "product")
    graph.add("Less", ["product", "two"], "flag")
    graph.add("If", ["flag"], "chosen", **branches)
    graph.conv("chosen", "third", 12, 16)
    graph.activation("third", "y", "Relu")
    graph.output("y", ["batch", 16, 6, 6])


@pytest.mark.parametrize("build", [_branches, _shared, _computed_shapes])
def test_other_graphs(build: Callable[[GraphBuilder], None]) -> None:
    graph = GraphBuilder()
    build(graph)
    _check(graph.model(), {"x": images(7)})


def test_several_inputs() -> None:
    graph = GraphBuilder()
    graph.input("late", ["batch", 8, 6, 6])
    graph.input("x", ["batch", 8, 6, 6])
    graph.conv("x", "first", 8, 8)
    graph.add("Add", ["first", "late"], "sum")
    graph.conv("sum", "second", 8, 16)
    graph.activation("second", "y", "Relu")
    graph.output("y")
    _check(graph.model(), {"x": images(7), "late": images(7, seed=1)})


def test_every_node_runs_once_in_each_version(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: dict[str, int] = {}
    extract = GraphCuts.extract

    def counted(self: GraphCuts, *args: object, **kwargs: object) -> object:
        part, reads = extract(self, *args, **kwargs)  # type: ignore[arg-type]
        for node in part.proto.graph.node:
            runs[node.output[0]] = runs.get(node.output[0], 0) + 1
        return part, reads

    monkeypatch.setattr(GraphCuts, "extract", counted)
    proto = residual_model(blocks=3)
    _check(proto, {"x": images(3)})
    assert max(runs.values()) == 2
    assert runs["a0"] == 2
    assert {"pooled", "b2", "y"}.isdisjoint(runs)  # behind the last site


def test_what_is_held_does_not_depend_on_the_number_of_sites() -> None:
    peaks = []
    for blocks in (3, 8):
        model = OpenModel(residual_model(blocks=blocks))
        sites = sites_of(model)
        data = EndlessData(3, (4, 8, 6, 6))
        with SequentialCalibration(model, list(sites.values()), data) as calibration:
            for site in sites.values():
                calibration.statistics(site)
                calibration.advance(site, *_damaged(site))
            peaks.append(calibration.peak_bytes)
    assert peaks[0] == peaks[1]


def test_nan_of_the_rewritten_model_is_named() -> None:
    proto = residual_model()
    model = OpenModel(proto)
    sites = sites_of(model)
    data = ListData(proto, {"x": images(3)})
    with SequentialCalibration(model, list(sites.values()), data) as calibration:
        calibration.statistics(sites["a0"])
        matrix, bias = _damaged(sites["a0"])
        calibration.advance(sites["a0"], matrix * np.inf, bias)
        with pytest.raises(DataError, match="in the rewritten model, tensor 'd0' holds NaN"):
            calibration.statistics(sites["b0"])


def test_wrong_order_and_no_samples() -> None:
    proto = residual_model()
    model = OpenModel(proto)
    sites = sites_of(model)
    with SequentialCalibration(
        model, list(sites.values()), ListData(proto, {"x": images(3)})
    ) as calibration:
        first = calibration.statistics(sites["a1"])
        assert calibration.statistics(sites["a1"]) is first
        with pytest.raises(ValueError, match="out of order"):
            calibration.statistics(sites["a0"])
    with (
        SequentialCalibration(
            model, list(sites.values()), ListData(proto, {"x": images(0)})
        ) as calibration,
        pytest.raises(DataError, match="no sample could be read"),
    ):
        calibration.statistics(sites["a0"])


@pytest.mark.parametrize("dims", [1, 3])
def test_convolutions_of_other_ranks_that_do_not_state_their_kernel(dims: int) -> None:
    """The rank comes from the weight: the convolution in between has no kernel_shape."""
    builder = GraphBuilder()
    builder.input("x", [2, 12, *[3] * dims])
    builder.conv("x", "first", 12, 12, dims=dims)
    builder.activation("first", "act", "Relu")
    builder.conv("act", "second", 12, 12, dims=dims)
    builder.conv("second", "last", 12, 12, dims=dims, kernel=3, group=12, pads=[1] * 2 * dims)
    builder.output("last", [2, 12, *[3] * dims])
    model = builder.model()
    data = random_data(model_inputs(model), samples=40)
    report = compress(model, Published(3), calibration=data).report
    assert [site.name for site in report.rewritten] == ["first_node", "second_node"]
