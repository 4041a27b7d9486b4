"""FGSM and PGD: closed forms, the threat model, independence of rows, budgets."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.core.threat import Norm, Threat
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search.functional import attack
from robustkit.search.protocol import Job, Reply, Search
from robustkit.search.tasks import fresh_tasks

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}
EPS = {"linf": 0.1, "l2": 1.0, "l1": 4.0}


def linear(seed: int = 0, features: int = 40) -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    """Two classes, linear; points of class 0 near the center of the box; w and the margins."""
    g = torch.Generator().manual_seed(seed)
    model = nn.Linear(features, 2).requires_grad_(False)
    weight = torch.randn(features, generator=g)
    model.weight.copy_(torch.stack([torch.zeros(features), weight]))
    model.bias.copy_(torch.tensor([0.0, -0.5 * float(weight.sum()) - 0.4]))
    x = 0.5 + 0.01 * torch.randn(12, features, generator=g)
    logits = model(x)
    assert (logits[:, 0] > logits[:, 1]).all()
    return model, x, logits[:, 0] - logits[:, 1], weight


def smooth() -> tuple[nn.Module, Tensor, Tensor]:
    """A smooth random network, images with pixels at both ends of the box, and its predictions."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(100, 5))
        x = (torch.rand(7, 2, 10, 10) * 1.6 - 0.3).clamp(0, 1)
    model.requires_grad_(False)
    return model, x, model(x).argmax(1)


def drive(
    search: Search[Any], model: nn.Module, x: Tensor, y: Tensor, threat: Threat, steps: int,
    rank: int = 0, seed: int = 0, first: int = 0
) -> tuple[Tensor, list[Any]]:  # fmt: skip
    """Run all points without stopping. Return the queries [steps, b, *f] and the states."""
    ranked = model(x).argsort(1, descending=True)
    index = torch.arange(first, first + len(x))
    tasks = fresh_tasks(x, y, ranked, index, [Job(rank)] * len(x), "test", seed)
    state, queries, states = search.start(tasks, threat), [], []
    for _ in range(steps):
        query = state.query.clone().requires_grad_()
        queries.append(query.detach())
        logits = model(query)
        value = search.objective(logits, state)
        (gradient,) = torch.autograd.grad(value.sum(), query)
        state = search.step(state, Reply(logits.detach(), value.detach(), gradient), threat)
        states.append(state)
    return torch.stack(queries), states


@pytest.mark.parametrize("spec", ["fgsm", "pgd", "pgd(loss=margin, random_start=false)"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_model_is_broken_exactly_beyond_its_distance(spec: str, norm: Norm) -> None:
    model, x, margins, weight = linear()
    distance = margins / torch.linalg.vector_norm(weight, DUAL[norm])
    assert distance.max() < 0.45
    y = torch.zeros(len(x), dtype=torch.long)
    for row in range(len(x)):
        for factor, broken in ((0.999, False), (1.05, True)):
            threat, one = Threat(norm, float(distance[row]) * factor), slice(row, row + 1)
            z = attack(model, x[one], y[one], attacks.build(spec), threat)
            assert bool((z != x[one]).any()) is broken


@pytest.mark.parametrize("norm", NORMS)
def test_fgsm_is_the_best_linear_step_in_the_ball_and_the_box(norm: Norm) -> None:
    """Inside the box it reaches eps × dual norm; in l1 nothing in ball and box does better."""
    model, x, _, weight = linear(1)
    y, search = torch.zeros(len(x), dtype=torch.long), attacks.build("fgsm")
    threat = Threat(norm, 0.1)
    z = drive(search, model, x, y, threat, 2)[0][1]
    gain = (z - x) @ weight
    best = threat.eps * torch.linalg.vector_norm(weight, DUAL[norm])
    torch.testing.assert_close(gain, best.expand_as(gain), rtol=1e-4, atol=0)
    if norm == "l1":
        wide = Threat("l1", 3.3)
        z = drive(search, model, x, y, wide, 2)[0][1]
        assert wide.contains(z, x).all()
        room = torch.where(weight > 0, 1 - x, x)
        order = weight.abs().argsort(descending=True)
        for row in range(len(x)):
            left, bound = wide.eps, 0.0
            for place in order.tolist():
                used = min(left, float(room[row, place]))
                left, bound = left - used, bound + used * float(weight[place].abs())
            assert float((z - x)[row] @ weight) == pytest.approx(bound, rel=1e-4)


@pytest.mark.parametrize("spec", ["fgsm", "pgd", "pgd(loss=dlr)", "pgd(loss=targeted_margin)"])
@pytest.mark.parametrize("norm", NORMS)
def test_queries_stay_inside(spec: str, norm: Norm) -> None:
    model, x, y = smooth()
    search, threat = attacks.build(spec), Threat(norm, EPS[norm])
    rank = search.jobs(threat, 5)[0].rank
    queries, _ = drive(search, model, x, y, threat, 12, rank)
    for query in queries:
        assert threat.contains(query, x).all()


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_raises_the_loss(norm: Norm) -> None:
    """The loss ends above that of a random point; in linf and l2 also not below FGSM's result."""
    model, x, y = smooth()
    threat = Threat(norm, EPS[norm] / 2)
    loss = nn.CrossEntropyLoss(reduction="none")
    queries, _ = drive(attacks.build("pgd"), model, x, y, threat, 41)
    single, _ = drive(attacks.build("fgsm"), model, x, y, threat, 2)
    final = torch.stack([loss(model(z), y) for z in queries[-5:]]).amax(0)
    assert (final > loss(model(queries[0]), y)).all()
    # The constant steps of l1 circle around the vertex that FGSM hits in this nearly linear model.
    slack = 0.05 if norm == "l1" else 1e-4
    assert (final > loss(model(single[1]), y) - slack).all()


@pytest.mark.parametrize("spec", ["fgsm", "pgd"])
@pytest.mark.parametrize("norm", NORMS)
def test_rows_do_not_influence_each_other(spec: str, norm: Norm) -> None:
    model, x, y = smooth()
    search, threat = attacks.build(spec), Threat(norm, EPS[norm])
    together, _ = drive(search, model, x, y, threat, 8)
    for row in range(len(x)):
        one = slice(row, row + 1)
        alone, _ = drive(search, model, x[one], y[one], threat, 8, first=row)
        torch.testing.assert_close(alone[:, 0], together[:, row], atol=1e-5, rtol=0)


def test_random_starts_follow_the_seed_and_the_restart() -> None:
    model, x, y = smooth()
    search, threat = attacks.build("pgd(restarts=2)"), Threat("l2", 1.0)
    first, _ = drive(search, model, x, y, threat, 1, seed=1)
    again, _ = drive(search, model, x, y, threat, 1, seed=1)
    other, _ = drive(search, model, x, y, threat, 1, seed=2)
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).all()
    assert search.jobs(threat, 10) == [Job(0, 0), Job(0, 1)]
    assert Job(0, 0).key("pgd") != Job(0, 1).key("pgd")
    clean, _ = drive(attacks.build("pgd(random_start=false)"), model, x, y, threat, 1)
    assert torch.equal(clean[0], x)


@pytest.mark.parametrize(("spec", "queries"), [("fgsm", 2), ("pgd", 41), ("pgd(steps=7)", 8)])
def test_budgets(spec: str, queries: int) -> None:
    model, x, y = smooth()
    _, states = drive(attacks.build(spec), model, x, y, Threat("linf", 0.1), queries)
    assert not any(bool(state.done.any()) for state in states[:-1])
    assert states[-1].done.all()


def test_targeted_losses_run_once_per_target() -> None:
    threat = Threat("linf", 0.1)
    search = attacks.build("pgd(loss=targeted_dlr, targets=3, restarts=2)")
    assert [tuple(job) for job in search.jobs(threat, 10)] == [
        (1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)
    ]  # fmt: skip
    assert [job.rank for job in search.jobs(threat, 2)] == [1, 1]


def test_restarts_without_a_random_start_are_refused() -> None:
    with pytest.raises(UsageError, match="would repeat the same run"):
        attacks.build("pgd(restarts=2, random_start=false)")
