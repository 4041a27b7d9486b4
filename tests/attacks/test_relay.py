"""Relay: what it spends where, and that it misses nothing that long searches find."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search.engine import Engine
from robustkit.search.functional import attack
from robustkit.search.protocol import Tasks
from robustkit.search.tasks import Outcome, Work, fresh_tasks

SMALL = "relay(first=4, probes=2, probe=3, legs=3, steps=5, near=0.5, decay=0.5)"


class SlotState:
    """A verifier that confirms nothing, or everything, and keeps the outcomes."""

    def __init__(
        self, x: Images, ranked: Labels, search: Any, threat: Threat, robust: bool
    ) -> None:
        self.x, self.ranked, self.robust = x, ranked, robust
        self.jobs = search.jobs(threat, ranked.shape[1])
        self.outcomes: list[Outcome] = []

    def tasks(self, work: list[Work]) -> Tasks:
        index = torch.tensor([item.point for item in work])
        jobs = [self.jobs[item.job] for item in work]
        ranked = self.ranked[index]
        return fresh_tasks(self.x[index], ranked[:, 0], ranked, index, jobs, "relay", 0)

    def confirm(self, work: list[Work], z: Images, x: Images, y: Labels) -> list[bool]:
        return [self.robust] * len(work)

    def settle(self, outcomes: list[Outcome]) -> None:
        self.outcomes += outcomes


def spend(
    model: nn.Module, x: Tensor, spec: str, eps: float, *, robust: bool = True
) -> list[Outcome]:
    search, threat = attacks.build(spec), Threat("linf", eps)
    ranked = model(x).argsort(1, descending=True)
    verifier = SlotState(x, ranked, search, threat, robust)
    queue = [Work(point, 0) for point in range(len(x))]
    Engine(model, threat, 8).run(search, iter(queue), len(queue), verifier)  # type: ignore[arg-type]
    return sorted(verifier.outcomes)


@pytest.fixture
def ramp() -> nn.Module:
    """Three classes over one pixel: z = (0, 10 (t − 0.5), −10): the boundary lies at t = 0.5."""
    linear = nn.Linear(1, 3).requires_grad_(False)
    linear.weight.copy_(torch.tensor([[0.0], [10.0], [0.0]]))
    linear.bias.copy_(torch.tensor([0.0, -5.0, -10.0]))
    return nn.Sequential(nn.Flatten(), linear).eval()


def pixel(t: float) -> Tensor:
    return torch.full((1, 1, 1, 1), t)


def test_a_far_point_costs_the_probes_alone(ramp: nn.Module) -> None:
    """At t = 0.2 and eps 0.1 the boundary is twice eps beyond the ball: the need is 2."""
    (outcome,) = spend(ramp, pixel(0.2), SMALL, 0.1)
    assert outcome.spent
    assert outcome.forwards == outcome.backwards == (4 + 1) + 2 * (3 + 1)
    assert outcome.closest == pytest.approx(-2.0, abs=1e-4)


@pytest.mark.parametrize(
    ("t", "legs"),
    # The need at the ball's edge is (0.4 − t) / 0.1; leg k runs up to 0.5 · 0.5^k.
    [(0.34, 0), (0.36, 1), (0.38, 2), (0.39, 3)],
)
def test_the_nearer_the_longer(ramp: nn.Module, t: float, legs: int) -> None:
    (outcome,) = spend(ramp, pixel(t), SMALL, 0.1)
    assert outcome.spent
    assert outcome.forwards == 13 + legs * (5 + 1)
    assert outcome.closest == pytest.approx(-(0.4 - t) / 0.1, abs=1e-4)


def test_a_success_ends_it(ramp: nn.Module) -> None:
    (outcome,) = spend(ramp, pixel(0.45), SMALL, 0.1)
    assert not outcome.spent
    assert outcome.forwards <= 5


def test_every_wrong_class_gets_its_probe() -> None:
    """Ten classes: the third nearest is the only one whose boundary lies inside the ball."""
    linear = nn.Linear(12, 10).requires_grad_(False)
    linear.weight.zero_()
    linear.bias.copy_(torch.tensor([1.0, 0.9, 0.8, 0.7] + 6 * [-5.0]))
    linear.weight[3, 0] = 10.0
    model = nn.Sequential(nn.Flatten(), linear)
    x = torch.full((1, 12), 0.5)
    x[0, 0] = 0.0
    linear.bias[3] = 0.7
    search, threat = attacks.build("relay(first=2, probes=3, probe=3, legs=0)"), Threat("linf", 0.1)
    z = attack(model, x, torch.tensor([0]), search, threat)
    assert int(model(z).argmax()) == 3


def test_classes_beyond_the_candidates_are_let_be() -> None:
    search, threat = attacks.build("relay(aims=2)"), Threat("linf", 0.1)
    assert search.aims == 2
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6)).requires_grad_(False)
    x = torch.rand(3, 1, 2, 2)
    z = attack(model, x, model(x).argmax(1), search, threat)
    assert bool(threat.contains(z, x).all())


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_misses_nothing_that_ten_times_the_passes_find(
    norm: Any, bundled: Dataset, hardened: nn.Module
) -> None:
    threat = Threat(norm, {"linf": 0.08, "l2": 1.2}[norm])
    x, y = bundled.fetch(range(0, 1000, 25))
    long = attacks.build("apgd(loss=targeted_dlr, steps=100, targets=9)")
    broken = [
        (hardened(attack(hardened, x, y, search, threat)).argmax(1) != y)
        for search in (attacks.build("relay"), long)
    ]
    assert 4 < int(broken[1].sum()) < 36
    assert int((broken[1] & ~broken[0]).sum()) == 0


def test_other_norms_are_sent_elsewhere() -> None:
    with pytest.raises(UsageError, match=r"supports linf and l2, got l1. Use apgd_l1"):
        attacks.build("relay").jobs(Threat("l1", 5.0), 10)


def test_without_a_gradient_it_is_as_far_as_a_number_can_say(ramp: nn.Module) -> None:
    """The need overflows at a margin above 4, and a ledger holds finite numbers."""
    linear = ramp[1]  # type: ignore[index]
    linear.weight.zero_()
    linear.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    (outcome,) = spend(ramp, pixel(0.5), SMALL, 0.1)
    assert outcome.closest is not None
    assert -torch.inf < outcome.closest < -1e30
