"""Bounds hold every value, are exact where they can be, and say what they cannot read."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustkit.certify import alpha_crown
from robustkit.certify.activations import KNOWN, Activation, leaky
from robustkit.certify.crown import crown_margins
from robustkit.certify.graph import clean_statistics, trace
from robustkit.certify.ibp import input_box, intervals, lower_margins, margins_of
from robustkit.certify.linear_bounds import bound
from robustkit.certify.linearized import Problem
from robustkit.core.threat import Threat
from robustkit.errors import UsageError
from robustkit.models.architectures import cnn3, cnn7

THREATS = [Threat("linf", 0.03), Threat("l2", 0.4), Threat("l1", 1.5)]


class Branches(nn.Module):
    """Residual sum, concatenation, both poolings, batch normalization, constants."""

    def __init__(self, activation: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.hidden = nn.Linear(72, 6)
        self.last = nn.Linear(6, 4)
        self.activation = activation
        self.norm.running_mean = torch.linspace(-0.2, 0.2, 4)
        self.norm.running_var = torch.linspace(0.3, 2, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.first(x - 0.5))
        b = F.silu(self.norm(self.second(a))) + a
        c = torch.cat([F.max_pool2d(b, 2), F.avg_pool2d(b, 2)], 1).flatten(1)
        logits: Tensor = self.last(self.activation(self.hidden(c))) * 2 - 1
        return logits


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return build().double().eval().requires_grad_(False)


NETS: dict[str, Callable[[], nn.Module]] = {
    "cnn3": lambda: cnn3((1, 6, 6), 4, 4),
    "branches": Branches,
    "batch norms": lambda: cnn7((1, 6, 6), 4, 2),
}


def points(shape: tuple[int, ...] = (1, 6, 6)) -> Tensor:
    return torch.rand(5, *shape, generator=torch.Generator().manual_seed(0)).double()


def samples(x: Tensor, threat: Threat, count: int) -> Tensor:
    """Random points of the ball, on its surface, the corners of the cube among them."""
    draw = torch.Generator().manual_seed(1)
    noise = torch.randn(count, *x.shape, generator=draw).double().flatten(2)
    if threat.norm == "linf":
        noise = noise.sign() * torch.rand(count, 1, 1, generator=draw).round()
    elif threat.norm == "l2":
        noise = noise / noise.norm(dim=2, keepdim=True)
    else:
        place = noise.abs().argmax(2, keepdim=True)
        noise = torch.zeros_like(noise).scatter(2, place, noise.gather(2, place).sign())
    return (x + threat.eps * noise.view(count, *x.shape)).clamp(0, 1)


def margins(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None]) - logits


METHODS: dict[str, Callable[..., Tensor]] = {
    "ibp": lambda g, x, y, t, r: margins_of(
        g, intervals(g, input_box(x, t), rounding=r, ball=(x, t)), y, rounding=r
    ),
    "crown-ibp": lambda g, x, y, t, r: crown_margins(g, x, y, t, rounding=r),
    "crown": lambda g, x, y, t, r: crown_margins(g, x, y, t, intermediate="crown", rounding=r),
    "alpha": lambda g, x, y, t, r: crown_margins(
        g, x, y, t, intermediate="crown", rounding=r, iterations=10
    ),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
@pytest.mark.parametrize("name", NETS)
def test_bounds_hold_every_sample(name: str, threat: Threat, method: str) -> None:
    net, x = seeded(NETS[name]), points()
    y = net(x).argmax(1)
    graph = trace(net, (1, 6, 6))
    lower = METHODS[method](graph, x, y, threat, True)
    single = copy.deepcopy(net).float()
    z, labels = samples(x, threat, 200).flatten(0, 1), y.repeat(200)
    for logits in (net(z), single(z.float()).double()):
        assert bool((margins(logits, labels).unflatten(0, (200, -1)) >= lower).all())
    if method != "alpha":  # whose search may end at other slopes: the next test
        assert bool((METHODS[method](graph, x, y, threat, False) >= lower).all())


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
@pytest.mark.parametrize("name", NETS)
def test_rounding_widens_at_the_slopes_that_the_search_found(
    name: str, threat: Threat, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = seeded(NETS[name]), points()
    with_it, without = list[Tensor](), list[Tensor]()

    def twice(problem: Problem, *rest: Any) -> Tensor:
        found = bound(problem, *rest)
        if problem.rounding:
            with_it.append(found)
            without.append(bound(problem._replace(rounding=False), *rest))
        return found

    monkeypatch.setattr(alpha_crown, "bound", twice)
    y = net(x).argmin(1)  # every margin is open: the search raises no other
    METHODS["alpha"](trace(net, (1, 6, 6)), x, y, threat, True)
    assert bool((torch.cat(without) > torch.cat(with_it)).all())


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
@pytest.mark.parametrize("name", NETS)
def test_each_method_is_at_least_as_tight_as_the_last(name: str, threat: Threat) -> None:
    net, x = seeded(NETS[name]), points()
    y = net(x).argmax(1)
    graph = trace(net, (1, 6, 6))
    found = {m: f(graph, x, y, threat, False).sum() for m, f in METHODS.items()}
    assert found["crown"] >= found["crown-ibp"] - 1e-9
    assert found["alpha"] >= found["crown"] - 1e-9


@pytest.mark.parametrize("name", NETS)
def test_every_node_holds_its_values(name: str) -> None:
    net, x, threat = seeded(NETS[name]), points(), THREATS[0]
    graph = trace(net, (1, 6, 6))
    boxes = intervals(graph, input_box(x, threat))
    exact = intervals(graph, type(boxes[0])(x, x))
    for (low, high), (value, same) in zip(boxes, exact, strict=True):
        assert bool((low <= value + 1e-9).all())
        assert bool((value <= high + 1e-9).all())
        torch.testing.assert_close(value, same)
    torch.testing.assert_close(exact[-1].low, net(x))


def test_boxes_nest_with_eps() -> None:
    net, x = seeded(NETS["branches"]), points()
    graph = trace(net, (1, 6, 6))
    inner, outer = (intervals(graph, input_box(x, Threat("linf", e))) for e in (0.02, 0.05))
    for a, b in zip(inner, outer, strict=True):
        assert bool((b.low <= a.low).all())
        assert bool((a.high <= b.high).all())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_bounds_of_a_linear_model_are_exact(norm: str, method: str) -> None:
    net = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 4)))
    x, threat = 0.3 + 0.4 * points(), Threat(norm, 0.1)  # type: ignore[arg-type]
    y = net(x).argmax(1)
    layer = list(net.children())[1]
    assert isinstance(layer, nn.Linear)
    rows = layer.weight[y][:, None] - layer.weight[None]
    dual = rows.abs().sum(2) if norm == "linf" else rows.norm(dim=2)
    exact = margins(net(x), y) - threat.eps * dual
    lower = METHODS[method](trace(net, (1, 6, 6)), x, y, threat, False)
    if method == "ibp" and norm == "l2":  # the elided layer sees the box alone
        assert bool((lower <= exact + 1e-9).all())
    else:
        torch.testing.assert_close(lower, exact)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_first_layer_is_bounded_by_the_dual_norm_of_its_rows(norm: Literal["l2", "l1"]) -> None:
    net = seeded(lambda: nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten()))
    x, threat = 0.4 + 0.2 * points(), Threat(norm, 0.1)
    graph = trace(net, (1, 6, 6))
    low, high = intervals(graph, input_box(x, threat), ball=(x, threat))[1]
    conv = next(net.children())
    assert isinstance(conv, nn.Conv2d)
    inner = (high - low)[:, :, 1:-1, 1:-1] / 2
    rows = conv.weight.flatten(1)
    exact = threat.eps * (rows.norm(dim=1) if norm == "l2" else rows.abs().amax(1))
    torch.testing.assert_close(inner, exact.view(1, -1, 1, 1).expand_as(inner))


@pytest.mark.parametrize("activation", [*KNOWN.values(), leaky(0.1)], ids=lambda a: a.name)
def test_lines_enclose_the_activation(activation: Activation) -> None:
    draw = torch.Generator().manual_seed(0)
    low = 8 * torch.rand(500, generator=draw).double() - 5
    high = low + 6 * torch.rand(500, generator=draw).double() ** 3
    lines = activation.lines(low, high)
    bottom, top = activation.interval(low, high)
    for share in torch.linspace(0, 1, 41).double():
        x = torch.minimum(low + share * (high - low), high)
        value = activation.function(x)
        assert bool((lines.low_slope * x + lines.low_shift <= value + 1e-9).all())
        assert bool((lines.high_slope * x + lines.high_shift >= value - 1e-9).all())
        assert bool((bottom <= value + 1e-12).all())
        assert bool((value <= top + 1e-12).all())


def test_overlapping_max_pools_are_sound() -> None:
    net = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.MaxPool2d(3, 1, 1), nn.Flatten(), nn.Linear(48, 4)
        )
    )
    x, threat = points(), Threat("linf", 0.05)
    y = net(x).argmax(1)
    lower = crown_margins(trace(net, (1, 6, 6)), x, y, threat, intermediate="crown")
    for z in samples(x, threat, 200):
        assert bool((margins(net(z), y) >= lower - 1e-12).all())


def test_gradients_reach_the_weights() -> None:
    net = cnn3((1, 6, 6), 4, 4)
    x, y = points().float(), torch.tensor([0, 1, 2, 3, 0])
    graph, threat = trace(net, (1, 6, 6)), Threat("linf", 0.05)
    boxes = intervals(graph, input_box(x, threat))
    for lower in (margins_of(graph, boxes, y), crown_margins(graph, x, y, threat, boxes=boxes)):
        found = torch.autograd.grad(lower.sum(), list(net.parameters()), retain_graph=True)
        assert all(bool(g.isfinite().all()) and bool(g.any()) for g in found[:-1])


def test_bounds_follow_the_clean_batch_in_training() -> None:
    net = cnn7((1, 6, 6), 4, 2).train()
    x, y = points().float(), torch.tensor([0, 1, 2, 3, 0])
    graph = trace(net, (1, 6, 6))
    assert net.training
    counted = [count for key, count in net.state_dict().items() if key.endswith("batches_tracked")]
    assert [int(count) for count in counted] == [0] * 6  # tracing leaves the statistics alone
    with clean_statistics(net):
        logits = net(x)
        lower = lower_margins(graph, input_box(x, Threat("linf", 1e-9)), y)
    torch.testing.assert_close(lower, margins(logits, y), rtol=1e-4, atol=1e-5)
    outside = lower_margins(graph, input_box(x, Threat("linf", 1e-9)), y)
    assert not torch.allclose(outside, lower)


def test_unknown_operations_are_named() -> None:
    with pytest.raises(UsageError, match="Hardswish"):
        trace(nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.Hardswish()), (1, 6, 6))


def test_branches_on_values_are_refused() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) if x.sum() > 0 else -x.flatten(1)

    with pytest.raises(UsageError, match=r"torch\.fx cannot read it"):
        trace(Branching(), (1, 6, 6))
