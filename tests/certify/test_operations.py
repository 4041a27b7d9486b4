"""Every way to write an operation: read, sound on samples, and no wider than its own intervals."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustkit.certify.activations import Activation
from robustkit.certify.agreement import KeepsDouble
from robustkit.certify.certifier import build_certifier
from robustkit.certify.crown import crown_margins
from robustkit.certify.graph import trace
from robustkit.certify.ibp import input_box, intervals, margins_of
from robustkit.core.threat import Threat
from robustkit.errors import UsageError

SHAPE = (2, 6, 6)
THREAT = Threat("linf", 0.05)
WEIGHT = torch.linspace(-1, 1, 4 * 4 * 3 * 3).double().view(4, 4, 3, 3).sin()
MEAN, VAR = torch.linspace(-0.3, 0.3, 4).double(), torch.linspace(0.5, 2, 4).double()
ROWS = torch.linspace(-1, 1, 36 * 9).double().view(9, 36).cos() / 6


class Around(nn.Module):
    """A convolution, any function of [b, 4, 6, 6], ReLU, and three logits."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.function = nn.Conv2d(2, 4, 3, padding=1), function
        self.last = nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(torch.relu(self.function(self.first(x))).flatten(1))
        return logits


def halves(x: Tensor) -> Tensor:
    one, two = x.chunk(2, dim=1)
    return torch.cat([two, one.relu()], dim=1)


def shuffled(x: Tensor) -> Tensor:
    b, c, h, w = x.size()
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


def normalized(x: Tensor) -> Tensor:
    return F.batch_norm(x, MEAN, VAR, VAR, MEAN)


class Token(nn.Module):
    """A learned column before the values."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(VAR.view(1, 4, 1, 1) - 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(x.shape[0], -1, 6, 1), x[..., :4]], -1)


class Attention(nn.Module):
    """Self-attention over the rows of a channel, its weights not used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.MultiheadAttention(6, 2, batch_first=True).double()

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, 0]
        found, _ = self.layer(x, x, x)
        result: Tensor = found + x
        return result


READ: dict[str, Callable[[Tensor], Tensor]] = {
    "F.linear": lambda x: F.linear(x.flatten(2), ROWS),
    "F.conv2d": lambda x: F.conv2d(x, WEIGHT, MEAN, 2, 1),
    "F.batch_norm": normalized,
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: torch.transpose(x, 1, 3),
    "slice": lambda x: x[:, 1:3, ::2],
    "last axis": lambda x: x[..., -1],
    "split": lambda x: torch.split(x, [1, 3], dim=1)[1],
    "chunk": halves,
    "channel shuffle": shuffled,
    "squeeze": lambda x: x[:, :1].squeeze(1).unsqueeze(2),
    "sum": lambda x: x.sum((2, 3)),
    "clamp": lambda x: x.clamp(-0.2, 0.3),
    "clamp_min": lambda x: torch.clamp(x, min=-0.2),
    "clamp_max": lambda x: x.clamp(max=0.1),
    "relu6": lambda x: F.relu6(20 * x),
    "hardtanh": lambda x: F.hardtanh(3 * x),
    "zero padding": lambda x: F.pad(x, (1, 2, 0, 1)),
    "reflection": lambda x: F.pad(x, (1, 1, 2, 2), mode="reflect"),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, (12, 12), mode="bilinear", align_corners=False),
    "to": lambda x: x.to(torch.float64).clone().to(x),
    "F.conv_transpose2d": lambda x: F.conv_transpose2d(x, WEIGHT, MEAN, 2, 1, 1),
    "broadcast add": lambda x: x + x.mean((2, 3), keepdim=True) - MEAN[:, None, None],
    "broadcast constants": lambda x: (x[:, :1] * VAR[:, None, None] - MEAN[:, None, None]) / 2,
    "squeeze and excitation": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "product": lambda x: x[:, :2] * x[:, 2:],
    "square": lambda x: x * x + x.pow(2) - x**2 + torch.square(x),
    "cat with constants": Token(),
    "softmax": lambda x: 4 * F.softmax(3 * x.flatten(2), dim=1),
    "log_softmax": lambda x: torch.log_softmax(x.flatten(2), -1) + 3.5,
    "F.layer_norm": lambda x: F.layer_norm(x, (6,), torch.linspace(0.5, 2, 6).double()),
    "float": lambda x: x.float(),
    "matmul": lambda x: x[:, :2] @ x[:, 2:].transpose(2, 3),
    "attention": lambda x: F.scaled_dot_product_attention(x[:, :2], x[:, 1:3], x[:, 2:]),
    "MultiheadAttention": Attention(),
    "LayerNorm": nn.LayerNorm((6, 6)).double(),
    "GroupNorm": nn.GroupNorm(2, 4).double(),
    "InstanceNorm2d": nn.InstanceNorm2d(4),
    "ConvTranspose2d": nn.ConvTranspose2d(4, 2, 3, 2, dilation=2, groups=2).double(),
    "silu": F.silu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "ReLU6": nn.ReLU6(),
    "Hardtanh": nn.Hardtanh(-0.5, 0.25),
    "ReflectionPad2d": nn.ReflectionPad2d(1),
    "Upsample": nn.Upsample(scale_factor=2),
    "same": nn.Conv2d(4, 3, 3, padding="same", dilation=2).double(),
    "circular": nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular", stride=2).double(),
}


def network(function: Callable[[Tensor], Tensor]) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(1)
    net = Around(function).double()
    x = torch.rand(4, *SHAPE, dtype=torch.float64)
    with KeepsDouble():  # type: ignore[no-untyped-call]
        net(x)
    net.last.weight.data.mul_(2)
    with KeepsDouble():  # type: ignore[no-untyped-call]
        return net.eval().requires_grad_(False), x, net(x).argmax(1)


@pytest.mark.parametrize("name", READ)
def test_an_operation_is_bounded(name: str) -> None:
    net, x, y = network(READ[name])
    graph = trace(net, SHAPE)
    boxes = intervals(graph, input_box(x, THREAT), rounding=True)
    by_boxes = margins_of(graph, boxes, y, rounding=True)
    lower = crown_margins(graph, x, y, THREAT, intermediate="crown", rounding=True)
    raised = crown_margins(graph, x, y, THREAT, intermediate="crown", rounding=True, iterations=4)
    assert bool((raised >= lower).all())
    assert bool((lower.sum(1) >= by_boxes.sum(1)).all())
    draw = torch.Generator().manual_seed(0)
    step = torch.empty(60, *x.shape, dtype=x.dtype).uniform_(-1, 1, generator=draw)
    step[::2].sign_()
    z = (x + THREAT.eps * step).clamp(0, 1).flatten(0, 1)
    values, y = graph.values(z), y.repeat(60)[:, None]  # `trace` compared them with the network
    margins = values[-1].gather(1, y) - values[-1]
    assert bool((margins.unflatten(0, (60, -1)) >= raised).all())
    for value, (low, high) in zip(values, boxes, strict=True):
        value = value.unflatten(0, (60, -1))
        assert bool(((low <= value) & (value <= high)).all())


@pytest.mark.parametrize("name", ["silu", "gelu", "sigmoid", "tanh"])
@pytest.mark.parametrize("width", [0.5, 2.0, 6.0])
def test_smooth_lines_leave_less_than_constants(name: str, width: float) -> None:
    net, _, _ = network(READ[name])
    op = next(n.op for n in trace(net, SHAPE).nodes if getattr(n.op, "name", "") == name)
    assert isinstance(op, Activation)
    low = torch.linspace(-5, 3, 100, dtype=torch.float64)
    lines, (least, most) = op.lines(low, low + width), op.interval(low, low + width)
    middle = low + width / 2
    below, above = (
        lines.low_slope * middle + lines.low_shift,
        (lines.high_slope * middle + lines.high_shift),
    )
    assert bool((above - below <= most - least + 1e-12).all())
    assert float((above - below).mean()) < 0.75 * float((most - least).mean())


class Narrow(nn.Module):
    """A network that leaves float32 in its forward pass."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.layer = kind, nn.Linear(72, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if self.kind == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                logits: Tensor = self.layer(x) * 1.0
                return logits
        dtype = torch.float16 if self.kind == "half" else torch.bfloat16
        logits = self.layer(x.to(dtype).to(self.layer.weight.dtype)) * 1.0
        return logits


@pytest.mark.parametrize("kind", ["autocast", "half", "bfloat16"])
def test_less_precision_is_refused(kind: str) -> None:
    with pytest.raises(UsageError, match=r"forward pass in float32, but .* returns b?float16"):
        build_certifier(Narrow(kind), SHAPE, THREAT, "ibp")
    assert build_certifier(Narrow(kind), SHAPE, THREAT, "auto") is None


def test_weights_of_less_precision_are_refused() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, 3)).bfloat16()
    with pytest.raises(UsageError, match=r"1\.weight is not float32"):
        build_certifier(net, SHAPE, THREAT, "crown")


def test_dropout_that_drops_is_refused() -> None:
    net = Around(lambda x: F.dropout(x, 1e-9, True))
    net.last = nn.Linear(144, 3)  # type: ignore[assignment]
    with pytest.raises(UsageError, match="evaluation mode"):
        trace(net, SHAPE)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (partial(F.softmax, dim=0), "Known: linear"),
        (nn.PReLU(), r"function\).*LeakyReLU"),
        (lambda x: x / x.exp(), "torch.exp|exp"),
        (lambda x: x.half(), "float32"),
    ],
)
def test_a_refusal_says_what_is_known(function: Callable[[Tensor], Tensor], message: str) -> None:
    torch.manual_seed(0)
    net = Around(function)
    net.last = nn.Linear(144, 3)  # type: ignore[assignment]
    with pytest.raises(UsageError, match=message):
        trace(net, SHAPE)
