"""The lean pass is that of linear_bounds.py, its gradient that of autograd."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.certify.affine import ConvOp, LinearOp, widening
from robustkit.certify.complete.relaxation import Domain, Lines, Relaxation
from robustkit.certify.complete.root import Prover, Root
from robustkit.certify.complete.transposed import Transposed
from robustkit.certify.graph import trace
from robustkit.certify.linear_bounds import bound
from robustkit.certify.linearized import Problem
from robustkit.core.threat import Threat

THREATS = [Threat("linf", 0.1), Threat("l2", 0.5), Threat("l1", 1.5)]


@pytest.fixture(params=["mlp", "residual"])
def net(request: pytest.FixtureRequest, mlp: Any, residual: Any) -> nn.Module:
    """Two networks over [1, 5, 5]."""
    made: nn.Module = mlp(3, (25, 6, 5, 3)) if request.param == "mlp" else residual(1)
    return made


@pytest.mark.parametrize(("kernel", "stride", "padding", "size"), [
    (4, 2, 1, 14), (3, 2, 1, 9), (3, 2, 0, 10), (5, 3, 2, 11), (2, 2, 0, 7),
    (1, 2, 0, 8), (3, 3, 1, 8),
])  # fmt: skip
def test_transposed_convolution(kernel: int, stride: int, padding: int, size: int) -> None:
    """Phase by phase it gives what the transposed convolution gives."""
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, kernel, stride, padding).requires_grad_(False)
    op = ConvOp(layer, (2, size, size))
    assert Transposed.applies(op)
    a = torch.randn(4, *layer(torch.zeros(1, 2, size, size)).shape[1:])
    assert torch.allclose(Transposed(op)(a), op.pull(a[:, None])[:, 0], atol=1e-5)


def _root(net: nn.Module, threat: Threat) -> tuple[Relaxation, Root]:
    shape = (1, 5, 5)
    x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(5))
    graph = trace(copy.deepcopy(net).double(), shape)
    prover = Prover.of(trace(net, shape), graph, threat)
    return prover.exact, Root(prover, x)


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_bound_is_that_of_linear_bounds(net: nn.Module, threat: Threat) -> None:
    """Same boxes, same slopes, with rounding: the same bound, or better where ball meets box."""
    relaxation, root = _root(net, threat)
    domain, last = root.exact(), relaxation.last
    lines = Lines.of(domain.low, domain.high)
    torch.manual_seed(1)
    alpha = torch.rand(1, relaxation.width, dtype=torch.float64)
    alpha = torch.maximum(torch.minimum(alpha, lines.ceiling), lines.floor)
    wanted = torch.randn(1, 3, dtype=torch.float64)
    slopes = {
        index: alpha[:, span].view_as(root.boxes[index].low)
        for index, span in relaxation.spans.items()
    }
    problem = Problem(relaxation.graph, root.boxes, root.x, threat, True, slopes)
    theirs = bound(problem, last, wanted[:, None])[0, 0]
    tight = relaxation.descend(domain, lines, alpha, last, wanted).bound[0]
    # The general pass counts units that are always zero as summands.
    slack = dict(domain.slack)
    for at, (op, inputs, _) in enumerate(relaxation.graph.nodes):
        if isinstance(op, (LinearOp, ConvOp)):
            low, high = root.boxes[inputs[0]]
            slack[at] = widening(op, torch.maximum(low.abs(), high.abs()))
    domain = domain._replace(slack=slack)
    ours = relaxation.descend(domain, lines, alpha, last, wanted).bound[0]
    assert bool(tight >= ours) and bool(ours >= theirs - 1e-12)
    if threat.norm == "linf":
        # The general pass subtracts the rounding of its own sums in float64 too.
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_gradient_is_that_of_autograd(net: nn.Module, threat: Threat) -> None:
    """By the slopes, and by what is added to the coefficients."""
    relaxation, root = _root(net, threat)
    domain = root.exact()._replace(slack={})
    lines = Lines.of(domain.low, domain.high)
    torch.manual_seed(2)
    rows = 3
    alpha = torch.rand(rows, relaxation.width, dtype=torch.float64).mul(0.8).add(0.1)
    added = torch.randn(rows, relaxation.width, dtype=torch.float64)
    wanted = torch.randn(rows, 3, dtype=torch.float64)

    def total(alpha: Tensor, added: Tensor) -> Tensor:
        run = relaxation.descend(domain, lines, alpha, relaxation.last, wanted, added)
        return run.bound.sum()

    with torch.enable_grad():
        given = alpha.clone().requires_grad_(), added.clone().requires_grad_()
        by_alpha, by_added = torch.autograd.grad(total(*given), given)
    run = relaxation.descend(domain, lines, alpha, relaxation.last, wanted, added)
    up = relaxation.ascend(run, lines, alpha, relaxation.last)
    assert torch.allclose(up.inputs, by_added)
    assert torch.allclose(up.slopes, by_alpha)


@pytest.mark.parametrize("threat", THREATS[1:], ids=str)
def test_minimum_over_ball_and_box_together(threat: Threat) -> None:
    """Never above what many projected points reach, and attained by its minimizer."""
    torch.manual_seed(4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 3)).requires_grad_(False)
    x = torch.rand(1, 1, 3, 3).round()  # at the edges of the box
    graph = trace(copy.deepcopy(net).double(), (1, 3, 3))
    relaxation = Relaxation(graph, threat)
    root = Root(Prover.of(trace(net, (1, 3, 3)), graph, threat), x)
    a = torch.randn(64, 1, 3, 3, dtype=torch.float64)
    least, minimizer = relaxation._least(_domain(root), a)
    assert torch.allclose((a * minimizer).flatten(1).sum(1), least, atol=1e-6)
    assert bool(threat.contains(minimizer.clamp(0, 1), x.expand(64, -1, -1, -1)).all())
    assert bool((minimizer > -1e-9).all() & (minimizer < 1 + 1e-9).all())
    wide = x.expand(4000, -1, -1, -1)
    z = threat.project(wide + 2 * torch.randn(wide.shape), wide).double()
    reached = torch.einsum("nchw,bchw->bn", z, a).amin(1)
    assert bool((least <= reached + 1e-6).all())


def _domain(root: Root) -> Domain:
    none = torch.zeros(1, 0, dtype=torch.float64)
    return Domain(none, none, *root.boxes[0], root.x, {})
