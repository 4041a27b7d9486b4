"""Certified training: what each loss is, and that training lowers it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from robustkit.certify.graph import Graph, trace
from robustkit.certify.ibp import Box, input_box, intervals, margins_of
from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError
from robustkit.models.training import Recipe, Step, fit
from robustkit.registry import defenses

LOSSES = ("ibp", "crown_ibp", "sabr", "mtl_ibp", "cc_ibp", "exp_ibp", "taps", "staps")
blend: Any = import_module("robustkit.defenses._expressive").expressive
taps: Any = import_module("robustkit.defenses._taps")
Y = torch.tensor([0, 2, 1])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)
        )


def bounded(model: nn.Module, eps: float = 0.2) -> tuple[Graph, list[Box], Tensor]:
    graph = trace(model, (1, 2, 3))
    boxes = intervals(graph, input_box(draw(3, 1, 2, 3), Threat("linf", eps)))
    return graph, boxes, margins_of(graph, boxes, Y)


@pytest.mark.parametrize("loss", ["cc_ibp", "mtl_ibp", "exp_ibp"])
def test_a_blend_goes_from_the_adversarial_loss_to_that_of_the_bounds(loss: str) -> None:
    logits = 4 * draw(3, 3)
    margins = logits.gather(1, Y[:, None]) - logits
    lower = (margins - draw(3, 3, seed=1)).scatter(1, Y[:, None], 0.0)
    values = [float(blend(loss, logits, lower, Y, a)) for a in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert values[0] == pytest.approx(float(F.cross_entropy(logits, Y)))
    assert values[-1] == pytest.approx(float(F.cross_entropy(-lower, Y)))
    assert values == sorted(values)


def test_the_blends_of_one_point_by_hand() -> None:
    """Two classes: the loss of a margin m is log(1 + exp(−m)); margins 2 and −1, weight 1/4."""
    logits, lower, y = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, -1.0]]), torch.tensor([0])
    attacked, bound = (F.softplus(torch.tensor(-m)) for m in (2.0, -1.0))
    wanted = {
        "cc_ibp": F.softplus(torch.tensor(-(0.75 * 2 - 0.25 * 1))),
        "mtl_ibp": 0.75 * attacked + 0.25 * bound,
        "exp_ibp": attacked**0.75 * bound**0.25,
    }
    for loss, value in wanted.items():
        torch.testing.assert_close(blend(loss, logits, lower, y, 0.25), value)


def test_the_classifier_is_the_end_of_the_network() -> None:
    graph, _, _ = bounded(network())
    values = graph.values(draw(3, 1, 2, 3))
    for relus in (1, 2):
        head, at = taps.classifier(graph, relus)
        assert at == graph.relu_inputs()[-relus]
        torch.testing.assert_close(head.values(values[at])[-1], values[-1])


class Around(nn.Module):
    """A connection past the last ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.flatten(1))
        return self.last(torch.relu(self.last(h))) + h  # type: ignore[no-any-return]


def test_a_network_that_cannot_be_split_is_refused_with_the_cure() -> None:
    graph, _, _ = bounded(network())
    with pytest.raises(UsageError, match="at least 3 ReLUs, got 2: lower `relus`"):
        taps.classifier(graph, 3)
    with pytest.raises(UsageError, match="connection around it: choose another number"):
        taps.classifier(trace(Around(), (1, 2, 3)), 1)


def test_the_ascent_stays_in_the_box_and_below_the_interval_bound() -> None:
    graph, boxes, lower = bounded(network())
    head, at = taps.classifier(graph, 2)
    low, high = boxes[at]
    worst = taps._ascend(head, boxes[at], Y, 8, torch.Generator().manual_seed(0))
    assert bool(((worst >= low[:, None]) & (worst <= high[:, None])).all())
    found, middle = (
        taps._answers(head, z, Y) for z in (worst, ((low + high) / 2)[:, None].expand_as(worst))
    )
    assert bool((found <= -lower + 1e-6).all())
    assert bool((found >= middle).all())
    assert float((found - middle).detach().max()) > 0.05


def test_the_connector_passes_gradient_to_the_near_end() -> None:
    low, high = torch.zeros(1, 3, requires_grad=True), torch.ones(1, 3, requires_grad=True)
    z = torch.tensor([[[0.0, 0.75, 0.5]]])
    joined = taps.connect(z, Box(low, high))
    torch.testing.assert_close(joined, z)
    joined.sum().backward()
    torch.testing.assert_close(low.grad, torch.tensor([[1.0, 0.0, 0.0]]))
    torch.testing.assert_close(high.grad, torch.tensor([[0.0, 0.5, 0.0]]))


def test_the_factors_of_taps_are_weighted_five_to_one() -> None:
    """The gradient of the product, by the weights w and 1 / w of its two parts."""
    a, b = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    product = taps._scaled(a, 10 / 6) * taps._scaled(b, 2 / 6)
    product.backward()
    assert float(product.detach()) == pytest.approx(6.0)
    assert float(a.grad or 0) == pytest.approx(10 / 6 * 3)
    assert float(b.grad or 0) == pytest.approx(2 / 6 * 2)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_training_lowers_each_loss(loss: str, bundled: Dataset, tmp_path: Path) -> None:
    spec = f"ibp(loss={loss}, eps=0.01, train_eps=0.01, ramp=0.1, width=4, steps=2)"
    defense: Any = defenses.build(spec)
    x, y = bundled.fetch(range(100))

    def value(model: nn.Module) -> float:
        step = Step(1.0, torch.Generator().manual_seed(0))
        return float(defense.objective(model, x, y, step).detach())

    model = defense.network((1, 28, 28), 10)
    before = value(model)
    assert value(model) == before
    recipe, device = Recipe(epochs=2, batch_size=50, lr=1e-2, half=False), torch.device("cpu")
    steps = fit(defense, bundled, tmp_path, recipe=recipe, seed=0, device=device, identity={})
    assert len(list(steps)) == 40
    model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    after = value(model)
    assert after < 0.85 * before, (before, after)
