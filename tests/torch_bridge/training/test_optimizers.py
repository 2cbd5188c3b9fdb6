"""Steps in units of the sizes of the weights: what a change of units may change, which is nothing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import Parameter

from onnx_igpc.torch_bridge.training.optimizers import RelativeAdamW, build_optimizer, sizes
from onnx_igpc.torch_bridge.training.recipe import Recipe

FILTERS, CHANNELS = 4, 3


def trained(
    values: list[torch.Tensor], targets: list[torch.Tensor], recipe: Recipe, steps: int = 5
) -> list[torch.Tensor]:
    """The values after a few steps towards the targets, each filter with a gradient of its own units."""
    parameters = [Parameter(value.clone()) for value in values]
    optimizer = build_optimizer(parameters, recipe)
    for _ in range(steps):
        optimizer.zero_grad()
        pairs = zip(parameters, targets, strict=True)
        losses = [((p - t) / t.square().mean(1, keepdim=True).sqrt()).square() for p, t in pairs]
        torch.stack([loss.sum() for loss in losses]).sum().backward()
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def some(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@given(st.lists(st.floats(-3, 0), min_size=FILTERS, max_size=FILTERS), st.integers(0, 99))
def test_a_first_step_is_the_rate_times_the_size(powers: list[float], seed: int) -> None:
    """Adam's first step is the rate in every weight; the size is known to a factor of the root of 2."""
    scale = 2.0 ** torch.tensor(powers).double()[:, None]
    value, target = scale * some(seed, FILTERS, CHANNELS), some(seed + 100, FILTERS, CHANNELS)
    size = value.square().mean(1, keepdim=True).sqrt()
    size = size.clamp(min=0.1 * float(size.median()))
    recipe = Recipe(lr=1e-2, weight_decay=0.0)
    (moved,) = trained([value], [target], recipe, 1)
    steps = (moved - value).abs() / size
    assert steps.max() <= 1e-2 * math.sqrt(2) + 1e-9
    assert steps.min() >= 0.99e-2 / math.sqrt(2)


@given(
    st.lists(st.integers(-20, 20), min_size=2, max_size=2),
    st.lists(st.integers(-2, 2), min_size=FILTERS, max_size=FILTERS),
    st.integers(0, 99),
)
def test_units_do_not_matter(tensors: list[int], filters: list[int], seed: int) -> None:
    """A network in other units learns the same, bit for bit where the units are powers of two."""
    values = [some(seed + n, FILTERS, CHANNELS) for n in range(2)]
    targets = [some(seed + n, FILTERS, CHANNELS) for n in range(2, 4)]
    # No filter may come below a tenth of the median, which has units of its own.
    values = [value / value.square().mean(1, keepdim=True).sqrt() for value in values]
    by_filter = 2.0 ** torch.tensor(filters).double()[:, None]
    if float(by_filter.min()) < 0.2 * float(by_filter.median()):
        by_filter = torch.ones_like(by_filter)
    factors = [by_filter * 2.0**power for power in tensors]
    recipe = Recipe(lr=3e-2, weight_decay=0.1)
    plain = trained(values, targets, recipe)
    scaled = trained(
        [f * v for f, v in zip(factors, values, strict=True)],
        [f * t for f, t in zip(factors, targets, strict=True)],
        recipe,
    )
    for one, other, factor in zip(plain, scaled, factors, strict=True):
        assert torch.equal(one, other / factor)


def test_it_is_adamw_where_all_sizes_are_one() -> None:
    value, target = torch.where(some(0, 3, 4) > 0, 1.0, -1.0), some(1, 3, 4)
    ours, theirs = Parameter(value.clone()), Parameter(value.clone())
    relative = RelativeAdamW([ours], lr=1e-2, weight_decay=0.1)
    plain = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.1, eps=1e-9)
    for parameter, optimizer in ((ours, relative), (theirs, plain)):
        for _ in range(4):
            optimizer.zero_grad()
            (parameter - target).square().sum().backward()
            optimizer.step()
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours.detach(), value)


@pytest.mark.parametrize("shape", [(), (5,), (5, 2), (5, 2, 3, 3)], ids=str)
def test_a_size_is_the_nearest_power_of_two_of_a_filter(shape: tuple[int, ...]) -> None:
    tensor = 1.5 + torch.rand(shape, generator=torch.Generator().manual_seed(0)).double()
    found = sizes(tensor)
    assert (tensor / found).shape == tensor.shape
    assert found.numel() == (shape[0] if shape else 1)
    axes = tuple(range(1, len(shape)))
    exact = tensor.square().mean(axes, keepdim=True).sqrt() if axes else tensor
    assert torch.equal(found, 2.0 ** exact.log2().round())


def test_small_filters_count_as_a_tenth_of_the_median() -> None:
    tensor = torch.tensor([[0.0, 0.0], [1e-6, 1e-6], [8.0, 8.0], [16.0, 16.0], [4.0, 4.0]])
    # The median of those that are not zero is the lower of the two in the middle, 4.
    assert sizes(tensor).flatten().tolist() == [0.5, 0.5, 8.0, 16.0, 4.0]
    assert sizes(tensor[:, 0]).tolist() == [0.5, 0.5, 8.0, 16.0, 4.0]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(3),
        torch.zeros(2, 2),
        torch.zeros(()),
        torch.tensor([math.nan, 1.0]),
        torch.tensor([[math.inf, 1.0], [1.0, 1.0]]),
        torch.zeros(0),
        torch.zeros(0, 3),
        torch.zeros(2, 0),
    ],
    ids=lambda t: str(t.tolist()),
)
def test_tensors_without_a_size_still_move(tensor: torch.Tensor) -> None:
    assert (tensor / sizes(tensor)).shape == tensor.shape
    assert (sizes(tensor) == 0.125).all()


def test_what_has_no_gradient_stays() -> None:
    moving, still = Parameter(torch.full((2, 2), 3.0)), Parameter(torch.full((2, 2), 3.0))
    frozen = Parameter(torch.full((2, 2), 3.0), requires_grad=False)
    optimizer = RelativeAdamW([moving, still, frozen])
    moving.sum().backward()
    optimizer.step()
    assert torch.equal(still, frozen)
    assert not torch.equal(moving, frozen)


def test_schedulers_and_closures_of_pytorch_work() -> None:
    parameter = Parameter(torch.full((2, 2), 4.0))
    optimizer = RelativeAdamW([parameter], lr=1e-2, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = parameter.sum()
        loss.backward()
        return loss

    places = [4.0]
    for _ in range(3):
        assert float(optimizer.step(closure).detach()) == pytest.approx(4 * places[-1])
        scheduler.step()
        places.append(float(parameter[0, 0].detach()))
    assert places == pytest.approx([4, 4 - 4e-2, 4 - 6e-2, 4 - 7e-2])


def test_sgd_follows_the_gradient() -> None:
    values, targets = [torch.full((1, 1), 100.0)], [torch.full((1, 1), 50.0)]
    recipe = Recipe(optimizer="sgd", lr=0.1, weight_decay=0.0)
    (moved,) = trained(values, targets, recipe, 1)
    # The gradient is 2 (100 - 50) / 50^2; Nesterov's first step is 1.9 of it.
    assert float(moved) == pytest.approx(100 - 1.9 * 0.1 * 0.04)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_decay_is_for_what_has_several_dimensions(optimizer: str) -> None:
    parameters = [Parameter(torch.ones(2, 2)), Parameter(torch.ones(2)), Parameter(torch.ones(()))]
    frozen = Parameter(torch.ones(2, 2), requires_grad=False)
    recipe = Recipe(optimizer=optimizer, weight_decay=0.5)
    groups = build_optimizer([*parameters, frozen], recipe).param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decays == {id(parameters[0]): 0.5, id(parameters[1]): 0.0, id(parameters[2]): 0.0}
