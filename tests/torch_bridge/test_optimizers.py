"""Steps in units of the sizes of the weights: what a change of units may change, which is nothing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import Parameter

from onnx_igpc.torch_bridge.optimizers import (
    build_optimizer,
    relative_adamw,
    set_learning_rate,
    size_of,
)
from onnx_igpc.torch_bridge.recipe import Recipe

SCALES = st.floats(-30, 30).map(lambda power: 2.0**power)


def trained(
    values: list[torch.Tensor], targets: list[torch.Tensor], recipe: Recipe, steps: int = 5
) -> list[torch.Tensor]:
    """The values after a few steps towards the targets, each with a gradient of its own units."""
    parameters = [Parameter(value.clone()) for value in values]
    optimizer = build_optimizer(parameters, recipe)
    for _ in range(steps):
        set_learning_rate(optimizer, recipe.learning_rate)
        optimizer.zero_grad()
        pairs = zip(parameters, targets, strict=True)
        losses = [((p - t) / t.square().mean().sqrt()).square().mean() for p, t in pairs]
        torch.stack(losses).sum().backward()
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@given(SCALES, SCALES, st.integers(0, 99))
def test_a_first_step_is_the_rate_times_the_size(wide: float, thin: float, seed: int) -> None:
    """Adam's first step is the rate in every weight; the size is known to a factor of the root of 2."""
    generator = torch.Generator().manual_seed(seed)
    values = [scale * torch.randn(6, 5, generator=generator).double() for scale in (wide, thin)]
    targets = [3 * torch.randn(6, 5, generator=generator).double() * v for v in values]
    recipe = Recipe(lr=1e-2, weight_decay=0.0)
    for value, moved in zip(values, trained(values, targets, recipe, 1), strict=True):
        step = (moved - value).abs() / float(value.square().mean().sqrt())
        assert step.max() <= 1e-2 * math.sqrt(2) + 1e-12
        # Weights that have next to no gradient move less.
        assert step.median() >= 0.9e-2 / math.sqrt(2)


@given(st.integers(-20, 20), st.integers(0, 99))
def test_units_do_not_matter(power: int, seed: int) -> None:
    """A network in other units learns the same: here the second tensor is in others."""
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(4, 3, generator=generator).double() for _ in range(2)]
    targets = [torch.randn(4, 3, generator=generator).double() for _ in range(2)]
    factors = (1.0, 2.0**power)
    recipe = Recipe(lr=3e-2, weight_decay=0.1)
    plain = trained(values, targets, recipe)
    scaled = trained(
        [f * v for f, v in zip(factors, values, strict=True)],
        [f * t for f, t in zip(factors, targets, strict=True)],
        recipe,
    )
    assert torch.equal(plain[0], scaled[0])
    assert torch.equal(plain[1], scaled[1] / factors[1])


@given(st.lists(st.floats(-1e30, 1e30).filter(lambda x: abs(x) > 1e-30), min_size=1, max_size=9))
def test_the_size_is_the_nearest_power_of_two(values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float64)
    size = size_of(tensor)
    assert math.log2(size).is_integer()
    ratio = size / float(tensor.square().mean().sqrt())
    assert 1 / math.sqrt(2) - 1e-9 <= ratio <= math.sqrt(2) + 1e-9


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]], ids=str)
def test_tensors_without_a_size_still_move(values: list[float]) -> None:
    assert size_of(torch.tensor(values)) == 0.125


def test_schedulers_of_pytorch_work() -> None:
    parameters = [Parameter(torch.full((2, 2), 4.0)), Parameter(torch.full((2,), 0.5))]
    optimizer = relative_adamw(parameters, lr=1e-2)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5e-2, 4e-2]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.25e-2, 2e-2]


def test_sgd_follows_the_gradient() -> None:
    values, targets = [torch.full((2, 2), 100.0)], [torch.full((2, 2), 50.0)]
    recipe = Recipe(optimizer="sgd", lr=0.1, weight_decay=0.0)
    (moved,) = trained(values, targets, recipe, 1)
    # The gradient is 2 (100 - 50) / 50^2 / 4 in each weight; Nesterov's first step is 1.9 of it.
    assert moved == pytest.approx(torch.full((2, 2), 100 - 1.9 * 0.1 * 0.01))


def test_decay_is_for_what_has_several_dimensions() -> None:
    parameters = [Parameter(torch.ones(2, 2)), Parameter(torch.ones(2)), Parameter(torch.ones(()))]
    frozen = Parameter(torch.ones(2, 2), requires_grad=False)
    optimizer = build_optimizer([*parameters, frozen], Recipe(weight_decay=0.5))
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decays == {id(parameters[0]): 0.5, id(parameters[1]): 0.0, id(parameters[2]): 0.0}


def test_tensors_of_one_size_share_a_group() -> None:
    """Every group takes kernels of its own: a network of hundreds of tensors has a few."""
    generator = torch.Generator().manual_seed(0)
    tensors = [Parameter(torch.randn(9, 9, generator=generator)) for _ in range(100)]
    assert len(build_optimizer(tensors, Recipe()).param_groups) == 1
