"""Self-training: its base at weight 0, the penalized loss, hidden labels, a Gaussian mixture."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from robustkit.core.rng import generator
from robustkit.data.arrays import from_arrays
from robustkit.data.unlabeled import with_unlabeled
from robustkit.errors import RobustkitError
from robustkit.models.architectures import Normalize
from robustkit.models.training import Recipe, Step, fit
from robustkit.registry import defenses

rules = import_module("robustkit.defenses.self_training")
HALF = torch.tensor([0, -1, 2, -3, 1, -2])  # three labeled points, three that are not


def batch() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = defenses.build("pgd_at(width=4)").network((1, 8, 8), 3)
        return network, torch.rand(6, 1, 8, 8)


def loss_and_gradient(spec: str, x: Tensor, y: Tensor, progress: float = 0.9) -> list[Tensor]:
    network, _ = batch()
    step = Step(progress, generator(0, 1, 0))
    loss = defenses.build(spec).objective(network, x, y, step)
    return [loss.detach(), *torch.autograd.grad(loss, list(network.parameters()))]


@pytest.mark.parametrize("base", ["pgd_at", "trades"])
def test_weight_zero_is_the_base_defense_on_the_labeled_points_bit_by_bit(base: str) -> None:
    _, x = batch()
    found = loss_and_gradient(f"self_training(base={base}, weight=0, width=4)", x, HALF)
    expected = loss_and_gradient(f"{base}(width=4)", x[HALF >= 0], HALF[HALF >= 0])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_weight_rises_over_the_first_half() -> None:
    _, x = batch()
    spec = "self_training(gate=0, width=4)"
    known = HALF >= 0
    alone = float(loss_and_gradient(spec, x[known], HALF[known])[0])
    early, half, late = (float(loss_and_gradient(spec, x, HALF, p)[0]) for p in (0.25, 0.5, 0.9))
    # eps has risen to its end at a fifth of the training: only the weight differs.
    assert half == late
    assert early - alone == pytest.approx((half - alone) / 2, rel=1e-5)


@pytest.mark.parametrize("form", ["hard", "penalized"])
def test_the_hidden_labels_change_nothing(form: str) -> None:
    _, x = batch()
    spec = f"self_training(form={form}, gate=0, width=4)"
    other = torch.where(HALF < 0, torch.tensor([0, -2, 0, -1, 0, -3]), HALF)
    for a, b in zip(
        loss_and_gradient(spec, x, HALF), loss_and_gradient(spec, x, other), strict=True
    ):
        assert torch.equal(a, b)


def test_pseudo_labels_carry_no_gradient() -> None:
    """The gradient is that with the same labels given from outside."""
    network, x = batch()
    with torch.no_grad():
        own = network(x).argmax(1)
    given = torch.where(HALF < 0, ~own, HALF)
    found = loss_and_gradient("self_training(gate=0, width=4)", x, HALF)
    expected = loss_and_gradient("self_training(pseudo=given, width=4)", x, given)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_gate_leaves_unsure_points_out() -> None:
    _, x = batch()
    known = HALF >= 0
    found = loss_and_gradient("self_training(gate=1, width=4)", x, HALF)
    assert torch.equal(found[0], loss_and_gradient("pgd_at(width=4)", x[known], HALF[known])[0])


@pytest.mark.parametrize("gamma", [0.5, 5.0, 1e6])
def test_the_penalized_loss_is_never_below_the_loss_and_tends_to_it(gamma: float) -> None:
    network, x = batch()
    y = HALF.abs() % 3
    entropy = nn.functional.cross_entropy(network(x), y, reduction="none")
    found = rules.penalized(network, x, y, gamma, 15)
    assert bool((found >= entropy).all())
    if gamma == 1e6:
        torch.testing.assert_close(found, entropy)
    if gamma == 0.5:
        assert bool((found > entropy).all())


class Quadratic(nn.Module):
    """Logits whose cross-entropy at class 0 is k/2 ‖x − c‖²; exp(−loss) is the probability."""

    def __init__(self, k: float, c: float) -> None:
        super().__init__()
        self.k, self.c = nn.Parameter(torch.tensor(k)), c

    def forward(self, x: Tensor) -> Tensor:
        loss = 0.5 * self.k * (x - self.c).square().flatten(1).sum(1)
        return torch.stack([torch.zeros_like(loss), torch.expm1(loss).log()], 1)


def test_the_penalized_loss_of_a_quadratic_is_its_closed_form() -> None:
    """sup_z k/2 (z − c)² − g (z − x)² = k g / (2 g − k) · (x − c)², at z inside [0, 1]."""
    k, c, gamma = 2.0, 0.4, 5.0
    x = torch.tensor([0.45, 0.55, 0.6, 0.3]).view(-1, 1, 1, 1)
    found = rules.penalized(Quadratic(k, c), x, torch.zeros(4, dtype=torch.long), gamma, 15)
    expected = k * gamma / (2 * gamma - k) * (x - c).square().flatten()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_collapse_stops_the_training_at_the_end_of_its_epoch() -> None:
    truth = torch.full((40,), 10)
    one = torch.cat([torch.zeros(13, dtype=torch.long), torch.arange(27) % 9 + 1])
    memory: dict[str, Tensor] = {}
    rules.count(Step(0.1, generator(0, 1, 0), memory), one, truth, 10)  # not its last batch
    with pytest.raises(RobustkitError, match=r"collapsed: in epoch 1 .* 26 of 80 .* class 0"):
        rules.count(Step(0.1, generator(0, 1, 0), memory, last=True), one, truth, 10)
    rules.count(Step(0.1, generator(0, 1, 0), {}, last=True), one, truth, 10, stops=False)
    rules.count(Step(0.1, generator(0, 1, 0), {}, last=True), one[2:], truth[2:], 10)  # 11 of 38


def points(n: int, seed: int, y: Any = None) -> Any:
    draw = np.random.default_rng(seed)
    labels = np.arange(n) % 3 if y is None else y
    x = draw.random((n, 8, 8)).astype(np.float32) / 2 + labels[:, None, None] / 4
    return from_arrays("points", x.astype(np.float32), labels, classes=3)


def test_a_training_logs_its_pseudo_labels_and_resumes_to_the_same_weights(tmp_path: Path) -> None:
    data = with_unlabeled(points(60, 0), 12)
    defense = defenses.build("self_training(gate=0, width=4, steps=1)")
    recipe, logs = Recipe(epochs=3, batch_size=16), []
    for folder, stop in ((tmp_path / "a", None), (tmp_path / "b", 8)):
        for _ in range(2):
            run = fit(
                defense, data, folder, recipe=recipe, seed=0, device=torch.device("cpu"),
                identity={},
            )  # fmt: skip
            for number, _ in enumerate(run, 1):
                if number == stop:
                    break
            stop = None
        logs.append((folder / "log.json").read_bytes())
        logs.append((folder / "model.safetensors").read_bytes())
    assert logs[:2] == logs[2:]
    rows = json.loads(logs[0])["pseudo_labels"]
    assert len(rows) == 3
    assert all(row[0] == row[1] == sum(row[3:]) >= row[2] for row in rows)
    assert rows[2][0] == pytest.approx(48, abs=16)  # an epoch leaves out what fills no batch


@dataclass(frozen=True)
class OnLinear(rules.SelfTraining):  # type: ignore[misc, name-defined]
    """Self-training of a linear classifier."""

    def network(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Return it."""
        last = nn.Linear(math.prod(shape), classes, bias=False)
        return nn.Sequential(Normalize((0.5,), (1 / 12,)), nn.Flatten(), last)


def mixture(n: int, direction: np.ndarray, seed: int) -> Any:
    """N(±mu, I) in 200 dimensions, ‖mu‖ = 1, scaled into [0, 1]."""
    draw = np.random.default_rng(seed)
    y = draw.integers(2, size=n)
    x = (2 * y[:, None] - 1) * direction + draw.standard_normal((n, len(direction)))
    pixels = (0.5 + x / 12).clip(0, 1).astype(np.float32).reshape(n, 10, 20)
    return from_arrays("mixture", pixels, y, classes=2)


@pytest.mark.parametrize("seed", range(5))
def test_unlabeled_points_of_a_gaussian_mixture_help(seed: int, tmp_path: Path) -> None:
    """M = 10, n = 10,000, d = 200: published 0.59 without and 0.82 with the unlabeled points."""
    direction = np.random.default_rng(seed).standard_normal(200)
    direction /= np.linalg.norm(direction)
    labeled, pool = mixture(10, direction, seed), mixture(10_000, direction, 50 + seed)
    x, y = mixture(4000, direction, 100 + seed).fetch(range(4000))
    defense = OnLinear(form="penalized", gamma=20, pool_gamma=20, weight=20, gate=0, steps=2)
    network = defense.network((1, 10, 20), 2)
    recipe = Recipe(epochs=2, batch_size=400, lr=0.03)
    for _ in fit(
        defense, with_unlabeled(labeled, 10, pool=pool), tmp_path, recipe=recipe, seed=0,
        device=torch.device("cpu"), identity={},
    ):  # fmt: skip
        pass
    network.load_state_dict(load_file(tmp_path / "model.safetensors"))
    few, labels = labeled.fetch(range(10))
    mean = ((2 * labels[:, None] - 1) * (few - 0.5).flatten(1)).mean(0)
    with torch.no_grad():
        found = float((network(x).argmax(1) == y).float().mean())
    assert float((((x - 0.5).flatten(1) @ mean > 0) == y).float().mean()) < 0.7
    assert found >= 0.75
