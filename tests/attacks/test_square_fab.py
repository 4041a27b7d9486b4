"""Square and FAB: against the reference implementation, closed forms and brute force."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustkit.core import rng
from robustkit.core.threat import Norm, Threat
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search.engine import Engine
from robustkit.search.functional import TrustingJudge, attack
from robustkit.search.protocol import Job, Reply, Search
from robustkit.search.query import ask, passes
from robustkit.search.tasks import Outcome, Work, fresh_tasks

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}
REFERENCE = {"linf": "Linf", "l2": "L2", "l1": "L1"}


class Points(NamedTuple):
    model: nn.Module
    x: Tensor
    y: Tensor


@pytest.fixture(scope="module")
def points() -> Points:
    """A smooth network that tells five noisy prototypes apart, and points it gets right."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.rand(5, 2, 10, 10, generator=generator)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(5, (n,), generator=generator)
        noise = torch.rand(n, 2, 10, 10, generator=generator)
        return (0.35 * prototypes[y] + 0.65 * noise).clamp(0, 1), y

    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = nn.Sequential(nn.Conv2d(2, 8, 3, 2, 1), nn.Tanh(), nn.Flatten())
        head = nn.Linear(200, 5)
    model = nn.Sequential(features, head).requires_grad_(False)
    x, y = draw(2000)
    wanted = 8 * nn.functional.one_hot(y, 5).float() - head.bias
    head.weight.copy_(torch.linalg.lstsq(features(x), wanted).solution.T)
    x, y = draw(80)
    right = model(x).argmax(1) == y
    assert int(right.sum()) > 50
    return Points(model, x[right][:50], y[right][:50])


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
    """Run all points without stopping. Return the queries [steps, b, *f] and the states."""
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

    def eta(self: Any, side: int) -> Any:
        with mock.patch.object(torch, "rand", lambda *_: torch.tensor([next(script)])):
            return base.eta(self, side)

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
    return torch.cat(turns).tolist()


@pytest.mark.parametrize(
    ("norm", "eps", "queries"), [("linf", 0.01, 230), ("l2", 0.1, 230), ("l1", 0.4, 60)]
)
def test_square_makes_the_queries_of_the_reference(
    points: Points, norm: Norm, eps: float, queries: int
) -> None:
    """Fed with the same random numbers, both ask for the same points, accepted or not.

    Less long in l1: the reference's projection leaves 1e-8 where the displacement is zero, and
    its next move scales that up to full size in a window that holds nothing else.
    """
    threat = Threat(norm, eps)
    x, y = points.x[3:4], points.y[3:4]
    ours, states = drive(
        attacks.build("square"), points.model, x, y, threat, queries + 1, seed=7, first=3
    )
    keys = rng.Keys(states[0].seed, states[0].point, states[0].task)
    queried: list[Tensor] = []

    def model(z: Tensor) -> Tensor:
        queried.append(z.clone())
        return points.model(z)  # type: ignore[no-any-return]

    reference = scripted_square(
        script(norm, keys, (2, 10, 10), queries),
        predict=model, norm=REFERENCE[norm], n_queries=queries, eps=eps, resc_schedule=False
    )  # fmt: skip
    reference.init_hyperparam(x)
    reference.attack_single_run(x, y)
    assert len(queried) == queries + 1
    kept = torch.stack([state.best_value for state in states[1:]]).flatten().diff() > 0
    assert 5 < int(kept.sum()) < queries - 5
    assert (torch.stack(queried) - ours).abs().max() < 2e-5


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rank", [1, 3])
def test_fab_makes_the_steps_of_the_reference(points: Points, norm: Norm, rank: int) -> None:
    """Every point at which the reference takes a gradient or a decision is one of our queries."""
    fab = pytest.importorskip("pyautoattack.fab_pt").FABAttack_PT
    queried: list[Tensor] = []

    def model(z: Tensor) -> Tensor:
        queried.append(z.detach().clone())
        return points.model(z)  # type: ignore[no-any-return]

    reference = fab(model, norm=REFERENCE[norm], n_iter=12, targeted=True)
    for row in range(6):
        x, y = points.x[row : row + 1], points.y[row : row + 1]
        queried.clear()
        reference.target_class = rank + 1
        reference.attack_single_run(x, y, is_targeted=True)
        theirs = _without_repeats(torch.cat(queried))
        ours, states = drive(
            attacks.build("fab(steps=12)"), points.model, x, y, Threat(norm, 1.0), 25, rank
        )
        spent = next(step for step, state in enumerate(states) if state.done)
        assert spent == len(theirs)
        assert (ours[:spent, 0] - theirs).abs().max() < 1e-3
        assert any(bool(state.pulled) for state in states)


def test_fab_takes_one_gradient_a_projection(points: Points) -> None:
    """An iterate that fools the model, as the one before did, is pulled back by its logits."""
    search, threat, steps = attacks.build("fab(steps=12)"), Threat("linf", 1e-6), 12
    counts = dict[Work, Outcome]()

    class Judge(TrustingJudge):
        def settle(self, outcomes: Sequence[Outcome]) -> None:
            counts.update((outcome.work, outcome) for outcome in outcomes)

    model, x, y = points
    ranked = model(x).argsort(1, descending=True)
    judge = Judge(x, y, ranked, search.jobs(threat, 10)[:2], "fab", 0, threat)
    tasks = [Work(point, job) for job in range(2) for point in range(6)]
    Engine(model, threat, 5).run(search, iter(tasks), len(tasks), judge)
    _, states = drive(search, model, x[:6], y[:6], threat, 30, rank=1)
    pulls = torch.stack([state.pulled & ~state.done for state in states]).sum(0)
    assert int(pulls.max()) > 3
    for point in range(6):
        told = counts[Work(point, 0)]
        first_pulls = 2  # these are not foreseen, and a probe may fail
        assert steps <= told.backwards <= steps + first_pulls
        assert told.forwards >= 1 + steps + int(pulls[point])
    assert sum(told.backwards for told in counts.values()) < 0.7 * sum(
        told.forwards for told in counts.values()
    )


def test_slots_that_need_no_gradient_are_asked_apart(points: Points) -> None:
    search, threat = attacks.build("fab"), Threat("linf", 0.1)
    model, x, y = points
    _, states = drive(search, model, x[:6], y[:6], threat, 4, rank=1)
    probing = torch.tensor([True, False, False, True, False, True])
    one = ask(model, search, states[-1]._replace(probing=probing))
    every = ask(model, search, states[-1]._replace(probing=torch.zeros_like(probing)))
    torch.testing.assert_close(one.logits, every.logits)
    torch.testing.assert_close(one.value, every.value)
    torch.testing.assert_close(one.gradient[~probing], every.gradient[~probing])
    assert not one.gradient[probing].any()
    assert every.gradient.flatten(1).any(1).all()
    forwards, backwards = passes(model, search, states[-1]._replace(probing=probing))
    assert torch.equal(torch.as_tensor(forwards).expand(6), torch.ones(6, dtype=torch.long))
    assert torch.equal(torch.as_tensor(backwards), (~probing).long())


def _without_repeats(z: Tensor) -> Tensor:
    """Drop the points equal to the one before: the reference asks twice at many."""
    new = (z[1:] != z[:-1]).flatten(1).any(1)
    return z[torch.cat([new.new_ones(1), new])]


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.06), ("l2", 0.8), ("l1", 4.0)])
def test_fab_breaks_what_the_reference_breaks(points: Points, norm: Norm, eps: float) -> None:
    """A point is broken at eps exactly if the reference's smallest perturbation is not longer.

    Points within 1% of eps may go either way: two float32 trajectories of 30 steps part a little.
    """
    fab = pytest.importorskip("pyautoattack.fab_pt").FABAttack_PT
    model, x, y = points
    threat = Threat(norm, eps)
    reference = fab(model, norm=REFERENCE[norm], n_iter=30, targeted=True)
    distance = torch.full((len(x),), math.inf, dtype=torch.float64)
    for rank in range(1, 5):
        reference.target_class = rank + 1
        z = reference.attack_single_run(x, y, is_targeted=True)
        found = (z != x).flatten(1).any(1)
        distance = torch.where(found, distance.minimum(threat.distance(z, x)), distance)
    ours = attack(model, x, y, attacks.build("fab(steps=30)"), threat)
    broken = (ours != x).flatten(1).any(1)
    clear = (distance / eps - 1).abs() > 0.01
    assert 5 < int(broken.sum()) < len(x) - 5
    assert int(clear.sum()) > len(x) - 5
    assert torch.equal(broken[clear], (distance < eps)[clear])


def test_square_breaks_as_many_as_the_reference(points: Points) -> None:
    """Mean number of broken points over five seeds each, within four standard errors.

    The reference is given the paper's places of windows, which include the last row and column.
    """
    base = pytest.importorskip("pyautoattack.square").SquareAttack

    def random_int(self: Any, low: int = 0, high: int = 1) -> Any:
        return base.random_int(self, low, high + 1)

    square = type("Inclusive", (base,), {"random_int": random_int})
    model, x, y = points
    threat, ours, theirs = Threat("linf", 0.3), [], []
    for seed in range(5):
        z = attack(model, x, y, attacks.build("square(queries=60)"), threat, seed=seed)
        ours.append(int((model(z).argmax(1) != y).sum()))
        reference: Any = square(
            model, "Linf", n_queries=60, eps=threat.eps, seed=seed, resc_schedule=False
        )
        theirs.append(int((model(reference.perturb(x, y)).argmax(1) != y).sum()))
    assert 5 < np.mean(ours) < len(x) - 5
    error = math.sqrt((np.var(ours, ddof=1) + np.var(theirs, ddof=1)) / 5)
    assert abs(np.mean(ours) - np.mean(theirs)) < 4 * error + 0.5


# Closed forms ------------------------------------------------------------------------------------


def linear(seed: int, d: tuple[int, ...]) -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor]:
    """Three classes, linear; points of class 0. Also each point's margins and the differences."""
    g = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(d), 3))
    weight = torch.randn(3, math.prod(d), generator=g)
    weight[0] = 0
    x = 0.5 + 0.01 * torch.randn(20, *d, generator=g)
    gap = 0.2 + torch.rand(2, generator=g)
    model[1].weight.data = weight
    # At the center of the box, class 0 is ahead by `gap`.
    model[1].bias.data = -weight.sum(1) * 0.5 - torch.tensor([0.0, *gap.tolist()])
    model.requires_grad_(False)
    logits = model(x)
    return model, x, logits.argmax(1), -logits[:, 1:], weight[1:]


@pytest.mark.parametrize("norm", NORMS)
def test_fab_succeeds_exactly_beyond_the_distance_to_the_nearest_class(norm: Norm) -> None:
    model, x, y, margins, weight = linear(0, (1, 6, 6))
    assert (y == 0).all()
    lengths = torch.linalg.vector_norm(weight, DUAL[norm], dim=1)
    nearest = (margins / lengths).amin(1)
    assert nearest.max() < (0.3 if norm != "l1" else 0.45)
    for row in range(len(x)):
        for factor, broken in ((0.995, False), (1.05, True)):
            threat = Threat(norm, float(nearest[row]) * factor)
            z = attack(
                model, x[row : row + 1], y[row : row + 1], attacks.build("fab(steps=10)"), threat
            )
            assert bool((z != x[row]).any()) is broken


def test_square_succeeds_beyond_the_distance_to_the_nearest_class_and_never_below() -> None:
    model, x, y, margins, weight = linear(1, (1, 6, 6))
    nearest = (margins / weight.abs().sum(1)).amin(1)
    search = attacks.build("square(queries=1000)")
    below = attack(model, x, y, search, Threat("linf", float(nearest.min()) * 0.999))
    assert torch.equal(below, x)
    above = attack(model, x, y, search, Threat("linf", float(nearest.max()) * 1.25))
    assert (model(above).argmax(1) != y).all()


# Properties --------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["square", "fab"])
@pytest.mark.parametrize("norm", NORMS)
def test_rows_do_not_influence_each_other(points: Points, spec: str, norm: Norm) -> None:
    search, threat = attacks.build(spec), Threat(norm, {"linf": 0.05, "l2": 0.5, "l1": 3.0}[norm])
    rank, model, x, y = int(spec == "fab"), *points
    together, _ = drive(search, model, x[:6], y[:6], threat, 14, rank)
    for row in range(6):
        one = slice(row, row + 1)
        alone, _ = drive(search, model, x[one], y[one], threat, 14, rank, first=row)
        torch.testing.assert_close(alone[:, 0], together[:, row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_square_stays_inside_and_keeps_its_best_point(points: Points, norm: Norm) -> None:
    threat = Threat(norm, {"linf": 0.05, "l2": 0.5, "l1": 3.0}[norm])
    model, x, y = points
    queries, states = drive(attacks.build("square"), model, x, y, threat, 80)
    for query in queries:
        assert threat.contains(query, x).all()
        assert (threat.distance(query, x) > 0.3 * threat.eps).all()
    values = torch.stack([state.best_value for state in states[1:]])
    assert (values.diff(dim=0) >= 0).all()
    assert (values[-1] > values[0]).all()
    last = states[-1]
    torch.testing.assert_close(
        attacks.build("square").objective(model(last.best), last), last.best_value
    )


@pytest.mark.parametrize("norm", NORMS)
def test_fab_stays_in_the_box(points: Points, norm: Norm) -> None:
    model, x, y = points
    queries, _ = drive(attacks.build("fab"), model, x, y, Threat(norm, 1.0), 40, rank=1)
    assert queries.isfinite().all()
    assert ((queries >= 0) & (queries <= 1)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_square_depends_on_seed_and_point_only(points: Points, norm: Norm) -> None:
    search, threat = attacks.build("square"), Threat(norm, 0.1)
    model, x, y = points
    same = x[:1].expand(3, -1, -1, -1).contiguous(), y[:1].expand(3)
    first, _ = drive(search, model, *same, threat, 5, seed=1)
    again, _ = drive(search, model, *same, threat, 5, seed=1)
    other, _ = drive(search, model, *same, threat, 5, seed=2)
    assert torch.equal(first, again)
    assert (first != other).flatten(2).any(2).all()
    assert (first[:, 0] != first[:, 1]).flatten(1).any(1).all()


def test_budgets(points: Points) -> None:
    model, x, y = points
    threat = Threat("linf", 1e-6)
    assert budget(attacks.build("square(queries=7)"), model, x, y, threat, 12) == 8
    # Nothing fools a model that is constant but for class 0: no iterate is pulled back.
    model, x, y, _, _ = linear(0, (1, 6, 6))
    flat = nn.Sequential(model, _Shift())
    assert budget(attacks.build("fab(steps=7)"), flat, x, y, threat, 12, rank=1) == 8
    assert [job.rank for job in attacks.build("fab").jobs(threat, 10)] == list(range(1, 10))
    assert [job.rank for job in attacks.build("fab").jobs(threat, 3)] == [1, 2]
    assert len(attacks.build("square(restarts=3)").jobs(threat, 10)) == 3


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    ("spec", "early"),
    [("apgd(steps=50, loss=targeted_margin, within=0.5)", 12), ("fab(steps=50, within=0.5)", 11)],
)
def test_runs_that_will_not_come_through_end_early(norm: Norm, spec: str, early: int) -> None:
    """A linear model is as far from success as it says: at 0.6 of the distance, 0.67 eps."""
    model, x, y, margins, weight = linear(0, (1, 6, 6))
    distance = margins[:, 0] / torch.linalg.vector_norm(weight[0], DUAL[norm])
    rank = int((model(x)[0].argsort(descending=True) == 1).nonzero())
    search = attacks.build(spec)
    far, near = (Threat(norm, float(distance[0]) * factor) for factor in (0.6, 0.98))
    assert early <= budget(search, model, x[:1], y[:1], far, 120, rank=rank) <= 2 * early
    assert budget(search, model, x[:1], y[:1], near, 120, rank=rank) > 50


def test_random_search_ends_where_its_progress_will_not_do() -> None:
    model, x, y, margins, weight = linear(0, (1, 6, 6))
    distance = (margins / torch.linalg.vector_norm(weight, 1, dim=1)).amin(1)
    search = attacks.build("square(queries=160, outlook=2)")
    far, near = (Threat("linf", float(distance[0]) * factor) for factor in (0.1, 3.0))
    assert 20 <= budget(search, model, x[:1], y[:1], far, 200) <= 80
    z = attack(model, x[:1], y[:1], search, near)
    assert model(z).argmax(1) != y[:1]  # what the whole budget breaks


def test_apgd_cannot_tell_how_far_a_loss_without_a_sign_is() -> None:
    with pytest.raises(UsageError, match="positive on success alone, got ce"):
        attacks.build("apgd(within=0.5)").jobs(Threat("linf", 0.1), 10)


class _Shift(nn.Module):
    """Lifts class 0 out of reach."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits + torch.tensor([1e4, 0.0, 0.0])


@pytest.mark.parametrize("shape", [(30,), (2, 15), (1, 3, 2, 5), (1, 4, 6)], ids=str)
@pytest.mark.parametrize(
    ("norm", "dual", "share"), [("linf", 1, 1.5), ("l2", 2, 3), ("l1", math.inf, 4)]
)
def test_square_takes_any_shape(
    shape: tuple[int, ...], norm: Norm, dual: float, share: float
) -> None:
    model, x, y, margins, weight = linear(2, shape)
    nearest = (margins / torch.linalg.vector_norm(weight.flatten(1), dual, dim=1)).amin(1)
    threat = Threat(norm, share * float(nearest.max()))
    z = attack(model, x, y, attacks.build("square(queries=300)"), threat)
    assert (model(z).argmax(1) != y).float().mean() > 0.9
    assert threat.contains(z, x).all()
    inside = Threat(norm, 0.99 * float(nearest.min()))
    z = attack(model, x, y, attacks.build("square(queries=60)"), inside)
    assert (model(z).argmax(1) == y).all()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 28), (12, 20), (7, 5)])
def test_square_has_the_window_sizes_of_the_reference(height: int, width: int) -> None:
    square = pytest.importorskip("pyautoattack.square").SquareAttack
    windows = importlib.import_module("robustkit.attacks._windows")
    reference = square(None, n_queries=5000, resc_schedule=False)
    proposals = torch.tensor([0, 10, 11, 50, 51, 200, 201, 999, 1001, 2001, 4001, 4999])
    for least in (1, 3):
        table = windows.schedule(0.8, (height, width), least)
        for proposal, level in zip(proposals.tolist(), windows.level(proposals), strict=True):
            side = max(round(math.sqrt(reference.p_selection(proposal) * height * width)), least)
            side += least == 3 and side % 2 == 0
            assert table[int(level)] == (min(side, height, width),) * 2


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 12, 9), (50,)])
def test_square_paints_small_windows_pixel_by_pixel_as_it_paints_whole_images(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("robustkit.attacks.square")
    torch.manual_seed(0)
    x = torch.rand(9, *shape)
    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 4)).requires_grad_(False)
    found: list[Tensor] = []
    painted: list[int] = []
    blend = torch.lerp

    def counted(*given: Any) -> Tensor:
        painted[-1] += 1
        return blend(*given)

    monkeypatch.setattr(module.torch, "lerp", counted)
    for small in (module._SMALL, math.inf):
        monkeypatch.setattr(module, "_SMALL", small)
        painted.append(0)
        seen: list[Tensor] = []

        def model(z: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(z.clone())
            answer: Tensor = net(z) + 50 * torch.eye(4)[0]
            return answer

        search, zero = attacks.build("square(queries=120)"), torch.zeros(9, dtype=torch.long)
        attack(model, x, zero, search, Threat("linf", 0.05))
        found.append(torch.stack(seen[1:]))
    assert torch.equal(found[0], found[1])
    assert painted[0] < painted[1] / 2
