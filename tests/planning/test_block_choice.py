"""Which residual blocks are collapsed: enough of them, and those that do least damage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest

from onnx_igpc.calibration.block_fits import block_moments, collapsed, fitted
from onnx_igpc.calibration.held_samples import HeldSamples
from onnx_igpc.errors import CheckFailedError
from onnx_igpc.fitting.moments import Moments
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.graph.model import OpenModel
from onnx_igpc.graph.view import GraphView
from onnx_igpc.planning import block_choice
from onnx_igpc.planning.block_choice import choose_blocks
from onnx_igpc.planning.block_trials import BlockTrials
from onnx_igpc.planning.sensitivity import Damage
from onnx_igpc.planning.trials import FEW, Trials
from onnx_igpc.sites.find import find_sites
from onnx_igpc.sites.residual_blocks import ResidualBlock, find_blocks
from tests.calibration_graphs import ListData, faint, images, residual_model
from tests.helpers import run


@contextmanager
def trials_of(model: OpenModel, x: np.ndarray) -> Iterator[tuple[Trials, list[ResidualBlock]]]:
    found = find_sites(GraphView(model))
    with HeldSamples(ListData(model.proto, {"x": x}), model_inputs(model.proto)) as held:
        yield Trials(model, found, held.all()), find_blocks(found)


@dataclass
class Saving:
    """Blocks that each save a share; ``slower`` is what a set of several leaves beyond that."""

    saved: Mapping[str, float]
    slower: float = 0.0
    asked: list[int] = field(default_factory=list)

    def left(self, sets: Sequence[Sequence[ResidualBlock]]) -> list[float]:
        self.asked += [len(blocks) for blocks in sets]
        return [
            1.0
            - sum(self.saved[block.name] for block in blocks)
            + (self.slower if len(blocks) > 1 else 0.0)
            for blocks in sets
        ]


def names(count: int) -> list[str]:
    return [f"sum{index}_node" for index in range(count)]


def test_damages_are_those_of_fits_that_left_out_what_is_measured() -> None:
    model = OpenModel(faint(residual_model(8), b0=0.3, b1=0.3))
    x = images(24, 8)
    with trials_of(model, x) as (trials, blocks):
        found = BlockTrials(trials, blocks).damage(frozenset(names(2)))
        parts = []
        for fold in trials.folds:
            rest = trials.part.without(fold)
            weights = {
                name: fitted(each) for name, each in block_moments(model, blocks, rest).items()
            }
            values = np.concatenate([batch.feeds["x"][: batch.count] for batch in fold])
            before, after = (
                run(each.proto, {"x": values})["y"] for each in (model, collapsed(model, weights))
            )
            parts.append((divergence(before, after), len(values)))
    expected = sum(value * count for value, count in parts) / sum(count for _, count in parts)
    assert found.samples == 24
    assert found.value == pytest.approx(expected, rel=1e-3)


def divergence(before: np.ndarray, after: np.ndarray) -> float:
    def logarithms(scores: np.ndarray) -> np.ndarray:
        scores = scores.astype(np.float64)
        scores -= scores.max(axis=1, keepdims=True)
        return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))

    p, q = logarithms(before), logarithms(after)
    return float(np.mean(np.sum(np.exp(p) * (p - q), axis=1)))


def test_the_block_that_adds_least_goes_first() -> None:
    model = OpenModel(faint(residual_model(8, blocks=3), b0=0.5, b1=0.02, b2=0.5))
    with trials_of(model, images(24, 8)) as (trials, blocks):
        choice = choose_blocks(trials, blocks, 0.85, Saving(dict.fromkeys(names(3), 0.2)))
    assert choice is not None
    assert [block.name for block in choice.blocks] == ["sum1_node"]
    assert choice.share == pytest.approx(0.8)
    assert choice.curve[-1] == (1.0, 0.0)
    assert choice.tried[-1].damage == choice.damage
    assert choice.damage.value == min(each.damage.value for each in choice.tried)


def test_enough_are_taken_and_none_where_all_are_not_enough() -> None:
    model = OpenModel(faint(residual_model(8, blocks=3), b0=0.1, b1=0.1, b2=0.1))
    with trials_of(model, images(24, 8)) as (trials, blocks):
        saving = Saving(dict.fromkeys(names(3), 0.1))
        choice = choose_blocks(trials, blocks, 0.8001, saving)
        assert len(choice.blocks) == 2
        assert [block.add.index for block in choice.blocks] == sorted(
            block.add.index for block in choice.blocks
        )
        assert [round(share, 6) for share, _ in choice.curve] == [0.7, 0.8, 0.9, 1.0]
        with pytest.raises(CheckFailedError, match=r"is 70.0%"):
            choose_blocks(trials, blocks, 0.6, saving)
        with pytest.raises(CheckFailedError, match=r"is 100.0%"):
            choose_blocks(trials, blocks, 0.9, Saving(dict.fromkeys(names(3), 0.0)))
        slow = Saving(dict.fromkeys(names(3), 0.1), slower=0.15)
        with pytest.raises(CheckFailedError, match=r"that was measured .* is 85.0%"):
            choose_blocks(trials, blocks, 0.8, slow)


def test_what_is_measured_decides_not_what_was_added_up() -> None:
    model = OpenModel(faint(residual_model(8, blocks=3), b0=0.1, b1=0.1, b2=0.1))
    with trials_of(model, images(24, 8)) as (trials, blocks):
        saving = Saving(dict.fromkeys(names(3), 0.1), slower=0.05)
        choice = choose_blocks(trials, blocks, 0.8, saving)
    assert choice is not None
    assert len(choice.blocks) == 3
    assert choice.share == pytest.approx(0.75)
    assert sorted(saving.asked) == [1, 1, 1, 2, 2, 2, 3, 3], "what is taken is measured twice"


@pytest.mark.parametrize("seed", range(6))
def test_the_choice_is_the_best_of_all_where_damages_add_up(seed: int) -> None:
    """Damages that are known: only the search is tried."""
    random = np.random.default_rng(seed)
    model = OpenModel(residual_model(4, blocks=6))
    damages = dict(zip(names(6), random.uniform(0.01, 1.0, 6), strict=True))
    saved = dict(zip(names(6), random.uniform(0.05, 0.1, 6), strict=True))
    share = 1 - 0.4 * sum(saved.values())
    with trials_of(model, images(8, 4)) as (trials, blocks):
        found = chosen_by(damages, trials, blocks, share, Saving(saved))
    best = min(
        sum(damages[name] for name in some)
        for count in range(7)
        for some in combinations(names(6), count)
        if 1 - sum(saved[name] for name in some) <= share
    )
    assert found == pytest.approx(best)


def chosen_by(
    damages: Mapping[str, float],
    trials: Trials,
    blocks: list[ResidualBlock],
    share: float,
    prices: Saving,
) -> float:
    with pytest.MonkeyPatch.context() as patch:

        def damage(self: Any, taken: frozenset[str], samples: int = 0) -> Damage:
            return Damage(sum(damages[name] for name in taken), 8)

        patch.setattr(BlockTrials, "damage", damage)
        choice = choose_blocks(trials, blocks, share, prices)
    return choice.damage.value


def test_few_sets_are_measured() -> None:
    model = OpenModel(faint(residual_model(8, blocks=6), **{f"b{i}": 0.1 for i in range(6)}))
    with trials_of(model, images(12, 8)) as (trials, blocks):
        measured: list[tuple[frozenset[str], int]] = []
        with pytest.MonkeyPatch.context() as patch:
            measure = BlockTrials._measured

            def counted(self: BlockTrials, taken: frozenset[str], samples: int) -> Damage:
                measured.append((taken, samples))
                return measure(self, taken, samples)

            patch.setattr(BlockTrials, "_measured", counted)
            told: list[tuple[int, int, str]] = []
            saving = Saving(dict.fromkeys(names(6), 0.1))
            choose_blocks(trials, blocks, 0.6001, saving, lambda *each: told.append(each))
    assert len(measured) == len(set(measured)), "none twice"
    assert len(measured) < 2**6 / 2
    assert sum(samples == FEW for _, samples in measured) == 6 + 5 + 4 + 3
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)


def test_a_moment_is_joined_over_the_other_parts() -> None:
    parts = [Moments(np.zeros(2), np.eye(2) * (i + 1), 10) for i in range(3)]
    trials = BlockTrials(None, [])  # type: ignore[arg-type]
    trials._parts = [{"a": each} for each in parts]
    np.testing.assert_allclose(trials._without("a", 2).second, 1.5 * np.eye(2))
    trials._parts = [{"a": parts[0]}]
    np.testing.assert_allclose(trials._without("a", 0).second, np.eye(2))


def test_of_many_blocks_the_likeliest_are_taken_for_certain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(block_choice, "_ENUMERATED", 2)
    model = OpenModel(residual_model(4, blocks=6))
    damages = dict(zip(names(6), (0.6, 0.1, 0.5, 0.2, 0.4, 0.3), strict=True))
    with trials_of(model, images(8, 4)) as (trials, blocks):
        saving = Saving(dict.fromkeys(names(6), 0.1))
        found = chosen_by(damages, trials, blocks, 0.6001, saving)
    assert found == pytest.approx(0.1 + 0.2 + 0.3 + 0.4)


def test_neighbours_that_do_more_together_are_not_taken_together() -> None:
    model = OpenModel(residual_model(4, blocks=4))

    def damage(self: Any, taken: frozenset[str], samples: int = 0) -> Damage:
        numbers = sorted(int(name[3]) for name in taken)
        near = sum(b - a == 1 for a, b in pairwise(numbers))
        return Damage(0.1 * len(numbers) + 0.001 * sum(numbers) + 0.5 * near, 8)

    with trials_of(model, images(8, 4)) as (trials, blocks), pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockTrials, "damage", damage)
        choice = choose_blocks(trials, blocks, 0.8001, Saving(dict.fromkeys(names(4), 0.1)))
    assert [block.name for block in choice.blocks] == ["sum0_node", "sum2_node"]
    assert choice.tried[-1].predicted == pytest.approx(choice.damage.value)


def test_a_set_that_fits_but_once_is_not_taken() -> None:
    """The share that is told is not one that the set was chosen by."""
    model = OpenModel(faint(residual_model(8, blocks=3), b0=0.02, b1=0.1, b2=0.5))

    @dataclass
    class Lucky(Saving):
        def left(self, sets: Sequence[Sequence[ResidualBlock]]) -> list[float]:
            again = len(self.asked) > 3 and [block.name for block in sets[0]] == ["sum0_node"]
            found = super().left(sets)
            return [0.95] if again and len(sets) == 1 else found

    with trials_of(model, images(24, 8)) as (trials, blocks):
        choice = choose_blocks(trials, blocks, 0.9, Lucky(dict.fromkeys(names(3), 0.1001)))
    assert choice.share <= 0.9
    assert [block.name for block in choice.blocks] != ["sum0_node"]
