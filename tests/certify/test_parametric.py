"""Certificates over boxes of parameters: sound, exact where they must be, nearly complete."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from robustkit.certify.certifier import build_certifier
from robustkit.certify.forward import forward_bounds
from robustkit.certify.graph import trace
from robustkit.certify.ibp import Box, intervals
from robustkit.core.parametric import STEPS, ParametricThreat
from robustkit.core.rng import generator
from robustkit.errors import UsageError
from robustkit.registry import read_threat


def style(text: str = "style:mean,scale") -> ParametricThreat:
    threat = read_threat(text)
    assert isinstance(threat, ParametricThreat)
    return threat


def images(count: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    drawn = torch.rand(count, 1, 8, 8, generator=generator(0, 1, 2))
    return low + (high - low) * drawn


class Residual(nn.Module):
    """Convolutions, a skip connection, pooling and a smooth activation: every kind of step."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
            self.last = nn.Linear(3 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        h = h + self.second(h).sigmoid()
        h = torch.cat([h[:, :1], h[:, 1:]], 1)
        logits: Tensor = self.last(nn.functional.max_pool2d(h, 2).flatten(1))
        return logits


def tiny(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 4, 4, stride=2), nn.ReLU(), nn.Flatten(),
                             nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 4)).eval()  # fmt: skip


class Few(nn.Module):
    """Two inputs, spread over an image."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        super().__init__()
        self.model = model
        self.spread = nn.Linear(2, 64)
        drawn = torch.rand(64, 2, generator=generator(seed, 4, 4))
        self.spread.weight.data.copy_(drawn - 0.5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(self.spread(x).view(-1, 1, 8, 8).clamp(0, 1))
        return logits


@pytest.mark.parametrize("seed", range(3))
def test_forward_bounds_hold_in_float32_and_beat_intervals(seed: int) -> None:
    for inner in (Residual(seed), tiny(seed)):  # the last is bent by ReLUs alone
        model = Few(inner, seed).eval()
        graph = trace(copy.deepcopy(model).double(), (2,))
        center = torch.rand(6, 2, generator=generator(seed, 1, 1), dtype=torch.float64)
        radius = torch.tensor([1.0, 0.3, 0.1, 0.03, 0.01, 0.0])[:, None].double()
        box, y = Box(center - radius, center + radius), torch.arange(6) % 4
        lower, boxes = forward_bounds(graph, box, y)
        plain = intervals(graph, box, rounding=True)
        share = torch.rand(200, 6, 2, generator=generator(seed, 2, 2)) * 2 - 1
        share[:4] = torch.tensor([[-1, -1], [-1, 1], [1, -1], [1, 1]])[:, None]
        inputs = (center + share * radius).flatten(0, 1)
        with torch.no_grad():
            logits = model(inputs.float()).double().view(200, 6, 4)
            values = graph.values(inputs)
        mine = logits.gather(2, y.expand(200, 6)[..., None])
        assert (mine - logits >= lower - 1e-12).all()
        for value, known in zip(values, boxes, strict=True):
            seen = value.view(200, 6, *value.shape[1:])
            assert (seen >= known.low).all() and (seen <= known.high).all()
        tighter = boxes[-1].high - boxes[-1].low < plain[-1].high - plain[-1].low
        assert isinstance(inner, Residual) or tighter[3:5].all()


def test_where_the_box_halves_the_error_falls_by_four() -> None:
    """An affine function of the inputs is kept: intervals halve, what is added falls faster."""
    graph = trace(Few(tiny(5), 5).eval().double(), (2,))
    center, gaps = torch.tensor([[0.4, 0.6]], dtype=torch.float64), list[float]()
    for radius in (0.4, 0.2, 0.1):
        box = Box(center - radius, center + radius)
        lower, _ = forward_bounds(graph, box, torch.zeros(1, dtype=torch.long))
        line = torch.linspace(-radius, radius, 21, dtype=torch.float64)
        with torch.no_grad():
            logits = graph.values(center + torch.cartesian_prod(line, line))[-1]
        least = (logits[:, :1] - logits).amin(0)[1:]
        gaps.append(float((least - lower[0, 1:]).mean().detach()))
    assert gaps[2] < gaps[1] / 2.5 < gaps[0] / 2.5**2, gaps


def right_on_the_grid(model: nn.Module, x: Tensor, y: Tensor, threat: ParametricThreat) -> Tensor:
    line = torch.arange(-STEPS, STEPS + 1, STEPS // 10)
    right = torch.ones(len(x), dtype=torch.bool)
    with torch.no_grad():
        for place in torch.cartesian_prod(line, line).view(-1, 1, 2):
            right &= model(threat.made(x, place.expand(len(x), 2))).argmax(1) == y
    return right


def test_certified_is_at_most_robust_and_little_is_left_open() -> None:
    threat, x, open_ = style("style:mean=0.3,scale=3"), images(10), 0
    for seed in (1,):
        model = tiny(seed)
        with torch.no_grad():
            y = model(x).argmax(1)
        robust = right_on_the_grid(model, x, y, threat)
        certifier = build_certifier(model, (1, 8, 8), threat, "auto")
        assert certifier is not None and certifier.name == "auto"
        proved = certifier.prove(x, y)
        assert (robust | ~proved).all()
        assert 0 < proved.sum() < 10
        open_ += int((robust & ~proved).sum())
    assert open_ == 0


class Centered(nn.Module):
    """Takes the mean of the channel away first, and has no bias: style does not move its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 4, bias=False)
        drawn = torch.randn(4, 64, generator=generator(0, 7, 7))
        self.linear.weight.data.copy_(drawn)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear((x - x.mean((2, 3), keepdim=True)).flatten(1))
        return logits


def test_a_network_that_standardises_is_certified_where_it_is_right() -> None:
    model, x = Centered(), images(30, 0.3, 0.7)  # nothing is clipped: 0.5 ± 1.5 · 0.2 ± 0.1
    with torch.no_grad():
        y = model(x).argmax(1)
    y[::5] = (y[::5] + 1) % 4
    threat = style("style:mean=0.1,scale=1.5")
    certifier = build_certifier(model, (1, 8, 8), threat, "auto")
    assert certifier is not None
    right = torch.arange(30) % 5 != 0
    assert torch.equal(certifier.prove(x, y), right)


def test_what_is_counted_and_what_is_refused() -> None:
    model, x, threat = tiny(1), images(6), style("style:mean=0.3,scale=3")
    with torch.no_grad():
        y = model(x).argmax(1)
    few = build_certifier(model, (1, 8, 8), threat, "auto(nodes=1)")
    many = build_certifier(model, (1, 8, 8), threat, "auto")
    assert few is not None and many is not None and few.name == "auto(nodes=1)"
    assert (many.prove(x, y) | ~few.prove(x, y)).all()
    assert few.prove(x, y).sum() < many.prove(x, y).sum()
    for method in ("quick", "auto(share=0.15)"):
        assert build_certifier(model, (1, 8, 8), threat, method) is None
    assert build_certifier(lambda z: z, (1, 8, 8), threat, "auto") is None
    for method in ("ibp", "crown", "complete", "smoothing"):
        with pytest.raises(UsageError, match=r"needs a norm.*--certify auto"):
            build_certifier(model, (1, 8, 8), threat, method)
    with pytest.raises(UsageError, match="counts boxes"):
        build_certifier(model, (1, 8, 8), threat, "auto(seconds=3)")
