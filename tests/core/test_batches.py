"""A row's bits do not depend on the rows beside it, at any CPU capability of PyTorch.

Elementwise code has two versions, for full vector registers and for what is left at the end, and
of some functions (softplus, sigmoid, pow, exp2, logaddexp) they round otherwise. The same tests run
under `ATEN_CPU_CAPABILITY` default, avx2 and avx512 in CI.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from robustkit.core.losses import LOSSES
from robustkit.core.rng import Keys, normal
from robustkit.core.threat import Norm, Threat, unit

ROWS = 41
EPS: dict[Norm, float] = {"linf": 0.04, "l2": 0.35, "l1": 1.8, "l0": 3}


def same(function: Callable[..., Tensor], *rows: Tensor) -> None:
    whole = function(*rows)
    for size in (1, 3, 8):
        for start in range(0, ROWS, size):
            part = slice(start, start + size)
            for cut in (lambda t, p=part: t[p], lambda t, p=part: t[p].clone()):
                assert torch.equal(function(*map(cut, rows)), whole[part])


@pytest.mark.parametrize("scale", [1.0, 1e3])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradients(name: str, scale: float) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = scale * 5 * torch.randn(ROWS, 4, generator=draw)
    y = torch.randint(4, (ROWS,), generator=draw)

    def loss(z: Tensor, label: Tensor) -> Tensor:
        return LOSSES[name](z, label, (label + 1) % 4)

    def gradient(z: Tensor, label: Tensor) -> Tensor:
        leaf = z.clone().requires_grad_(True)
        return torch.autograd.grad(loss(leaf, label).sum(), leaf)[0]

    same(loss, logits, y)
    same(gradient, logits, y)


@pytest.mark.parametrize("shape", [(1, 6, 6), (37,), (3, 7, 9)])
@pytest.mark.parametrize("norm", EPS)
def test_geometry(norm: Norm, shape: tuple[int, ...]) -> None:
    draw, threat = torch.Generator().manual_seed(0), Threat(norm, EPS[norm])
    x = torch.rand(ROWS, *shape, generator=draw)
    step = torch.randn(ROWS, *shape, generator=draw)
    point = torch.arange(ROWS)
    same(threat.project, x + step, x)
    same(threat.steepest, step)
    same(threat.distance, x + step, x)
    same(lambda z, p: threat.sample(z, Keys(0 * p, p, 0 * p + 7)), x, point)
    same(unit, step)


def test_normal_draws() -> None:
    same(lambda p: normal(Keys(0 * p, p, 0 * p + 7), 35, 0), torch.arange(ROWS))


@pytest.mark.parametrize("scale", [1e-44, 1e-40, 1e-30, 1e-12, 1.0, 1e25, 1e37])
def test_directions_do_not_depend_on_the_scale(scale: float) -> None:
    """Of subnormal entries few bits are left: those are what the direction is made of."""
    draw = torch.Generator().manual_seed(1)
    gradient = (scale * torch.randn(3, 2, 5, 5, generator=draw).double()).float()
    exact = gradient.double()
    length = exact.flatten(1).norm(dim=1)[:, None, None, None]
    wanted = (exact / length).float()
    assert bool(wanted.any())
    torch.testing.assert_close(Threat("l2", 1.0).steepest(gradient), wanted)
    sparse = Threat("l1", 1.0).steepest(gradient).flatten(1)
    assert torch.equal(sparse.abs().sum(1), torch.ones(3))
    assert not bool(unit(torch.zeros(2, 5)).any())


def test_cross_entropy_points_the_same_way_where_it_is_all_but_zero() -> None:
    z = torch.tensor([[3.0, 1.0, 0.5]])
    y = torch.tensor([0])
    ways = []
    for shift in (0.0, 1e2, 1e4):  # the gap to the others grows, not those among them
        leaf = (z + torch.tensor([shift, 0.0, 0.0])).requires_grad_(True)
        value = LOSSES["ce"](leaf, y, y)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        ways.append(unit(gradient))  # whose plain norm is 0 in float32
        farther = LOSSES["ce"](leaf.detach() + torch.tensor([1.0, 0.0, 0.0]), y, y)
        assert float(farther) < float(value.detach())
    torch.testing.assert_close(ways[1], ways[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ways[2], ways[0], rtol=1e-5, atol=1e-6)
