"""Square and FAB: against the reference implementation, closed forms and brute force."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor, nn

from robustkit import rng
from robustkit.engine import attack, fresh_tasks
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search import Job, Reply, Search
from robustkit.threat import Norm, Threat

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}
REFERENCE = {"linf": "Linf", "l2": "L2", "l1": "L1"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Points(NamedTuple):
    model: nn.Module
    x: Tensor
    y: Tensor


@pytest.fixture(scope="module")
def points() -> Points:
    """A smooth network that tells five noisy prototypes apart, and points it gets right."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 8, 3, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(200, 5)
        )
    prototypes = torch.rand(5, 2, 10, 10, generator=generator)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(5, (n,), generator=generator)
        noise = torch.rand(n, 2, 10, 10, generator=generator)
        return (0.35 * prototypes[y] + 0.65 * noise).clamp(0, 1), y

    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        x, y = draw(64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    x, y = draw(80)
    right = model(x).argmax(1) == y
    assert int(right.sum()) > 50
    return Points(model.requires_grad_(False), x[right][:50], y[right][:50])


def drive(
    search: Search[Any],
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    threat: Threat,
    steps: int,
    rank: int = 0,
    seed: int = 0,
    first: int = 0,
) -> tuple[Tensor, list[Any]]:
    """Run all points side by side without stopping. Return the queries [steps, b, *f], the states."""
    ranked = model(x).argsort(1, descending=True)
    index = torch.arange(first, first + len(x))
    tasks = fresh_tasks(x, y, ranked, index, [Job(rank)] * len(x), "test", seed)
    state, queries, states = search.start(tasks, threat), [], []
    for _ in range(steps):
        query = state.query.clone().requires_grad_()
        queries.append(query.detach())
        states.append(state)
        logits = model(query)
        value = search.objective(logits, state)
        (gradient,) = torch.autograd.grad(value.sum(), query)
        state = search.step(state, Reply(logits.detach(), value.detach(), gradient), threat)
    return torch.stack(queries), [*states, state]


def budget(search: Search[Any], *arguments: Any, **options: Any) -> int:
    """How many queries a run asks for."""
    _, states = drive(search, *arguments, **options)
    spent = [bool(state.done.all()) for state in states]
    assert not any(bool(state.done.any()) for state in states[: spent.index(True)])
    return spent.index(True)


def scripted_square(draws: list[float], **options: Any) -> Any:
    """AutoAttack's Square, which takes its random numbers in [0, 1) from a list."""
    base = pytest.importorskip("pyautoattack.square").SquareAttack
    script = iter(draws)

    def random_choice(self: Any, shape: list[int]) -> Tensor:
        count = math.prod(shape)
        return torch.tensor([next(script) for _ in range(count)]).sub(0.5).sign().view(shape)

    def random_int(self: Any, low: int = 0, high: int = 1) -> Tensor:
        return torch.tensor([int(next(script) * (high + 1))])

    def eta(self: Any, side: int) -> Tensor:
        with mock.patch.object(torch, "rand", lambda *_: torch.tensor([next(script)])):
            return base.eta(self, side)  # type: ignore[no-any-return]

    scripted = type("Scripted", (base,), {f.__name__: f for f in (random_choice, random_int, eta)})
    return scripted(**options)


def script(norm: Norm, keys: rng.Keys, shape: tuple[int, int, int], queries: int) -> list[float]:
    """Our draws in the order in which the reference asks for its own."""
    channels, height, width = shape
    if norm == "linf":
        turns = [rng.uniform(keys, channels * width, 0)[0]]
        turns += [rng.uniform(keys, 2 + channels, turn)[0] for turn in range(1, queries + 1)]
    else:
        side = height // 5
        margin = (height - 5 * side) // 2
        tiles = ((height - margin) // side) * ((width - margin) // side)
        turns = [rng.uniform(keys, (channels + 1) * tiles, 0).view(-1, tiles).T.flatten()]
        order = [0, 2, 1, 3, *range(4, 5 + channels)]
        turns += [rng.uniform(keys, len(order), turn)[0, order] for turn in range(1, queries + 1)]
    return torch.cat(turns).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.01), ("l2", 0.1), ("l1", 0.4)])
def test_square_makes_the_queries_of_the_reference(points: Points, norm: Norm, eps: float) -> None:
    """Fed with the same random numbers, both ask for the same points, accepted or not."""
    threat, queries = Threat(norm, eps), 230
    x, y = points.x[3:4], points.y[3:4]
    ours, states = drive(
        attacks.build("square"), points.model, x, y, threat, queries + 1, seed=7, first=3
    )
    keys = rng.Keys(states[0].seed, states[0].point, states[0].task)
    asked: list[Tensor] = []

    def model(z: Tensor) -> Tensor:
        asked.append(z.clone())
        return points.model(z)  # type: ignore[no-any-return]

    reference = scripted_square(
        script(norm, keys, (2, 10, 10), queries),
        predict=model, norm=REFERENCE[norm], n_queries=queries, eps=eps, resc_schedule=False
    )  # fmt: skip
    reference.init_hyperparam(x)
    reference.attack_single_run(x, y)
    assert len(asked) == queries + 1
    kept = torch.stack([state.best_value for state in states[1:]]).flatten().diff() > 0
    assert 5 < int(kept.sum()) < queries - 5
    assert (torch.stack(asked) - ours).abs().max() < 2e-5


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rank", [1, 3])
def test_fab_makes_the_steps_of_the_reference(points: Points, norm: Norm, rank: int) -> None:
    """Every point at which the reference takes a gradient or a decision is one of our queries."""
    fab = pytest.importorskip("pyautoattack.fab_pt").FABAttack_PT
    asked: list[Tensor] = []

    def model(z: Tensor) -> Tensor:
        asked.append(z.detach().clone())
        return points.model(z)  # type: ignore[no-any-return]

    reference = fab(model, norm=REFERENCE[norm], n_iter=12, targeted=True)
    for row in range(6):
        x, y = points.x[row : row + 1], points.y[row : row + 1]
        asked.clear()
        reference.target_class = rank + 1
        reference.attack_single_run(x, y, is_targeted=True)
        theirs = _without_repeats(torch.cat(asked))
        ours, states = drive(
            attacks.build("fab(steps=12)"), points.model, x, y, Threat(norm, 1.0), 25, rank
        )
        spent = next(step for step, state in enumerate(states) if state.done)
        assert spent == len(theirs)
        assert (ours[:spent, 0] - theirs).abs().max() < 1e-3
        assert any(bool(state.pulled) for state in states)


def _without_repeats(z: Tensor) -> Tensor:
    """Drop the points equal to the one before: the reference asks twice at many."""
    new = (z[1:] != z[:-1]).flatten(1).any(1)
    return z[torch.cat([new.new_ones(1), new])]
