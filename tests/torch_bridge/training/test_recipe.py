"""The recipe: what it refuses, what it decides, and the learning rate."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from onnx_igpc.errors import UsageError
from onnx_igpc.torch_bridge.training.recipe import Recipe
from onnx_igpc.torch_bridge.training.sampling import learning_rate


@pytest.mark.parametrize(
    "wrong",
    [
        {"base": "all"},
        {"features": "all"},
        {"loss": "l1"},
        {"optimizer": "lion"},
        {"schedule": "step"},
        {"amp": "int8"},
        {"batch_norm": "off"},
        {"interpolation": 0.0},
        {"interpolation": 1.5},
        {"epochs": 0},
        {"batch_size": 0},
        {"views": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"temperature": -1.0},
        {"warmup": 1.0},
        {"label_weight": 2.0},
        {"feature_loss": -1.0},
        {"weight_decay": -1.0},
        {"seed": -1},
    ],
    ids=str,
)
def test_values_that_cannot_be_meant(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"`{next(iter(wrong))}`"):
        Recipe(**wrong)


def test_what_is_left_open_is_decided() -> None:
    decided = Recipe().resolved(None, 6400, 1)
    assert (decided.base, decided.batch_size, decided.epochs) == ("many", 64, 5)
    assert (decided.batch_norm, decided.lr) == ("train", 1e-2)
    many = Recipe(base="many")
    assert many.resolved(None, 64, 1).epochs == 100
    assert many.resolved(None, 10, 1).batch_size == 10
    assert replace(many, batch_size=12).resolved(None, 100, 2).batch_norm == "frozen"
    assert Recipe().resolved(1, 100, 4).batch_size == 4
    assert Recipe(epochs=2, lr=0.5).resolved(None, 100, 1).epochs == 2


def test_few_samples() -> None:
    decided = Recipe().resolved(None, 160, 1)
    assert (decided.base, decided.batch_size, decided.epochs) == ("few", 32, 140)
    assert (decided.batch_norm, decided.lr) == ("frozen", 2e-3)
    assert Recipe(optimizer="sgd").resolved(None, 160, 1).lr == pytest.approx(0.01)
    assert Recipe().resolved(None, 1080, 1).epochs == 43, "1,404 steps"
    assert Recipe().resolved(None, 10, 1).epochs == 200


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_rises_and_falls(schedule: str) -> None:
    recipe = Recipe(lr=1.0, warmup=0.1, schedule=schedule)
    rates = [learning_rate(recipe, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(rates) == 1
    assert all(a >= b for a, b in pairwise(rates[9:]))
    assert rates[-1] > 0
    if schedule != "constant":
        assert rates[-1] < 0.02
        assert rates[55] == pytest.approx(0.5)


def test_a_run_of_one_step_learns() -> None:
    assert learning_rate(Recipe(lr=0.1), 0, 1) > 0
