"""Networks as users write them: heads, casts, quantized layers, and slopes of smooth functions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustkit.certify.certifier import build_certifier
from robustkit.certify.crown import crown_margins
from robustkit.certify.graph import trace
from robustkit.certify.ibp import input_box, intervals, margins_of
from robustkit.core.threat import Threat
from robustkit.errors import UsageError

SHAPE = (2, 6, 6)
THREAT = Threat("linf", 0.05)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_layers_are_refused() -> None:
    layer = torch.ao.nn.quantized.dynamic.Linear(72, 3)
    net = nn.Sequential(nn.Flatten(), layer)
    with pytest.raises(UsageError, match="1 is a quantized Linear"):
        build_certifier(net, SHAPE, THREAT, "ibp")


@pytest.mark.parametrize("name", ["float", "log_softmax"])
def test_the_networks_of_users_are_certified(name: str) -> None:
    """In float32, as they are given: bounds are of a copy in float64."""
    torch.manual_seed(0)
    first = nn.Linear(72, 3)

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = first

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.first(x.flatten(1).float())
            return logits if name == "float" else logits.log_softmax(1)

    x = torch.rand(4, *SHAPE)
    y = first(x.flatten(1)).argmax(1)
    found = [
        certifier.prove(x, y)
        for net in (Head(), nn.Sequential(nn.Flatten(), first))
        if (certifier := build_certifier(net, SHAPE, Threat("linf", 0.01), "crown"))
    ]
    assert len(found) == 2
    assert torch.equal(found[0], found[1])
    assert found[0].any()


def test_a_softmax_head_has_the_margins_of_the_logits() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(72, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    x = torch.rand(16, *SHAPE, dtype=torch.float64)
    y = body(x).argmax(1)
    plain, whole = trace(body, SHAPE), trace(nn.Sequential(body, nn.Softmax(1)), SHAPE)
    same = torch.arange(3) == y[:, None]
    for method in ("ibp", "crown"):
        threat = Threat("linf", 0.02)
        found = []
        for graph in (plain, whole):
            boxes = intervals(graph, input_box(x, threat))
            by_boxes = method == "ibp"
            lower = margins_of(graph, boxes, y) if by_boxes else crown_margins(graph, x, y, threat)
            found.append(lower.masked_fill(same, 0.0))
        logits, shares = found
        assert bool(((logits > 0) == (shares > 0)).all())
        assert bool((logits > 0).any()) and bool((logits < 0).any())
        z = (x + 0.02 * (2 * torch.rand(64, *x.shape) - 1).sign()).clamp(0, 1).double()
        answers = body(z.flatten(0, 1)).softmax(1).unflatten(0, (64, -1))
        own = answers.gather(2, y.expand(64, -1)[..., None])
        assert bool((own - answers >= shares - 1e-12).all())


@pytest.mark.parametrize("kind", ["sigmoid", "tanh", "silu", "gelu"])
def test_optimized_slopes_raise_the_bounds_of_smooth_functions(kind: str) -> None:
    torch.manual_seed(0)
    act = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "silu": nn.SiLU, "gelu": nn.GELU}[kind]
    net = nn.Sequential(nn.Linear(6, 10), act(), nn.Linear(10, 10), act(), nn.Linear(10, 3))
    for layer in net[::2]:
        layer.weight.data.mul_(3)  # type: ignore[operator]
    net = net.double().requires_grad_(False)
    x = 0.3 + 0.4 * torch.rand(4, 6, dtype=torch.float64)
    y, threat = net(x).argmin(1), Threat("linf", 0.1)  # every margin is open
    graph = trace(net, (6,))
    lower = crown_margins(graph, x, y, threat, intermediate="crown")
    raised = crown_margins(graph, x, y, threat, intermediate="crown", iterations=15)
    others = torch.arange(3) != y[:, None]
    assert bool((raised[others] >= lower[others]).all())
    z = (x + 0.1 * (2 * torch.rand(300, *x.shape, dtype=torch.float64) - 1).sign()).clamp(0, 1)
    answers = net(z)
    own = answers.gather(2, y.expand(300, -1)[..., None])
    least = (own - answers).amin(0)
    assert bool((least >= raised).all())
    closed = (raised - lower)[others].mean() / (least - lower)[others].mean()
    assert float(closed) > 0.1  # of the gap to what the corners reach


@pytest.mark.parametrize("head", [nn.Identity, lambda: nn.Softmax(1)], ids=["logits", "softmax"])
def test_boxes_that_outgrow_float32_have_no_ends_and_prove_nothing(
    head: Callable[[], nn.Module],
) -> None:
    """As those of deep transformers do, with what float32 may lose in every normalization."""
    torch.manual_seed(0)
    blocks = [part for _ in range(9) for part in (nn.Linear(6, 6), nn.LayerNorm(6, eps=1e-12))]
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, 6), *blocks, nn.Linear(6, 3), head())
    net = net.double().eval().requires_grad_(False)
    graph, x = trace(net, SHAPE), torch.rand(4, *SHAPE, dtype=torch.float64)
    boxes = intervals(graph, input_box(x, THREAT), rounding=True)
    assert bool(boxes[-2].low.isinf().all())
    for value, (low, high) in zip(graph.values(x), boxes, strict=True):
        assert bool(((low <= value) & (value <= high)).all())
    y = net(x).argmax(1)
    others = torch.arange(3) != y[:, None]
    for lower in (
        margins_of(graph, boxes, y, rounding=True),
        crown_margins(graph, x, y, THREAT, rounding=True, intermediate="crown", iterations=2),
    ):
        assert bool((lower[others] < 0).all())


@pytest.mark.slow
def test_the_smallest_network_of_torchvision() -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    net = models.shufflenet_v2_x0_5(weights=None, num_classes=4)
    net = net.double().eval().requires_grad_(False)
    shape, threat = (3, 32, 32), Threat("linf", 1e-6)
    graph, x = trace(net, shape), torch.rand(1, 3, 32, 32, dtype=torch.float64)
    z = (x + 1e-6 * (2 * torch.rand(20, 3, 32, 32).double() - 1)).clamp(0, 1)
    boxes = intervals(graph, input_box(x, threat), rounding=True)
    for value, (low, high) in zip(graph.values(z), boxes, strict=True):
        assert bool(((low <= value) & (value <= high)).all())
    logits, y = net(z), net(x).argmax(1)
    lower = crown_margins(graph, x, y, threat, rounding=True)
    assert bool((logits[:, y] - logits >= lower).all())
    assert bool((lower > -1e3).all())


class _Odd(nn.Module):
    """Logits with a common offset, after `change` of the image's mean."""

    def __init__(self, change: Callable[[nn.Module, Tensor], Tensor], offset: float) -> None:
        super().__init__()
        self.change, self.offset = change, offset
        self.register_buffer("whole", torch.zeros(1, dtype=torch.int32))
        self.head = nn.Linear(72, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.change(self, x.flatten(1))) + self.offset
        return logits


def _written_over(_: nn.Module, h: Tensor) -> Tensor:
    kept = h - 0.5
    nn.functional.relu(kept, inplace=True)
    return kept


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m, h: (h * 9).type_as(m.whole).float(), "type_as returns torch.int32"),
        (lambda m, h: (h * 9).to(m.whole).float(), "to returns torch.int32"),
        (lambda m, h: h * h[0, 0], "getitem"),
        (_written_over, "other logits than when it is called"),
    ],
)
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_what_would_be_bounded_as_another_function_is_refused(
    change: Callable[[nn.Module, Tensor], Tensor], told: str, offset: float
) -> None:
    """Casts by the type of another tensor, single values, writes in place; whatever the offset."""
    with pytest.raises(UsageError, match=told):
        trace(_Odd(change, offset).double(), SHAPE)
