"""Calibration: streamed moments equal those of all activations at once, whatever the graph."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_igpc.calibration.collect import collect_moments, untapped_reason
from onnx_igpc.calibration.taps import Tap
from onnx_igpc.errors import DataError
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.view import GraphView
from onnx_igpc.sites.find import find_sites
from tests.calibration_graphs import (
    EndlessData,
    ListData,
    hidden_sites_model,
    images,
    opened,
    residual_model,
    saved,
    sites_of,
)
from tests.helpers import GraphBuilder, pointwise_model


def _expected(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance over all positions of a tensor (N, C, ...)."""
    columns = np.moveaxis(values.astype(np.float64), 1, 0).reshape(values.shape[1], -1)
    return columns.mean(axis=1), np.atleast_2d(np.cov(columns, bias=True))


def _tensor(model: onnx.ModelProto, name: str, feeds: dict[str, np.ndarray]) -> np.ndarray:
    from onnx_igpc.runtime.session import make_session, run_session

    return run_session(make_session(model, extra_outputs=[name]), feeds, [name])[name]


@pytest.mark.parametrize("batch_size", [1, 3, 11])
@pytest.mark.parametrize("memory", [1, 1 << 30])
def test_streaming_equals_everything_at_once(tmp_path: Path, batch_size: int, memory: int) -> None:
    proto = residual_model()
    model, x = OpenModel(proto), images(11)
    taps = {name: Tap.of(site) for name, site in sites_of(model).items()}
    data = opened(proto, saved(tmp_path, x=x), batch_size)
    seen: list[tuple[int, int]] = []
    moments = collect_moments(
        model, list(taps.values()), data, memory_bytes=memory, progress=lambda *at: seen.append(at)
    )
    assert len(moments) == 4
    assert seen[-1] == ((33, 33) if memory == 1 else (11, 11))  # x itself costs no pass
    for tap in taps.values():
        values = x if tap.tensor == "x" else _tensor(proto, tap.tensor, {"x": x})
        mean, second = _expected(values)
        np.testing.assert_allclose(moments[tap].mean, mean, atol=1e-5)
        np.testing.assert_allclose(moments[tap].second, second, rtol=1e-4, atol=1e-4)
        assert moments[tap].count == 11 * 36


@pytest.mark.parametrize(
    ("strides", "pads", "rows", "columns"),
    [
        ([2, 2], [0, 0, 0, 0], [0, 2, 4], [0, 2, 4]),
        ([2, 3], [1, 2, 1, 0], [1, 3, 5], [1, 4]),
        ([1, 1], [1, 1, 1, 1], range(6), range(6)),
        ([3, 2], [3, 0, 0, 1], [0, 3], [0, 2, 4]),
    ],
)
def test_only_positions_that_the_stride_reads_count(
    strides: list[int], pads: list[int], rows: list[int], columns: list[int]
) -> None:
    graph = GraphBuilder()
    graph.input("x", ["batch", 8, 6, 6])
    graph.conv("x", "conv", 8, 16, bias=True, strides=strides, pads=pads)
    graph.activation("conv", "y", "Relu")
    graph.output("y")
    proto, x = graph.model(), images(3)
    model = OpenModel(proto)
    tap = Tap.of(sites_of(model)["conv"])
    found = collect_moments(model, [tap], ListData(proto, {"x": x}))[tap]
    mean, second = _expected(x[:, :, list(rows)][..., list(columns)])
    np.testing.assert_allclose(found.mean, mean, atol=1e-6)
    np.testing.assert_allclose(found.second, second, atol=1e-5)


@pytest.mark.parametrize("dims", [1, 3])
def test_other_numbers_of_spatial_dimensions(dims: int) -> None:
    proto = pointwise_model(8, 16, dims=dims, stride=2)
    shape = (5, 8, *[5] * dims)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    tap = Tap.of(sites_of(OpenModel(proto))["conv"])
    found = collect_moments(OpenModel(proto), [tap], ListData(proto, {"x": x}))[tap]
    mean, second = _expected(x[(slice(None), slice(None), *[slice(None, None, 2)] * dims)])
    np.testing.assert_allclose(found.mean, mean, atol=1e-6)
    np.testing.assert_allclose(found.second, second, atol=1e-5)


def test_rows_that_fill_up_a_fixed_batch_do_not_count() -> None:
    proto = residual_model(batch=4)
    model, x = OpenModel(proto), images(6)
    tap = Tap.of(sites_of(model)["b1"])
    found = collect_moments(model, [tap], ListData(proto, {"x": x}))[tap]
    free = residual_model()
    mean, second = _expected(_tensor(free, tap.tensor, {"x": x}))
    np.testing.assert_allclose(found.mean, mean, atol=1e-5)
    np.testing.assert_allclose(found.second, second, rtol=1e-4, atol=1e-4)
    assert found.count == 6 * 36


def test_half_precision_is_summed_in_float32() -> None:
    proto = residual_model(dtype=np.float16)
    model, x = OpenModel(proto), images(5).astype(np.float16)
    tap = Tap.of(sites_of(model)["b0"])
    found = collect_moments(model, [tap], ListData(proto, {"x": x}))[tap]
    mean, second = _expected(_tensor(proto, tap.tensor, {"x": x}))
    np.testing.assert_allclose(found.mean, mean, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(found.second, second, rtol=5e-3, atol=5e-3)


def test_several_inputs_and_images_of_several_sizes() -> None:
    graph = GraphBuilder()
    graph.input("mask", ["batch", 1, "h", "w"])
    graph.input("x", ["batch", 8, "h", "w"])
    graph.add("Mul", ["x", "mask"], "masked")
    graph.conv("masked", "conv", 8, 16)
    graph.activation("conv", "y", "Relu")
    graph.output("y", ["batch", 16, "h", "w"])
    proto = graph.model()

    class TwoSizes(ListData):
        def _samples(self):  # type: ignore[no-untyped-def]
            for side in (4, 4, 4, 6, 6):
                x = images(1, side=side, seed=side)[0]
                yield {"x": x, "mask": np.full((1, side, side), 2.0, np.float32)}, None

    tap = Tap.of(sites_of(OpenModel(proto))["conv"])
    data = TwoSizes(proto, {"x": np.zeros((5, 1))}, batch_size=2)
    found = collect_moments(OpenModel(proto), [tap], data)[tap]
    small, large = (images(1, side=side, seed=side)[0].reshape(8, -1) for side in (4, 6))
    columns = 2.0 * np.concatenate([small] * 3 + [large] * 2, axis=1)
    np.testing.assert_allclose(found.mean, columns.mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(found.second, np.cov(columns, bias=True), atol=1e-4)
    assert found.count == 3 * 16 + 2 * 36


def test_memory_does_not_grow_with_the_samples() -> None:
    model = OpenModel(residual_model(16))
    taps = [Tap.of(site) for site in sites_of(model).values()]
    peaks = []
    for batches in (2, 2, 16):
        tracemalloc.start()
        collect_moments(model, taps, EndlessData(batches, (16, 16, 6, 6)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.2 * peaks[1]


@pytest.mark.parametrize(
    ("value", "what"), [(np.nan, "NaN"), (np.inf, "infinite values")], ids=["nan", "inf"]
)
def test_values_that_are_not_finite_name_the_tensor(value: float, what: str) -> None:
    proto, x = residual_model(), images(5)
    x[3, 2, 1, 1] = value
    model = OpenModel(proto)
    tap = Tap.of(sites_of(model)["a0"])
    with pytest.raises(DataError, match=f"tensor 'x' holds {what}"):
        collect_moments(model, [tap], ListData(proto, {"x": x}))


def test_channels_that_are_not_the_weights_are_told() -> None:
    model = pointwise_model()
    for dimension in model.graph.input[0].type.tensor_type.shape.dim:
        dimension.dim_param = "any"
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    opened = OpenModel(model)
    tap = Tap.of(next(iter(sites_of(opened).values())))
    data = ListData(model, {"x": np.ones((2, 9, 5, 5), np.float32)})
    with pytest.raises(DataError, match=r"tensor 'x' has 9 channels .* takes 32"):
        collect_moments(opened, [tap], data)


def test_no_sample_is_an_error() -> None:
    proto = residual_model()
    data = ListData(proto, {"x": images(0)})
    with pytest.raises(DataError, match="arrays: no sample could be read"):
        collect_moments(OpenModel(proto), [Tap("x")], data)
    assert collect_moments(OpenModel(proto), [], data) == {}


def test_results_are_the_same_every_time() -> None:
    proto = residual_model()
    model, data = OpenModel(proto), ListData(proto, {"x": images(9)})
    taps = [Tap.of(site) for site in sites_of(model).values()]
    first, second = (collect_moments(model, taps, data, threads=2) for _ in range(2))
    assert all(np.array_equal(first[tap].second, second[tap].second) for tap in taps)


def test_sites_that_cannot_be_tapped_say_why() -> None:
    view = GraphView(OpenModel(hidden_sites_model()))
    reasons = {site.name: untapped_reason(site) for site in find_sites(view).rewritable}
    assert reasons["conv_node"] is None
    assert "its input lies in the function" in str(reasons["inner"])
    assert "its input lies in a sub-graph" in str(reasons["then_conv_node"])
