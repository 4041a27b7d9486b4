"""Weights of points: on the simplex, uniform and worst-case in the limits, and clipped."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch

from robustkit.core.rng import generator
from robustkit.models.training import Step
from robustkit.registry import defenses

rules = import_module("robustkit.defenses._reweighting")
LOSSES = torch.tensor([0.1, 0.5, 2.0, 0.3])


def weights(r: float) -> torch.Tensor:
    log_u = rules.moving_log_mean(LOSSES, r, 1.0, None)
    found: torch.Tensor = rules.doubly_robust(LOSSES, r, log_u, math.inf) / len(LOSSES)
    return found


@pytest.mark.parametrize("r", [0.05, 0.5, 1.0, 20.0])
def test_weights_lie_on_the_simplex(r: float) -> None:
    assert bool((weights(r) >= 0).all())
    assert float(weights(r).sum()) == pytest.approx(1)
    torch.testing.assert_close(weights(r), (LOSSES / r).softmax(0))


def test_weights_tend_to_uniform_and_to_the_worst_point() -> None:
    torch.testing.assert_close(weights(1e6), torch.full((4,), 0.25))
    torch.testing.assert_close(weights(0.01), torch.tensor([0.0, 0.0, 1.0, 0.0]))


def test_the_gradient_is_that_of_the_closed_form() -> None:
    """d/dl of r · log mean exp(l / r)."""
    losses = LOSSES.clone().requires_grad_(True)
    (exact,) = torch.autograd.grad(0.5 * (torch.logsumexp(losses / 0.5, 0) - math.log(4)), losses)
    log_u = rules.moving_log_mean(losses, 0.5, 1.0, None)
    value = (rules.doubly_robust(losses, 0.5, log_u, math.inf) * losses).mean()
    (found,) = torch.autograd.grad(value, losses)
    torch.testing.assert_close(found, exact)


def test_the_moving_average_is_that_of_the_means() -> None:
    first = rules.moving_log_mean(LOSSES, 2.0, 0.1, None)
    second = rules.moving_log_mean(2 * LOSSES, 2.0, 0.1, first)
    expected = 0.9 * (LOSSES / 2).exp().mean() + 0.1 * LOSSES.exp().mean()
    assert float(second.exp()) == pytest.approx(float(expected), rel=1e-5)


def test_weights_are_clipped_and_do_not_overflow() -> None:
    losses = torch.tensor([0.0, 500.0])
    found = rules.doubly_robust(losses, 1.0, torch.tensor(0.0), 10.0)
    assert found.tolist() == [1.0, 10.0]
    assert bool(rules.moving_log_mean(losses, 0.1, 0.1, torch.tensor(3.0)).isfinite())


def test_gairat_and_mail_prefer_the_hard_points() -> None:
    found = rules.gairat(torch.tensor([0, 5, 10]), 10)
    assert found.tolist() == sorted(found.tolist(), reverse=True)
    assert float(found.mean()) == pytest.approx(1)
    assert float(found[0] / found[1]) == pytest.approx(
        (math.tanh(4) + 1) / (math.tanh(-1) + 1), rel=1e-5
    )
    logits = torch.tensor([[0.0, 3.0], [0.0, 0.0], [3.0, 0.0]])
    hard = rules.mail(logits, torch.zeros(3, dtype=torch.long))
    assert hard.tolist() == sorted(hard.tolist(), reverse=True)


def test_the_average_is_kept_between_steps_and_weights_begin_after_the_warm_up() -> None:
    defense = defenses.build("doubly_robust(warm_up=0.5, width=4)")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, x = defense.network((1, 8, 8), 3), torch.rand(6, 1, 8, 8)
    y = torch.arange(6) % 3
    memory: dict[str, torch.Tensor] = {}
    early = defense.objective(network, x, y, Step(0.4, generator(0, 1, 0), memory))
    kept = memory["log_u"]
    late = defense.objective(network, x, y, Step(0.6, generator(0, 1, 0), memory))
    assert memory["log_u"] is not kept
    assert not torch.equal(early, late)
