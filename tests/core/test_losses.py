"""Losses against closed forms, by value and by gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustkit.core.losses import LOSSES, TARGETED, input_gradient, lead


def logits(seed: int, classes: int, rows: int = 7, scale: float = 3.0) -> tuple[Tensor, ...]:
    """Random logits [7, k], labels, and targets that differ from them."""
    generator = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (rows,), generator=generator)
    target = (y + 1 + torch.randint(classes - 1, (rows,), generator=generator)) % classes
    return z, y, target


def unit(index: int, classes: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(index), classes).double()


def closed(name: str, z: Tensor, y: int, t: int) -> tuple[Tensor, Tensor]:
    """Value and gradient at one row of distinct logits [k], written out by hand."""
    k = len(z)
    falling = sorted(range(k), key=lambda i: -float(z[i]))
    runner = next(i for i in falling if i != y)
    towards = t if name in TARGETED else runner
    p = (z - z.max()).exp() / (z - z.max()).exp().sum()
    if name == "ce":
        return -p[y].log(), p - unit(y, k)
    if name == "probability":
        rows = torch.diag(p) - torch.outer(p, p)
        return p[runner] - p[y], rows[runner] - rows[y]
    gap, slope = z[towards] - z[y], unit(towards, k) - unit(y, k)
    if "margin" in name or k == 2:
        return gap, slope
    lower = falling[2:4] if name == "targeted_dlr" else falling[2:3]
    spread = z[falling[0]] - z[lower].mean()
    opening = unit(falling[0], k) - sum(unit(i, k) for i in lower) / len(lower)
    return gap / spread, slope / spread - gap / spread**2 * opening


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_value_and_gradient_are_the_closed_form(name: str, classes: int) -> None:
    z, y, target = logits(classes, classes)
    z.requires_grad_(True)
    value = LOSSES[name](z, y, target)
    assert value.shape == (7,)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    for row in range(7):
        expected = closed(name, z.detach()[row], int(y[row]), int(target[row]))
        torch.testing.assert_close(value.detach()[row], expected[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(gradient[row], expected[1], rtol=1e-9, atol=1e-9)


@given(st.integers(0, 10**6), st.integers(3, 12), st.floats(1e-2, 1e3), st.floats(-50, 50))
def test_dlr_does_not_depend_on_scale_and_shift(
    seed: int, classes: int, scale: float, shift: float
) -> None:
    z, y, target = logits(seed, classes)
    for name in ("dlr", "targeted_dlr"):
        loss = LOSSES[name]
        torch.testing.assert_close(
            loss(scale * z + shift, y, target), loss(z, y, target), rtol=1e-6, atol=1e-6
        )


@given(st.integers(0, 10**6), st.integers(2, 12), st.sampled_from(["margin", "dlr", "probability"]))
def test_positive_exactly_where_misclassified(seed: int, classes: int, name: str) -> None:
    z, y, target = logits(seed, classes, rows=64)
    assert torch.equal(LOSSES[name](z, y, target) > 0, z.argmax(1) != y)


@given(st.integers(0, 10**6), st.integers(4, 12))
def test_dlr_of_correct_points_lies_between_minus_one_and_zero(seed: int, classes: int) -> None:
    z, _, target = logits(seed, classes, rows=64)
    value = LOSSES["dlr"](z, z.argmax(1), target)
    assert bool(((value >= -1) & (value <= 0)).all())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_equal_and_huge_logits_stay_finite(name: str, classes: int) -> None:
    for z in (torch.zeros(3, classes), torch.full((3, classes), 1e30), 80 * torch.eye(3, classes)):
        z.requires_grad_(True)
        value = LOSSES[name](z, torch.tensor([0, 1, 1]), torch.tensor([1, 0, 0]))
        (gradient,) = torch.autograd.grad(value.sum(), z)
        assert bool(value.isfinite().all())
        assert bool(gradient.isfinite().all())


def test_losses_without_a_target_ignore_it() -> None:
    z, y, target = logits(1, 6)
    nobody = torch.full_like(target, -1)
    for name in LOSSES.keys() - TARGETED:
        assert torch.equal(LOSSES[name](z, y, target), LOSSES[name](z, y, nobody))
    for name in TARGETED:
        assert not torch.equal(LOSSES[name](z, y, target), LOSSES[name](z, y, y))


@pytest.mark.parametrize("lead", [5.0, 20.0, 60.0])
def test_cross_entropy_keeps_its_gradient_where_the_model_is_sure(lead: float) -> None:
    """In float32, 1 − p is lost beside 1 beyond a lead of 16.

    With z = (lead, 0, −1) the gradient is (−q, e^−lead, e^−(lead + 1)) / (1 + q), where
    q = e^−lead + e^−(lead + 1).
    """
    z = torch.tensor([[lead, 0.0, -1.0]], requires_grad=True)
    y = torch.tensor([0])
    value = LOSSES["ce"](z, y, y)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    first, second = torch.tensor([-lead, -lead - 1], dtype=torch.float64).exp()
    q = first + second
    wanted = torch.stack([-q, first, second]) / (1 + q)
    torch.testing.assert_close(gradient[0].double(), wanted, rtol=1e-5, atol=0)
    torch.testing.assert_close(value.double(), torch.log1p(q)[None], rtol=1e-5, atol=0)


def test_lead_is_the_margin_of_the_predicted_class() -> None:
    z, _, _ = logits(3, 5)
    top = z.argmax(1)
    assert torch.equal(lead(z), -LOSSES["margin"](z, top, top))


def test_the_input_gradient_is_that_of_every_row_and_leaves_no_graph() -> None:
    draw = torch.Generator().manual_seed(1)
    weight, x = torch.randn(6, 4, generator=draw), torch.rand(3, 6, generator=draw)
    found, gradient = input_gradient(lambda z: z @ weight, x)
    top = (x @ weight).topk(2, dim=1).indices
    assert gradient is not None
    torch.testing.assert_close(gradient, (weight[:, top[:, 0]] - weight[:, top[:, 1]]).T)
    torch.testing.assert_close(found, x @ weight)
    assert not found.requires_grad
    assert not x.requires_grad


@pytest.mark.parametrize("free", [False, True])
def test_no_input_gradient_where_the_graph_does_not_reach_the_input(free: bool) -> None:
    bias = torch.zeros(4, requires_grad=free)
    assert input_gradient(lambda z: z.detach() + bias, torch.rand(3, 4))[1] is None
