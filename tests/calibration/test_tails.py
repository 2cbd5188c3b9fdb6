"""The part of a model behind a cut computes what the whole does, on the same samples."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest

from onnx_igpc.calibration.held_samples import HeldSamples, Part
from onnx_igpc.calibration.options import Fit
from onnx_igpc.calibration.tails import Tail, tail_from
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.view import GraphView
from onnx_igpc.layout.schemes import plan_layout
from onnx_igpc.planning.trials import Trials
from onnx_igpc.runtime.session import make_session, run_session
from onnx_igpc.sites.find import FoundSites, find_sites
from onnx_igpc.sites.rewrite import kept_layout
from tests.calibration_graphs import ListData, hidden_sites_model, images, residual_model
from tests.helpers import GraphBuilder

SAMPLES = 24


def opened(model: onnx.ModelProto, x: np.ndarray) -> tuple[OpenModel, FoundSites, HeldSamples]:
    whole = OpenModel(model)
    held = HeldSamples(ListData(model, {"x": x}), model_inputs(model))
    return whole, find_sites(GraphView(whole)), held


def outputs(model: OpenModel, part: Part) -> np.ndarray:
    session = make_session(model, threads=1)
    name = model.proto.graph.output[0].name
    return np.concatenate(
        [run_session(session, batch.feeds, [name])[name][: batch.count] for batch in part]
    )


@pytest.fixture
def residual() -> Iterator[tuple[OpenModel, FoundSites, HeldSamples]]:
    parts = opened(residual_model(16, blocks=3), images(SAMPLES, 16))
    with parts[2]:
        yield parts


def tail_of(
    parts: tuple[OpenModel, FoundSites, HeldSamples], site: int, part: Part | None = None
) -> Tail | None:
    whole, found, held = parts
    return tail_from(whole, found, part or held.all(), found.rewritable[site].ref.index)


@pytest.mark.parametrize("site", [1, 2, 4])
def test_it_makes_the_outputs_of_the_whole(
    residual: tuple[OpenModel, FoundSites, HeldSamples], site: int
) -> None:
    whole, found, held = residual
    tail = tail_of(residual, site)
    assert tail is not None
    with tail.held:
        some = Part(held, [20, 3, 7, 11, 0])
        expected, made = outputs(whole, some), outputs(tail.model, tail.part(held.all(), some))
        np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-6)
        assert len(tail.model.proto.graph.node) < len(whole.proto.graph.node)
        names = [each.name for each in found.rewritable]
        assert [each.name for each in tail.found.rewritable] == names[site:]


@pytest.mark.parametrize("sequential", [True, False])
def test_a_trial_behind_a_cut_is_the_trial_of_the_whole(sequential: bool) -> None:
    whole, found, held = opened(residual_model(16, blocks=4), images(SAMPLES, 16))
    last = {site.name for site in found.rewritable[-2:]}
    layouts = {
        site.name: plan_layout(site.in_channels, site.out_channels, 4)
        if site.name in last
        else kept_layout(site, "as it is")
        for site in found.rewritable
    }
    fit = Fit(sequential=sequential)
    with held:
        trials = Trials(whole, found, held.all())
        place = trials.behind(last)
        assert place is not trials
        assert place is trials.behind({found.rewritable[-1].name})
        behind = trials.run(layouts, fit)
        assert behind.changing.probe is place.probe
        names = [site.name for site in found.rewritable[-2:]]
        won = trials.won(behind, names)
        trials.close()

        class Whole(Trials):
            def behind(self, names: object) -> Trials:
                return self

        slow = Whole(whole, found, held.all())
        from_start = slow.run(layouts, fit)
        assert from_start.damage.value > 1e-4
        assert behind.damage.value == pytest.approx(from_start.damage.value, rel=1e-3)
        assert behind.damage.agreeing == from_start.damage.agreeing
        assert won == pytest.approx(slow.won(from_start, names), rel=1e-3)
        assert 0.0 < won[names[-1]]


def test_no_cut_where_sites_lie_elsewhere_or_at_the_start() -> None:
    model = hidden_sites_model(16)
    whole, found, held = opened(model, images(8, 16))
    with held:
        trials = Trials(whole, found, held.all())
        hidden = {site.name for site in found.rewritable if not site.ref.scope.is_main}
        assert hidden
        assert trials.behind(hidden) is trials
        assert trials.behind({found.rewritable[0].name}) is trials
        assert trials.behind(set()) is trials


def test_no_cut_behind_an_output() -> None:
    builder = GraphBuilder()
    builder.input("x", ["n", 16, 6, 6])
    builder.conv("x", "first", 16, 16)
    builder.conv("first", "second", 16, 16)
    builder.conv("second", "last", 16, 16, kernel=3)
    builder.output("last", ["n", 16, 4, 4])
    builder.output("first", ["n", 16, 6, 6])
    whole, found, held = opened(builder.model(), images(8, 16))
    with held:
        second = next(site for site in found.rewritable if site.ref.proto.output[0] == "second")
        assert tail_from(whole, found, held.all(), second.ref.index) is None


def test_no_cut_where_samples_do_not_stay_apart() -> None:
    """A Reshape that folds samples together."""
    builder = GraphBuilder()
    builder.input("x", ["n", 16, 6, 6])
    shape = builder.initializer("shape", np.array([1, 16, -1, 6], np.int64))
    value = builder.conv("x", "first", 16, 16)
    value = builder.add("Reshape", [value, shape], "joined")
    value = builder.conv(value, "second", 16, 16)
    builder.conv(value, "last", 16, 16, kernel=3)
    builder.output("last")
    whole, found, held = opened(builder.model(), images(8, 16))
    with held:
        site = next(each for each in found.rewritable if each.ref.proto.output[0] == "second")
        assert tail_from(whole, found, held.all(), site.ref.index) is None
