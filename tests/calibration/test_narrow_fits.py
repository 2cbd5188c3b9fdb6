"""Channels left out of a model, each reader fitted behind those before it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_igpc.calibration.narrow_fits import fit_narrowings
from onnx_igpc.calibration.sequential import SequentialCalibration
from onnx_igpc.errors import DataError
from onnx_igpc.fitting.moments import PairAccumulator, SiteStatistics
from onnx_igpc.fitting.narrowing import NarrowWeights, fit_narrow, rank_channels
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.view import GraphView
from onnx_igpc.passes import NarrowChannels
from onnx_igpc.runtime.session import make_session, run_session
from onnx_igpc.sites.find import Rewritable, find_sites
from onnx_igpc.sites.inner_channels import find_inner_channels
from tests.calibration_graphs import ListData, hidden_sites_model, images, residual_model, sites_of
from tests.passes.graphs import copy_of

FIELDS = ("mean", "mean_rewritten", "second", "cross", "second_rewritten")
KEPT = {"b0_node": tuple(range(0, 16, 2)), "b1_node": tuple(range(10))}


def readers_of(model: OpenModel) -> list[Rewritable]:
    return [each.reader for each in find_inner_channels(find_sites(GraphView(model)))]


def narrowed(model: onnx.ModelProto, weights: Mapping[str, NarrowWeights]) -> onnx.ModelProto:
    opened = OpenModel(copy_of(model))
    NarrowChannels(weights).run(opened)
    return opened.proto


def values(model: onnx.ModelProto, x: np.ndarray, tensor: str) -> np.ndarray:
    """What the tensor holds, shape (channels, positions)."""
    made = run_session(make_session(OpenModel(model), extra_outputs=[tensor]), {"x": x})[tensor]
    return np.asarray(made.swapaxes(0, 1).reshape(made.shape[1], -1))


def distance(one: onnx.ModelProto, other: onnx.ModelProto, x: np.ndarray) -> float:
    return float(np.mean((values(one, x, "sum1") - values(other, x, "sum1")) ** 2))


def with_twins(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the second half of each block's inner channels nearly as the first."""
    random = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if tensor.name[0] in "ad":
            half = numpy_helper.to_array(tensor)[:8]
            near = half * (1 + 0.1 * random.normal(size=half.shape))
            twins = np.concatenate([half, near]).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(twins, tensor.name))
    return model


def test_the_narrowed_model_is_nearer_than_one_with_columns_dropped() -> None:
    proto, (x, fresh) = with_twins(residual_model(8)), np.split(images(96, 8), 2)
    model = OpenModel(proto)
    readers, kept, plain = readers_of(model), {}, {}
    for reader in readers:
        W = reader.weight_matrix()
        z = values(proto, x, reader.ref.proto.input[0])
        kept[reader.name] = rank_channels(W, np.cov(z)).kept(8)
        some = list(kept[reader.name])
        shift = (W @ z).mean(axis=1) - W[:, some] @ z[some].mean(axis=1)
        plain[reader.name] = NarrowWeights(tuple(some), W[:, some], shift, 0.0)
    fits = fit_narrowings(model, readers, kept, ListData(proto, {"x": x}))
    assert list(fits) == ["b0_node", "b1_node"]
    assert {name: fit.kept for name, fit in fits.items()} == kept
    ours, dropped = narrowed(proto, fits), narrowed(proto, plain)
    for seen in (x, fresh):
        assert distance(proto, ours, seen) < 0.1 * distance(proto, dropped, seen)


def test_the_model_is_not_changed() -> None:
    model = OpenModel(residual_model(8))
    before = model.proto.SerializeToString()
    fit_narrowings(model, readers_of(model), KEPT, ListData(model.proto, {"x": images(8)}))
    assert model.proto.SerializeToString() == before


def test_readers_behind_see_what_was_narrowed_before() -> None:
    proto, x = residual_model(8), images(16, 8)
    model = OpenModel(proto)
    data = ListData(proto, {"x": x}, batch_size=4)
    both = fit_narrowings(model, readers_of(model), KEPT, data)
    alone = fit_narrowings(model, readers_of(model), {"b1_node": KEPT["b1_node"]}, data)
    assert not np.allclose(both["b1_node"].matrix, alone["b1_node"].matrix, rtol=1e-3)
    rewritten = narrowed(proto, {"b0_node": both["b0_node"]})
    parts = []
    for batch in np.split(x, 4):
        sums = PairAccumulator(16)
        sums.add(values(proto, batch, "d1"), values(rewritten, batch, "d1"))
        parts.append(sums.result())
    reader = readers_of(model)[1]
    expected = fit_narrow(
        reader.weight_matrix(), None, KEPT["b1_node"], [part for part in parts if part is not None]
    )
    np.testing.assert_allclose(both["b1_node"].matrix, expected.matrix, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(both["b1_node"].bias, expected.bias, rtol=1e-3, atol=1e-3)
    made = values(narrowed(proto, both), x, "b1").mean(axis=1)
    np.testing.assert_allclose(made, values(proto, x, "b1").mean(axis=1), rtol=1e-3, atol=1e-3)


def test_a_reader_that_keeps_all_is_not_fitted() -> None:
    model = OpenModel(residual_model(8))
    data = ListData(model.proto, {"x": images(8)})
    assert list(fit_narrowings(model, readers_of(model), {"b1_node": (0, 3)}, data)) == ["b1_node"]
    assert fit_narrowings(model, readers_of(model), {}, data) == {}


def test_no_samples_and_values_that_are_not_finite_are_errors() -> None:
    model = OpenModel(residual_model(8))
    readers, x = readers_of(model), images(4, 8)
    with pytest.raises(DataError, match="no sample"):
        fit_narrowings(model, readers, KEPT, ListData(model.proto, {"x": x[:0]}))
    x[2, 3, 1, 1] = np.nan
    with pytest.raises(DataError, match="holds NaN"):
        fit_narrowings(model, readers, KEPT, ListData(model.proto, {"x": x}))


def test_an_input_that_cannot_be_observed_is_told() -> None:
    model = OpenModel(hidden_sites_model(8))
    readers = list(sites_of(model, include_heads=True).values())
    (hidden,) = [each for each in readers if each.ref.scope.in_function]
    with pytest.raises(DataError, match="cannot be observed"):
        fit_narrowings(
            model, [hidden], {hidden.name: (0, 1)}, ListData(model.proto, {"x": images(4)})
        )


@pytest.mark.parametrize("folds", [2, 3, 9])
def test_statistics_of_the_folds_join_to_those_of_all(folds: int) -> None:
    model, x = OpenModel(residual_model(8)), images(20, 8)
    sites = list(sites_of(model).values())
    data = ListData(model.proto, {"x": x}, batch_size=4)
    with (
        SequentialCalibration(model, sites, data) as whole,
        SequentialCalibration(model, sites, data, folds=folds) as apart,
    ):
        for site in sites:
            expected, parts = whole.statistics(site), apart.statistics_by_fold(site)
            assert expected is not None
            # Five batches, dealt out in turn.
            batches = np.bincount(np.arange(5) % folds, minlength=min(folds, 5))
            assert [part.count for part in parts] == (4 * 36 * batches[batches > 0]).tolist()
            for found in (apart.statistics(site), SiteStatistics.joined(parts)):
                assert found is not None
                assert found.count == expected.count
                for name in FIELDS:
                    own, other = getattr(found, name), getattr(expected, name)
                    np.testing.assert_allclose(own, other, atol=1e-4 * np.abs(other).max())
            changed = 0.5 * site.weight_matrix()
            for each in (whole, apart):
                each.advance(site, changed, None)


def test_each_fold_is_of_its_own_batches() -> None:
    model, x = OpenModel(residual_model(8)), images(12, 8)
    x += np.arange(3).repeat(4).reshape(12, 1, 1, 1).astype(np.float32)
    (site, *_) = sites_of(model).values()
    data = ListData(model.proto, {"x": x}, batch_size=4)
    with SequentialCalibration(model, [site], data, folds=2) as calibration:
        first, second = calibration.statistics_by_fold(site)
        assert calibration.statistics_by_fold(site)[0] is first
    for part, batches in ((first, [0, 1, 2, 3, 8, 9, 10, 11]), (second, [4, 5, 6, 7])):
        np.testing.assert_allclose(part.mean, x[batches].mean(axis=(0, 2, 3)), rtol=1e-4)
