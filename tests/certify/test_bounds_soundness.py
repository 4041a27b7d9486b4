"""Bounds hold: against samples and corners, closed forms, float32, and networks to refuse."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustkit.certify.activations import Activation
from robustkit.certify.crown import crown_margins
from robustkit.certify.graph import Graph, clean_statistics, trace
from robustkit.certify.ibp import Box, input_box, intervals, lower_margins, margins_of
from robustkit.certify.tightness import tightness
from robustkit.core.threat import Threat
from robustkit.errors import UsageError
from robustkit.models.architectures import Normalize

SHAPE = (3, 6, 6)
Y = torch.tensor([0, 1, 2, 3])


class Lambda(nn.Module):
    """A hidden layer of eight, any function, and three logits."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(6, 8), nn.Linear(8, 3), function

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.function(self.first(x)))
        return logits


class Branches(nn.Module):
    """Residual sum, difference, concatenation, constants, and a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.normalize = Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.norm, self.last = nn.BatchNorm2d(4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        one = self.norm(self.one(self.normalize(x))).relu()
        two = self.two(one)
        two += one
        both = torch.cat([F.relu(two), 1.5 - F.relu(-two - one)], dim=1)
        logits: Tensor = self.last(both.mean((2, 3)) * 2)
        return logits


def conv(activation: nn.Module, pool: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False),
        activation,
        nn.Conv2d(5, 6, 2, dilation=1),
        nn.BatchNorm2d(6),
        pool,
        activation,
        nn.Flatten(),
        nn.LazyLinear(6),
        activation,
        nn.Linear(6, 4),
    )


ACTIVATIONS = (
    nn.ReLU(), nn.LeakyReLU(0.2), nn.Sigmoid(), nn.Tanh(), nn.ELU(), nn.Softplus(), nn.SiLU(),
    nn.GELU(),
)  # fmt: skip
POOLS = (
    nn.MaxPool2d(2), nn.MaxPool2d(2, 1), nn.MaxPool2d(2, stride=1, padding=1), nn.AvgPool2d(2),
    nn.AdaptiveAvgPool2d(1), nn.MaxPool2d(1, dilation=2),
)  # fmt: skip
NETS: dict[str, Callable[[], nn.Module]] = {
    "branches": Branches,
    **{str(activation): partial(conv, activation, nn.Identity()) for activation in ACTIVATIONS},
    **{str(pool): partial(conv, nn.ReLU(), pool) for pool in POOLS},
}


def network(name: str) -> tuple[nn.Module, Graph, Tensor]:
    """Wide weights and running statistics that are not the initial ones, in float64."""
    torch.manual_seed(3)
    net = NETS[name]()
    net(torch.rand(8, *SHAPE))
    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.weight.data.mul_(2)
    net = net.double().eval().requires_grad_(False)
    return net, trace(net, SHAPE), torch.rand(4, *SHAPE, dtype=torch.float64)


def worst(net: nn.Module, x: Tensor, threat: Threat, rounds: int = 40) -> Tensor:
    """Return the least margins [b, k] that samples, corners and gradient steps find."""
    single = [1] * (x.ndim - 1)
    index, y = torch.arange(rounds).repeat_interleave(len(x)), Y.repeat(rounds)[:, None]
    x = x.repeat(rounds, *single)
    corner = (torch.rand_like(x) * 2 - 1).sign() * (index % 2).view(-1, *single)
    z = threat.project(x + (corner + torch.randn_like(x)) * threat.eps, x).requires_grad_(True)
    logits = net(z)
    j = (index % logits.shape[1])[:, None]
    (gradient,) = torch.autograd.grad((logits.gather(1, y) - logits.gather(1, j)).sum(), z)
    step = threat.project(x - 10 * threat.eps * threat.steepest(gradient), x)
    answers = (net(point) for point in (z.detach(), step))
    margins = torch.stack([answer.gather(1, y) - answer for answer in answers])
    least: Tensor = margins.unflatten(1, (rounds, -1)).amin((0, 1))
    return least


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", NETS)
def test_bounds_hold(name: str, norm: str) -> None:
    net, graph, x = network(name)
    threat = Threat.parse(f"{norm}:{ {'linf': 0.05, 'l2': 0.4, 'l1': 1.5}[norm] }")
    attacked = worst(net, x, threat) + 1e-9
    boxes = intervals(graph, input_box(x, threat), ball=(x, threat))
    assert (margins_of(graph, boxes, Y) <= attacked).all()
    for z in (threat.project(x + torch.randn_like(x) * threat.eps, x) for _ in range(20)):
        for value, box in zip(graph.values(z), boxes, strict=True):
            assert (box.low - 1e-9 <= value).all() and (value <= box.high + 1e-9).all()
    intermediate: tuple[Literal["ibp", "crown"], ...] = ("ibp", "crown")
    for how in intermediate:
        lower = crown_margins(graph, x, Y, threat, intermediate=how)
        raised = crown_margins(graph, x, Y, threat, intermediate=how, iterations=5)
        assert (raised <= attacked).all()
        assert (raised >= lower - 1e-12).all()
        assert (raised.gather(1, Y[:, None]) == 0).all()


@pytest.mark.parametrize("eps", [0.01, 0.3, 3.0])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_lines_and_intervals_enclose_an_activation(activation: nn.Module, eps: float) -> None:
    net = nn.Sequential(nn.Identity(), activation, nn.Linear(9, 2)).double()
    op = trace(net, (9,)).nodes[2].op
    assert isinstance(op, Activation)
    center = torch.tensor([-25.0, -6, -1.3, -0.75, -0.1, 0.0, 0.2, 2, 19.9], dtype=torch.float64)
    low, high = center - eps, center + 0.7 * eps
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    x = low + t * (high - low)
    value, lines = activation(x), op.lines(low, high)
    below, above = op.interval(low, high)
    assert (below <= value + 1e-12).all() and (value <= above + 1e-12).all()
    assert (lines.low_slope * x + lines.low_shift <= value + 1e-10).all()
    assert (value <= lines.high_slope * x + lines.high_shift + 1e-10).all()


@pytest.mark.parametrize("name", ["branches", "GELU(approximate='none')", "ELU(alpha=1.0)"])
def test_rounding_holds_the_values_of_float32(name: str) -> None:
    net, graph, x = network(name)
    threat = Threat("linf", 1e-9)
    box = input_box(x.float().double(), threat)
    plain, wide = intervals(graph, box), intervals(graph, box, rounding=True)
    single = trace(net.float(), SHAPE).values(x.float())
    net.double()
    assert (wide[-1].low < plain[-1].low).all() and (wide[-1].high > plain[-1].high).all()
    for value, bound in zip(single, wide, strict=True):
        assert (bound.low <= value.double()).all() and (value.double() <= bound.high).all()
    exact = crown_margins(graph, x, Y, threat)
    assert (crown_margins(graph, x, Y, threat, rounding=True) <= exact).all()


@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_rounding_of_batch_norm_does_not_cancel(mean: float) -> None:
    layer = nn.BatchNorm1d(4)
    net = nn.Sequential(layer).eval()
    assert layer.running_mean is not None
    layer.running_mean.fill_(mean)
    layer.bias.data.fill_(mean)
    x = torch.rand(1000, 4)
    answer = net(x).double()
    wide = intervals(trace(net.double(), (4,)), Box(x.double(), x.double()), rounding=True)[-1]
    assert (wide.low <= answer).all() and (answer <= wide.high).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_linear_layer_is_exact(norm: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 4)
    net = nn.Sequential(Normalize((0.5,), (0.25,)), nn.Flatten(), layer).double()
    x = 0.4 + 0.2 * torch.rand(4, 1, 4, 4, dtype=torch.float64)
    threat, weight = Threat.parse(f"{norm}:0.1"), layer.weight / 0.25
    rows = weight[Y][:, None] - weight[None]
    dual = rows.abs().sum(2) if norm == "linf" else rows.norm(dim=2)
    logits = net(x)
    closed = logits.gather(1, Y[:, None]) - logits - 0.1 * dual
    graph = trace(net, (1, 4, 4))
    assert torch.allclose(crown_margins(graph, x, Y, threat), closed)
    if norm == "linf":
        assert torch.allclose(lower_margins(graph, input_box(x, threat), Y), closed)
    else:
        box = intervals(graph, input_box(x, threat), ball=(x, threat))[-1]
        assert torch.allclose(box.low, logits - 0.1 * weight.norm(dim=1))


def test_boxes_nest_and_crown_refines() -> None:
    _, graph, x = network("ReLU()")
    small, large = (intervals(graph, input_box(x, Threat("linf", e))) for e in (0.01, 0.03))
    for a, b in zip(small, large, strict=True):
        assert (a.low >= b.low - 1e-12).all() and (a.high <= b.high + 1e-12).all()
    threat = Threat("linf", 0.02)
    by_boxes = lower_margins(graph, input_box(x, threat), Y).sum()
    once = crown_margins(graph, x, Y, threat, intermediate="ibp").sum()
    refined = crown_margins(graph, x, Y, threat, intermediate="crown").sum()
    assert by_boxes < once < refined


def test_gradients_reach_every_weight_and_alpha_leaves_none() -> None:
    torch.manual_seed(0)
    net = Branches().double()
    x, threat = torch.rand(4, *SHAPE, dtype=torch.float64), Threat("linf", 0.02)
    graph = trace(net, SHAPE)
    assert net.training
    with clean_statistics(net):
        net(x)
        first = lower_margins(graph, input_box(x, threat), Y)
        exact = lower_margins(graph, Box(x, x), Y)
        (first.sum() + crown_margins(graph, x, Y, threat).sum()).backward()
        logits = net(x)
        assert torch.allclose(exact, logits.gather(1, Y[:, None]) - logits)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    net.zero_grad(set_to_none=True)
    crown_margins(graph, x, Y, threat, iterations=2)
    assert all(p.grad is None for p in net.parameters())
    assert not torch.allclose(lower_margins(graph, Box(x, x), Y), exact)


def test_dilated_max_pools_hold() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.MaxPool2d(2, dilation=2), nn.Flatten())
    net = net.append(nn.Linear(18, 4)).double().requires_grad_(False)
    x, threat = torch.rand(4, 1, 8, 8, dtype=torch.float64), Threat("linf", 0.02)
    lower = crown_margins(trace(net, (1, 8, 8)), x, Y, threat)
    assert (lower <= worst(net, x, threat) + 1e-9).all()


def test_statistics_nest() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    with clean_statistics(net):
        net(torch.rand(5, 4))
        with clean_statistics(net):
            net(torch.rand(5, 4))


@pytest.mark.parametrize(
    "function",
    [
        lambda h: h * torch.exp(h),
        lambda h: torch.cat([part.relu() for part in h.chunk(2, 1)], 1),
        lambda h: torch.add(h, h.relu(), alpha=3),
        lambda h: h + h.max(1, keepdim=True)[0],
        lambda h: h.relu_() + h,
        lambda h: F.elu(h, 3.0),
        lambda h: F.gelu(h, approximate="tanh"),
        lambda h: torch.div(h, 0.3, rounding_mode="floor"),
        lambda h: h - h.mean(0, keepdim=True),
        lambda h: h / h.size(0),
        lambda h: 1 / (h + 20),
        lambda h: h.sin(),
        lambda h: h if h.sum() > 0 else -h,
    ],
)
def test_what_has_no_bounds_is_refused(function: Callable[[Tensor], Tensor]) -> None:
    net = Lambda(function)
    with pytest.raises(UsageError, match="no bounds for Lambda"):
        trace(net, (6,))
    assert all(m.training for m in net.modules())


def test_functional_forms_are_read() -> None:
    def function(h: Tensor) -> Tensor:
        h = F.leaky_relu(h, 0.3) + 1
        h /= 2.0
        return F.dropout(h.view(h.size(0), -1), 0.5, False)

    net, x = Lambda(function).eval(), torch.rand(5, 6)
    assert torch.allclose(trace(net, (6,)).values(x)[-1], net(x))


def test_tightness() -> None:
    torch.manual_seed(0)
    x = 0.3 + 0.4 * torch.rand(4, 6, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0])
    one = nn.Sequential(nn.Linear(6, 3)).double()
    assert torch.allclose(tightness(one, x, 0.1, y), torch.ones(4, dtype=torch.float64))
    first, last = nn.Linear(6, 8), nn.Linear(8, 3)
    two = nn.Sequential(first, last).double()
    rows = last.weight[y][:, None] - last.weight[None]
    exact, bound = (rows @ first.weight).abs().sum(2), (rows.abs() @ first.weight.abs()).sum(2)
    closed = torch.where(bound > 0, exact / bound.clamp_min(1e-30), 0).sum(1) / 2
    assert torch.allclose(tightness(two, x, 0.1, y), closed)
    _, graph, images = network("branches")
    value = tightness(graph, images, 0.05, Y)
    assert ((value > 0) & (value < 1)).all()
    with pytest.raises(UsageError, match="ReLU"):
        tightness(nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 3)).double(), x, 0.1, y)
