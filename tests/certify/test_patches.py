"""Windows instead of whole images, float32 instead of float64: the bounds are the same, or wider.

The plain pass of whole coefficients, biases and values, one sign after the other, is kept here as
the reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustkit.certify.activations import Activation
from robustkit.certify.affine import ConvOp
from robustkit.certify.crown import crown_margins
from robustkit.certify.graph import Graph, trace
from robustkit.certify.ibp import Box, input_box, intervals
from robustkit.certify.linear_bounds import bound, bound_units
from robustkit.certify.linearized import Linearized, Problem
from robustkit.certify.nonlinear import Nonlinear
from robustkit.certify.operations import Input, Join, MaxPool, Sum
from robustkit.certify.patches import one_hot
from robustkit.core.threat import Threat
from robustkit.errors import UsageError

SHAPE = (2, 12, 11)
THREATS = (Threat("linf", 0.04), Threat("l2", 0.5), Threat("l1", 1.5))


class Residual(nn.Module):
    """Batch normalization, a strided shortcut, a difference, a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.one = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.two = nn.Conv2d(8, 8, 3, padding=1)
        self.short = nn.Conv2d(6, 8, 1, stride=2)
        self.head, self.last = nn.Conv2d(8, 4, 3), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x - 0.5)).relu()
        x = (self.two(self.one(x).relu()) + self.short(x)).relu()
        logits: Tensor = self.last(torch.sigmoid(self.head(x) * 2).flatten(1))
        return logits


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, (3, 2), padding=(2, 1), dilation=(2, 1)),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(12),
        nn.ReLU(),
        nn.Linear(12, 5),
    )


class Gated(nn.Module):
    """Convolutions behind group normalization and a product; softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, 2, 1), nn.GroupNorm(2, 4, eps=0.5)
        self.two, self.pool = nn.Conv2d(4, 4, 3, padding=1), nn.AvgPool2d(2)
        self.one, self.last = nn.Conv2d(4, 4, 2), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nn.functional.silu(self.norm(self.stem(x)))
        x = self.pool(self.two(x) * torch.sigmoid(x) / 3)
        x = self.one(x).flatten(1)
        logits: Tensor = self.last(x * x.softmax(1))
        return logits


NETS: dict[str, Callable[[], nn.Module]] = {"residual": Residual, "plain": plain, "gated": Gated}


def network(name: str) -> tuple[nn.Module, Graph, Tensor, Tensor]:
    torch.manual_seed(2)
    net = NETS[name]()
    net(torch.rand(8, *SHAPE))
    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.weight.data.mul_(3)  # so that bounds leave margins open
    net = net.double().eval().requires_grad_(False)
    x = torch.rand(5, *SHAPE, dtype=torch.float64)
    return net, trace(net, SHAPE), x, net(x).argmax(1)


def problem_of(graph: Graph, x: Tensor, threat: Threat, rounding: bool = False) -> Problem:
    boxes = intervals(graph, input_box(x, threat), rounding=rounding, ball=(x, threat))
    return Problem(graph, boxes, x, threat, rounding, {})


def plain_bound(problem: Problem, index: int, wanted: Tensor) -> Tensor:
    """Bound A · (value of a node) as the paper does: biases, shifts, and the box at the end."""
    carried, total = {index: wanted}, torch.zeros(wanted.shape[:2], dtype=wanted.dtype)
    for at in range(index, 0, -1):
        op, inputs, _ = problem.graph.nodes[at]
        a = carried.pop(at, None)
        if a is None:
            continue
        if isinstance(op, Sum):
            parts = [a, op.sign * a]
        elif isinstance(op, Activation):
            lines = [line[:, None] for line in op.lines(*problem.boxes[inputs[0]])]
            up, down = a.clamp_min(0), a.clamp_max(0)
            total = total + (up * lines[1] + down * lines[3]).flatten(2).sum(2)
            parts = [up * lines[0] + down * lines[2]]
        elif isinstance(op, Nonlinear):
            parts, left = op.backward(a, [problem.boxes[source] for source in inputs])
            total = total + left
        else:
            assert not isinstance(op, (Input, Join, MaxPool))
            total, parts = total + op.offset(a), [op.pull(a)]
        for source, part in zip(inputs, parts, strict=True):
            carried[source] = carried[source] + part if source in carried else part
    rows, (low, high) = carried[0].flatten(2), problem.boxes[0]

    def at_point(x: Tensor) -> Tensor:
        return (rows @ x.flatten(1)[..., None])[..., 0]

    box = at_point((low + high) / 2) - (rows.abs() @ (high - low).flatten(1)[..., None])[..., 0] / 2
    dual = {"linf": 1, "l2": 2, "l1": torch.inf}[problem.threat.norm]
    ball = at_point(problem.x) - problem.threat.eps * rows.norm(dual, dim=2)
    return total + torch.maximum(box, ball)


def bounds_of(problem: Problem, index: int, units: Tensor, dtype: torch.dtype) -> Box:
    """Bound units [b, s] of each point, counted over the features of the node."""
    points = torch.arange(len(units))
    if not problem.local(index):
        return bound_units(Linearized(problem, dtype), index, units, points)[0]
    positions = math.prod(problem.graph.nodes[index].shape[1:])
    groups = (points[:, None] * positions + units % positions).flatten()
    channels = (units // positions).flatten()[:, None]
    found, _ = bound_units(Linearized(problem, dtype), index, channels, groups)
    return Box(*(part.view(units.shape) for part in found))


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
@pytest.mark.parametrize("name", NETS)
def test_windows_give_the_bounds_of_whole_images(name: str, threat: Threat) -> None:
    _, graph, x, _ = network(name)
    problem = problem_of(graph, x, threat)
    for index, node in enumerate(graph.nodes[1:], 1):
        size = int(torch.tensor(node.shape).prod())
        units = torch.randint(size, (len(x), 7), generator=torch.Generator().manual_seed(index))
        found = bounds_of(problem, index, units, torch.float64)
        rows = nn.functional.one_hot(units, size).double().view(len(x), 7, *node.shape)
        torch.testing.assert_close(found.low, plain_bound(problem, index, rows))
        torch.testing.assert_close(found.high, -plain_bound(problem, index, -rows))
        torch.testing.assert_close(found.low, bound(problem, index, rows))


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
@pytest.mark.parametrize("name", NETS)
def test_float32_is_wider_by_a_little(name: str, threat: Threat) -> None:
    _, graph, x, _ = network(name)
    problem = problem_of(graph, x, threat, rounding=True)
    for index, node in enumerate(graph.nodes[1:], 1):
        units = torch.arange(int(torch.tensor(node.shape).prod()))[:40].expand(len(x), -1)
        exact = bounds_of(problem, index, units, torch.float64)
        single = bounds_of(problem, index, units, torch.float32)
        assert bool((single.low <= exact.low).all())
        assert bool((single.high >= exact.high).all())
        torch.testing.assert_close(single.low, exact.low, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(single.high, exact.high, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("iterations", [0, 6])
@pytest.mark.parametrize("rounding", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_bounds_do_not_depend_on_the_batch(name: str, rounding: bool, iterations: int) -> None:
    _, graph, x, y = network(name)

    def margins(x: Tensor, y: Tensor) -> Tensor:
        return crown_margins(
            graph, x, y, THREATS[0], intermediate="crown", rounding=rounding, iterations=iterations
        )

    together = margins(x, y)
    assert bool((together < 0).any())
    order = torch.tensor([3, 0, 4, 2, 1])
    apart = torch.cat([margins(x[i : i + 1], y[i : i + 1]) for i in range(len(x))])
    # Float32 adds up in another order in another batch, by less than its slack.
    close = 1e-4 if rounding or iterations else 1e-9
    torch.testing.assert_close(together, apart, rtol=close, atol=close)
    torch.testing.assert_close(together[order], margins(x[order], y[order]), rtol=close, atol=close)


@pytest.mark.parametrize("name", NETS)
def test_tightened_boxes_hold_every_value(name: str) -> None:
    net, graph, x, y = network(name)
    threat = THREATS[0]
    boxes = intervals(graph, input_box(x, threat), rounding=True)
    lower = crown_margins(graph, x, y, threat, intermediate="crown", rounding=True, boxes=boxes)
    draw = torch.Generator().manual_seed(0)
    for _ in range(100):
        step = torch.empty_like(x).uniform_(-1, 1, generator=draw).sign() * threat.eps
        logits = net((x + step).clamp(0, 1))
        assert bool((logits.gather(1, y[:, None]) - logits >= lower).all())


def test_the_phases_of_a_stride_give_the_transposed_convolution() -> None:
    layer = nn.Conv2d(9, 4, (4, 2), stride=2, padding=(1, 0)).double()
    for shape in ((9, 12, 11), (9, 13, 12)):
        op, x = ConvOp(layer, shape), torch.rand(1, *shape, dtype=torch.float64, requires_grad=True)
        out = layer(x)
        a = torch.rand(1, 3, *out.shape[1:], dtype=torch.float64)
        rows = [torch.autograd.grad(out, x, a[:, i], retain_graph=True)[0] for i in range(3)]
        assert op._by_phases(a.dtype)
        torch.testing.assert_close(op.pull(a), torch.stack(rows, 1))


@pytest.mark.parametrize("dilation", [1, 2, 3, 4])
@pytest.mark.parametrize("stride", [1, 2, 4, 6])
def test_the_summands_of_a_coefficient_are_counted(stride: int, dilation: int) -> None:
    layer = nn.Conv2d(2, 4, (3, 5), stride=stride, dilation=dilation, groups=2).double()
    nn.init.ones_(layer.weight)
    shape = (2, 40, 40)
    op = ConvOp(layer, shape)
    rows = torch.ones(1, 1, *layer(torch.zeros(1, *shape).double()).shape[1:], dtype=torch.float64)
    assert op.back_terms == int(op.pull(rows).max())


def test_windows_over_the_edge_see_zeros() -> None:
    zero = torch.zeros(2, dtype=torch.long)
    place = torch.tensor([0, 3])
    rows = one_hot(zero[:, None], zero, place, (1, 2, 2), torch.float64, {})
    layer = nn.Conv2d(1, 1, 3, stride=2, padding=1).double()
    seen = rows.pull(ConvOp(layer, (1, 4, 4))).windows(torch.ones(1, 1, 4, 4).double())
    assert seen.sum((1, 2, 3)).tolist() == [4.0, 9.0]


def test_a_box_without_the_point_is_refused() -> None:
    _, graph, x, y = network("plain")
    for threat in (Threat("linf", 0.1, lower=0.0, upper=0.5), Threat("linf", 0.1, 2.0, 3.0)):
        with pytest.raises(UsageError, match="in the box"):
            crown_margins(graph, x, y, threat)
    assert isinstance(input_box(x, THREATS[0]), Box)
