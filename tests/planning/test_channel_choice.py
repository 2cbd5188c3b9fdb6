"""Which channels are left out: enough of them, and those that do least damage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_igpc.calibration.held_samples import HeldSamples
from onnx_igpc.calibration.narrow_fits import fit_narrowings
from onnx_igpc.errors import CheckFailedError
from onnx_igpc.graph.cost import count
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.graph.model import OpenModel, snapshot
from onnx_igpc.graph.view import GraphView
from onnx_igpc.lowering.block_prices import CountedBlocks
from onnx_igpc.passes import NarrowChannels
from onnx_igpc.planning.channel_choice import ChannelChoice, choose_channels
from onnx_igpc.planning.channel_trials import ChannelTrials, Widths, possible_widths
from onnx_igpc.planning.sensitivity import Damage
from onnx_igpc.planning.trials import Trials
from onnx_igpc.sites.find import find_sites
from onnx_igpc.sites.inner_channels import InnerChannels, find_inner_channels
from tests.calibration_graphs import ListData, faint, images, residual_model
from tests.helpers import run
from tests.planning.test_block_choice import divergence

CHANNELS, SAMPLES = 16, 24


@contextmanager
def trials_of(proto: onnx.ModelProto) -> Iterator[tuple[Trials, list[InnerChannels]]]:
    model, data = OpenModel(proto), ListData(proto, {"x": images(SAMPLES, CHANNELS)})
    found = find_sites(GraphView(model))
    with HeldSamples(data, model_inputs(proto)) as held:
        yield Trials(model, found, held.all()), find_inner_channels(found)


def three_places(**parts: float) -> onnx.ModelProto:
    """Three places of 32 channels each; ``parts`` says how much of a block's output is left."""
    return faint(residual_model(CHANNELS, blocks=3), **{"b0": 1.0, "b1": 1.0, "b2": 1.0, **parts})


def chosen(proto: onnx.ModelProto, share: float) -> ChannelChoice:
    with trials_of(proto) as (trials, inner):
        return choose_channels(trials, inner, share, CountedBlocks(trials.model))


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
def test_what_is_left_is_enough_and_not_much_less(share: float) -> None:
    choice = chosen(three_places(), share)
    assert share - 0.1 < choice.share <= share
    for kept in choice.kept.values():
        assert list(kept) == sorted(set(kept))
        assert len(kept) in (8, 16, 24)
        assert max(kept) < 32


def test_the_share_is_that_of_the_model_as_it_is_written() -> None:
    proto = three_places()
    with trials_of(proto) as (trials, inner):
        choice = choose_channels(trials, inner, 0.7, CountedBlocks(trials.model))
        widths = {name: len(kept) for name, kept in choice.kept.items()}
        written = ChannelTrials(trials, inner).narrowed(widths)
    assert choice.share == count(written).macs / count(OpenModel(proto)).macs
    onnx.checker.check_model(written.proto, full_check=True)


def test_channels_go_where_that_does_least_damage() -> None:
    kept = chosen(three_places(b1=0.02), 0.76).kept
    assert list(kept) == ["b1_node"]
    assert len(kept["b1_node"]) == 8


def test_the_damage_is_that_of_fits_that_left_out_what_is_measured() -> None:
    proto = three_places(b0=0.5)
    with trials_of(proto) as (trials, inner):
        tried = ChannelTrials(trials, inner)
        widths: Widths = {"b0_node": 8, "b2_node": 16}
        found, parts = tried.whole(widths), []
        readers = [each.reader for each in inner]
        for fold in trials.folds:
            rest = trials.part.without(fold)
            narrow = snapshot(trials.model)
            fits = fit_narrowings(trials.model, readers, tried.kept(widths), rest)
            NarrowChannels(fits).run(narrow)
            x = np.concatenate([batch.feeds["x"][: batch.count] for batch in fold])
            before, after = (run(each.proto, {"x": x})["y"] for each in (trials.model, narrow))
            parts.append((divergence(before, after), len(x)))
    assert found.samples == SAMPLES
    assert found.value == pytest.approx(sum(d * n for d, n in parts) / SAMPLES, rel=1e-3)


def test_the_whole_decides_whether_places_keep_half_at_least(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Widths] = []

    def damage(worse: int) -> None:
        asked.clear()

        def whole(trials: ChannelTrials, widths: Widths) -> Damage:
            asked.append(widths)
            return Damage(1.0 + (min(widths.values()) == worse), SAMPLES)

        monkeypatch.setattr(ChannelTrials, "whole", whole)

    proto = three_places(b1=0.02)
    damage(worse=8)
    assert min(map(len, chosen(proto, 0.72).kept.values())) == 16
    assert sorted(min(widths.values()) for widths in asked) == [8, 16]
    damage(worse=16)
    assert min(map(len, chosen(proto, 0.72).kept.values())) == 8
    # Where no half is enough, less is all that is tried.
    assert min(map(len, chosen(proto, 0.45).kept.values())) == 8


def test_the_curve_rises_to_nothing_left_out() -> None:
    choice = chosen(three_places(), 0.7)
    shares, damages = zip(*choice.curve, strict=True)
    assert (shares[-1], damages[-1]) == (1.0, 0.0)
    assert list(shares) == sorted(shares)
    assert list(damages) == sorted(damages, reverse=True)


def test_what_cannot_be_reached_names_the_least() -> None:
    with pytest.raises(CheckFailedError, match=r"least that was measured .* is 25\.0%"):
        chosen(three_places(), 0.1)
    with trials_of(three_places()) as (trials, _), pytest.raises(CheckFailedError, match="none"):
        choose_channels(trials, [], 0.5, CountedBlocks(trials.model))


def test_a_time_that_is_short_by_luck_is_not_believed() -> None:
    class Lucky(CountedBlocks):
        def of_models(self, models: object) -> list[float]:
            first, *others = super().of_models(models)  # type: ignore[arg-type]
            return [first - 0.05, *others]

    with trials_of(three_places()) as (trials, inner):
        choice = choose_channels(trials, inner, 0.7, Lucky(trials.model))
        widths = {name: len(kept) for name, kept in choice.kept.items()}
        written = ChannelTrials(trials, inner).narrowed(widths)
    assert count(written).macs <= 0.7 * count(OpenModel(three_places())).macs


@given(st.integers(1, 3000))
def test_widths_are_whole_vectors_of_channels(channels: int) -> None:
    widths = possible_widths(channels)
    step = 16 if channels >= 64 else 8 if channels >= 16 else 1
    assert widths == sorted(set(widths), reverse=True)
    assert all(0 < width < channels and width % step == 0 for width in widths)
    assert widths or channels < 2
    assert all(width >= channels / 4 - step / 2 for width in widths)


def test_progress_counts_the_places() -> None:
    told: list[tuple[int, int, str]] = []
    with trials_of(three_places()) as (trials, inner):
        prices = CountedBlocks(trials.model)
        choose_channels(trials, inner, 0.8, prices, lambda *given: told.append(given))
    assert [done for done, _, _ in told] == [0, 1, 2, 3]
    assert {total for _, total, _ in told} == {4}
