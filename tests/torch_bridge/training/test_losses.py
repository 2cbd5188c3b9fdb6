"""What matching a tensor costs, and the gradient of that, against PyTorch's own mean squared error."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from onnx_igpc.torch_bridge.training.losses import Objective
from onnx_igpc.torch_bridge.training.pairing import Pair

TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def matching(scale: float, order: tuple[int, ...] | None = None) -> Objective:
    """Matches one site and nothing else."""
    pair = Pair("site", "ours", "theirs", order)
    return Objective("kd", None, (), (pair,), 0, 4.0, 0.5, 1.0, {0: scale})


@given(
    dtype=st.sampled_from(TYPES),
    layout=st.sampled_from((torch.contiguous_format, torch.channels_last)),
    scale=st.floats(0.1, 10),
    seed=st.integers(0, 99),
)
def test_it_is_the_mean_squared_error(
    dtype: torch.dtype, layout: torch.memory_format, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    theirs, ours = torch.randn(2, 3, 4, 5, 5, generator=generator).to(dtype)
    ours = ours.contiguous(memory_format=layout).requires_grad_()
    order = tuple(torch.randperm(4, generator=generator).tolist())
    wanted = scale * functional.mse_loss(ours.double(), theirs[:, list(order)].double())
    (gradient,) = torch.autograd.grad(wanted, ours)
    found = matching(scale, order)([ours], [theirs], None)
    (got,) = torch.autograd.grad(found.total, ours)
    assert found.feature.dtype == torch.float32
    # The difference is rounded to the type that the network computes in.
    tolerance = 4 * float(torch.finfo(dtype).eps) + 1e-6
    assert float(found.feature) == pytest.approx(float(wanted.detach()), rel=tolerance)
    assert float((got.double() - gradient.double()).norm()) <= tolerance * float(gradient.norm())


def test_what_is_equal_costs_nothing_and_stays() -> None:
    ours = torch.ones(2, 3, 4, 4, requires_grad=True)
    loss = matching(2.0)([ours], [torch.ones(2, 3, 4, 4)], None).total
    (gradient,) = torch.autograd.grad(loss, ours)
    assert float(loss.detach()) == 0
    assert not gradient.any()


def test_nothing_is_equal_to_nothing() -> None:
    """A detector may find nothing in a batch."""
    ours = torch.ones(0, 4, requires_grad=True)
    assert float(matching(1.0)([ours], [torch.ones(0, 4)], None).feature) == 0
