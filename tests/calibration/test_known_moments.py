"""Moments that are kept for parts of the data: those of any samples, without running the same ones twice."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_igpc.calibration import known_moments
from onnx_igpc.calibration.collect import collect_moments
from onnx_igpc.calibration.held_samples import HeldSamples, Part
from onnx_igpc.calibration.known_moments import KnownMoments
from onnx_igpc.calibration.taps import Tap
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.view import GraphView
from onnx_igpc.sites.find import SiteFilter, find_sites
from tests.calibration_graphs import ListData
from tests.helpers import pointwise_model


def test_any_samples_as_if_they_were_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = OpenModel(pointwise_model(8, 6))
    [spec] = model_inputs(opened.proto)
    shape = [each if isinstance(each, int) else 1 for each in spec.shape]
    values = np.random.default_rng(0).normal(2.0, 1.0, (23, *shape[1:])).astype(np.float32)
    sites = find_sites(GraphView(opened), SiteFilter(include_heads=True)).rewritable
    ran: list[int] = []

    def counted(model: OpenModel, taps: list[Tap], data: Part) -> object:
        ran.extend(data.numbers)
        return collect_moments(model, taps, data)

    monkeypatch.setattr(known_moments, "collect_moments", counted)
    with HeldSamples(
        ListData(opened.proto, {spec.name: values}), model_inputs(opened.proto)
    ) as held:
        everything = held.all()
        kept = everything.take(16)
        parts = kept.folds(4)
        known = KnownMoments(opened, sites, parts)
        for wanted in (kept, kept.without(parts[1]), everything, everything.without(parts[0])):
            expected = collect_moments(opened, [Tap.of(site) for site in sites], wanted)
            found = known.of(wanted)
            assert list(found) == list(expected)
            for tap, moments in expected.items():
                assert found[tap].count == moments.count
                np.testing.assert_allclose(found[tap].mean, moments.mean, rtol=1e-6)
                np.testing.assert_allclose(found[tap].second, moments.second, rtol=1e-6, atol=1e-6)
        others = everything.without(kept).numbers
        assert sorted(ran) == sorted([*kept.numbers, *others, *others])
