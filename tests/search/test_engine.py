"""Continuous batching, watched through a scripted search, model and judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from robustkit.core.threat import Threat
from robustkit.errors import RobustkitError, UsageError
from robustkit.models.surrogates.resolve import Joint
from robustkit.registry import attacks
from robustkit.search.engine import Engine
from robustkit.search.functional import attack
from robustkit.search.protocol import Job, Reply, Search, Tasks
from robustkit.search.query import ask, passes
from robustkit.search.tasks import Outcome, Work, fresh_tasks

WIDE = Threat("linf", 1e9, lower=-1e9, upper=1e9)
NEVER = 10**6


class State(NamedTuple):
    query: Tensor
    done: Tensor
    x: Tensor
    asked: Tensor


@dataclass(frozen=True)
class Script:
    """Counts down from x to 0 and below; the model is fooled from 0 on. Ends after `budget`."""

    budget: int = 10
    uses_gradient: bool = True
    stays_inside: bool = True

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        return [Job()]

    def start(self, tasks: Tasks, threat: Threat) -> State:
        zero = torch.zeros_like(tasks.y)
        return State(tasks.x, zero > 0, tasks.x, zero)

    def objective(self, logits: Tensor, state: State) -> Tensor:
        return logits[:, 1] - logits[:, 0]

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        if self.uses_gradient:
            assert bool((reply.gradient == -2).all())
        asked = state.asked + 1
        return State(state.x - asked[:, None], asked >= self.budget, state.x, asked)


class Model:
    """Fooled where the input is 0 or less. Remembers the sizes of the batches."""

    def __init__(self, limit: int | None = None, error: Callable[[], Exception] | None = None):
        self.sizes: list[int] = []
        self.limit, self.error = limit, error

    def __call__(self, x: Tensor) -> Tensor:
        if self.limit is not None and len(x) > self.limit and self.error is not None:
            raise self.error()
        self.sizes.append(len(x))
        return torch.cat([x - 0.5, 0.5 - x], dim=1)


class Judge:
    """Gives every task its countdown and remembers what it is told."""

    def __init__(self, falls: dict[Work, int], doubts: dict[Work, int] | None = None) -> None:
        self.falls, self.doubts = falls, dict(doubts or {})
        self.started: list[Work] = []
        self.asked: list[tuple[Work, float]] = []
        self.outcomes: dict[Work, Outcome] = {}
        self.batches: list[list[Work]] = []

    def tasks(self, work: Sequence[Work]) -> Tasks:
        self.started += work
        x = torch.tensor([[float(self.falls[item])] for item in work])
        zero = torch.zeros(len(work), dtype=torch.long)
        return Tasks(x, zero, zero[:, None], zero - 1, zero, zero, zero)

    def confirm(self, work: Sequence[Work], z: Tensor, x: Tensor, y: Tensor) -> list[bool]:
        self.asked += [(item, float(row)) for item, row in zip(work, z, strict=True)]
        stands = []
        for item in work:
            self.doubts[item] = self.doubts.get(item, 0) - 1
            stands.append(self.doubts[item] < 0)
        return stands

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        self.batches.append([item.work for item in outcomes])
        for item in outcomes:
            assert item.work not in self.outcomes
            self.outcomes[item.work] = item


def play(
    falls: dict[Work, int],
    *,
    slots: int,
    search: Search[Any] | None = None,
    model: Model | None = None,
    doubts: dict[Work, int] | None = None,
    stride: int = 1,
    threat: Threat = WIDE,
) -> tuple[Judge, Engine]:
    judge, model = Judge(falls, doubts), model or Model()
    engine = Engine(model, threat, slots, stride)
    engine.run(search or Script(), iter(falls), len(falls), judge)
    return judge, engine


def line(*countdowns: int) -> dict[Work, int]:
    """One task per point."""
    return {Work(point, 0): count for point, count in enumerate(countdowns)}


@pytest.mark.parametrize("gradient", [True, False])
def test_passes_are_counted_exactly(gradient: bool) -> None:
    judge, _ = play(line(1, 3, NEVER), slots=8, search=Script(7, uses_gradient=gradient))
    counts = [tuple(judge.outcomes[Work(point, 0)][1:4]) for point in range(3)]
    back = int(gradient)
    assert counts == [(False, 2, 2 * back), (False, 4, 4 * back), (True, 7, 7 * back)]
    assert judge.asked == [(Work(0, 0), 0.0), (Work(1, 0), 0.0)]


def test_a_success_at_the_last_pass_counts_as_success() -> None:
    judge, _ = play(line(6), slots=1, search=Script(7))
    assert judge.outcomes[Work(0, 0)] == Outcome(Work(0, 0), False, 7, 7)
    judge, _ = play(line(7), slots=1, search=Script(7))
    assert judge.outcomes[Work(0, 0)] == Outcome(Work(0, 0), True, 7, 7)
    assert not judge.asked


def test_freed_slots_are_filled_at_once() -> None:
    """No pass is spent on a fallen point, and the batch is full while tasks wait."""
    model = Model()
    countdowns = [1, 5, 2, 1, 4, NEVER, 3, 1]
    judge, engine = play(line(*countdowns), slots=3, model=model)
    spent = [min(count + 1, 10) for count in countdowns]
    assert [judge.outcomes[Work(p, 0)].forwards for p in range(8)] == spent
    assert sum(model.sizes) == sum(spent) == engine.evaluated
    assert len(model.sizes) == engine.steps
    assert judge.started == [Work(point, 0) for point in range(8)]
    full = model.sizes.count(3)
    assert model.sizes[:full] == [3] * full
    assert sum(model.sizes[full:]) < 10


def test_the_batch_shrinks_when_nothing_waits() -> None:
    model = Model()
    play(line(*range(1, 33)), slots=32, model=model, search=Script(40))
    assert model.sizes[0] == 32
    assert model.sizes == sorted(model.sizes, reverse=True)
    assert model.sizes[-1] == 1
    needed = sum(range(2, 34))
    assert needed <= sum(model.sizes) <= needed * 9 / 8


def test_many_slots_wait_for_a_sixteenth_before_they_are_refilled() -> None:
    """Refilling costs time, so a large floor gathers a few free slots; every task still runs."""
    model = Model()
    countdowns = [1 + point % 9 for point in range(300)]
    judge, _ = play(line(*countdowns), slots=64, model=model)
    assert len(judge.outcomes) == 300
    assert max(model.sizes) == 64
    assert sum(model.sizes) <= 1.1 * sum(count + 1 for count in countdowns)


def test_a_fallen_point_cancels_its_other_tasks() -> None:
    falls = {Work(0, job): count for job, count in enumerate([NEVER, 5, 2, 1, NEVER, 1])}
    falls[Work(1, 0)] = NEVER
    judge, _ = play(falls, slots=4)
    assert {work for work in judge.started if work.point == 0} == {Work(0, j) for j in range(4)}
    assert set(judge.batches[0]) == {Work(0, j) for j in range(4)}
    assert all(judge.outcomes[Work(0, j)] == Outcome(Work(0, j), False, 2, 2) for j in range(4))
    assert judge.outcomes[Work(1, 0)].spent
    assert judge.asked == [(Work(0, 3), 0.0)]


def test_what_is_not_confirmed_goes_on() -> None:
    doubts = {Work(0, 0): 2, Work(1, 0): NEVER}
    judge, _ = play(line(3, 3, 1), slots=4, doubts=doubts)
    assert [z for work, z in judge.asked if work.point == 0] == [0.0, -1.0, -2.0]
    assert judge.outcomes[Work(0, 0)] == Outcome(Work(0, 0), False, 6, 6)
    assert len([work for work, _ in judge.asked if work.point == 1]) == 7
    assert judge.outcomes[Work(1, 0)] == Outcome(Work(1, 0), True, 10, 10)


def test_queries_outside_are_no_candidates_of_a_search_that_wanders() -> None:
    """From 3 the first query at 0 or below is 3 away; the ball ends at 2.5."""
    near = Threat("linf", 2.5, lower=-100, upper=100)
    judge, _ = play(line(3, 2), slots=2, threat=near, search=Script(stays_inside=False))
    assert judge.outcomes[Work(0, 0)].spent
    assert judge.asked == [(Work(1, 0), 0.0)]


def test_queries_of_a_search_that_stays_inside_go_to_the_judge() -> None:
    near = Threat("linf", 2.5, lower=-1e9, upper=1e9)
    judge, _ = play(line(3), slots=2, threat=near)
    assert judge.asked == [(Work(0, 0), 0.0)]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_no_numbers_name_their_points(bad: float) -> None:
    class Broken(Model):
        def __call__(self, x: Tensor) -> Tensor:
            logits = super().__call__(x)
            return torch.where((x == 4).expand_as(logits), bad, logits)

    with pytest.raises(
        RobustkitError, match=r"NaN or infinite logits .* of points 1, 3\."
    ) as caught:
        play(line(1, 5, 2, 5), slots=4, model=Broken(), search=Script(uses_gradient=False))
    assert "mend the model" in str(caught.value)


def test_nonsense_outside_the_threat_model_only_ends_the_search_there() -> None:
    """FAB walks outside the ball, where a model owes nothing."""

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = torch.stack([x[:, 0] - 0.5, 0.5 - x[:, 0]], 1)
            return torch.where(((x - 0.6).abs().amax(1) > 0.05)[:, None], torch.nan, logits)

    x, threat = torch.full((3, 4), 0.6), Threat("linf", 0.04)
    found = attack(Broken(), x, torch.zeros(3, dtype=torch.long), attacks.build("fab"), threat)
    assert torch.equal(found, x)
    with pytest.raises(RobustkitError, match="inside the threat model of points 0, 1, 2"):
        attack(
            Broken(), x, torch.zeros(3, dtype=torch.long), attacks.build("fgsm"),
            Threat("linf", 0.08),
        )  # fmt: skip


def test_an_idle_slot_may_answer_nonsense() -> None:
    """A slot that ended is still evaluated until it is filled; its answer does not matter."""

    class Late(Model):
        def __call__(self, x: Tensor) -> Tensor:
            logits = super().__call__(x)
            return torch.where((x < 0).expand_as(logits), torch.nan, logits)

    falls = line(*([8] * 20), 1)
    judge, _ = play(falls, slots=21, model=Late(), search=Script(uses_gradient=False))
    assert len(judge.outcomes) == 21


def out_of_memory() -> Exception:
    return torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def out_of_host_memory() -> Exception:
    return RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 12 bytes")


@pytest.mark.parametrize("error", [out_of_memory, out_of_host_memory])
@pytest.mark.parametrize("stride", [1, 4])
def test_out_of_memory_halves_the_slots_and_loses_no_task(
    error: Callable[[], Exception], stride: int
) -> None:
    model, countdowns = Model(3, error), [1, 5, 2, 1, 4, NEVER, 3, 1, 2, 2, 6, NEVER, 1, 9, 3, 2]
    judge, engine = play(line(*countdowns), slots=16, model=model, stride=stride)
    assert engine.slots == 2
    assert max(model.sizes) == 2
    assert {work.point: outcome.spent for work, outcome in judge.outcomes.items()} == {
        point: count == NEVER for point, count in enumerate(countdowns)
    }
    assert [judge.outcomes[Work(p, 0)].forwards for p in range(16)] == [
        min(count + 1, 10) for count in countdowns
    ]


def test_out_of_memory_with_one_slot_ends_the_run() -> None:
    with pytest.raises(RobustkitError, match="out of memory with a single point in flight"):
        play(line(1, 2, 3), slots=8, model=Model(0, out_of_memory))


def test_other_errors_of_the_model_are_not_hidden() -> None:
    with pytest.raises(RuntimeError, match=r"^shapes cannot be multiplied$"):
        play(line(1), slots=1, model=Model(0, lambda: RuntimeError("shapes cannot be multiplied")))


@pytest.mark.parametrize("slots", [1, 3, 64])
@pytest.mark.parametrize("stride", [2, 5])
def test_a_longer_stride_gives_the_same_verdicts(stride: int, slots: int) -> None:
    falls = {
        Work(point, job): [NEVER, 7, 2, NEVER, 9, 1, 12][(3 * point + 2 * job) % 7]
        for job in range(3)
        for point in range(11)
    }
    strict, _ = play(falls, slots=slots)
    loose, _ = play(falls, slots=slots, stride=stride)
    assert verdicts(loose) == verdicts(strict)
    single = line(1, 5, NEVER, 2, 9, 10)
    runs = [play(single, slots=slots, stride=s)[0] for s in (1, stride)]
    assert runs[0].outcomes == runs[1].outcomes


def verdicts(judge: Judge) -> dict[int, bool]:
    """Whether each point stands: every task of it was tried to the end."""
    stands: dict[int, bool] = {}
    for work, outcome in judge.outcomes.items():
        stands[work.point] = stands.get(work.point, True) and outcome.spent
    return stands


def test_nothing_to_do() -> None:
    judge, engine = play({}, slots=4)
    assert (judge.outcomes, engine.steps) == ({}, 0)


def test_a_value_that_does_not_depend_on_the_input_has_gradient_zero() -> None:
    engine, x = Engine(Model(), WIDE, 4), torch.ones(2, 1)
    state = Script().start(Judge(line(1, 1)).tasks([Work(0, 0), Work(1, 0)]), WIDE)

    @dataclass(frozen=True)
    class Flat(Script):
        def objective(self, logits: Tensor, state: State) -> Tensor:
            return torch.zeros(len(logits))

    reply = engine.ask(Flat(), state, torch.zeros(2, dtype=torch.long))
    assert torch.equal(reply.gradient, torch.zeros_like(x))


class Plain:
    """A judge for real searches that keeps the outcomes."""

    def __init__(self, model: nn.Module, x: Tensor, jobs: Sequence[Job]) -> None:
        self.x, self.jobs, self.outcomes = x, jobs, list[Outcome]()
        self.ranked = model(x).argsort(1, descending=True)

    def tasks(self, work: Sequence[Work]) -> Tasks:
        index = torch.tensor([item.point for item in work])
        x, ranked = self.x[index], self.ranked[index]
        jobs = [self.jobs[item.job] for item in work]
        return fresh_tasks(x, ranked[:, 0], ranked, index, jobs, "plain", 0)

    def confirm(self, work: Sequence[Work], z: Tensor, x: Tensor, y: Tensor) -> list[bool]:
        return [True] * len(work)

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        self.outcomes += outcomes


@pytest.mark.parametrize(
    ("spec", "threat", "passes"),
    [
        ("apgd(steps=7)", Threat("linf", 1e-4), (8, 8)),
        ("apgd(loss=targeted_dlr, steps=12, targets=2)", Threat("l2", 1e-4), (13, 13)),
        ("apgd_l1(steps=10)", Threat("l1", 1e-4), (13, 13)),
        ("pgd(steps=9)", Threat("linf", 1e-4), (10, 10)),
        ("square(queries=20)", Threat("linf", 1e-4), (21, 0)),
        ("fgsm", Threat("linf", 1e-4), (2, 2)),
    ],
)
def test_a_point_that_survives_costs_what_the_attack_says(
    spec: str, threat: Threat, passes: tuple[int, int], nearest: nn.Module, prototypes: Tensor
) -> None:
    search, rows = attacks.build(spec), [0]

    def model(x: Tensor) -> Tensor:
        rows[0] += len(x)
        logits: Tensor = nearest(x)
        return logits

    jobs = search.jobs(threat, 4)
    judge = Plain(nearest, prototypes, jobs)
    queue = [Work(point, job) for job in range(len(jobs)) for point in range(4)]
    Engine(model, threat, 64).run(search, iter(queue), len(queue), judge)
    assert [outcome[1:4] for outcome in judge.outcomes] == [(True, *passes)] * len(queue)
    assert rows[0] == passes[0] * len(queue)


@pytest.fixture
def standing(hardened: nn.Module, bundled: Any) -> Iterator[tuple[Tensor, Tensor]]:
    x, y = bundled.fetch(range(0, 200, 5))
    yield x, y


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec", ["apgd(steps=15)", "apgd(loss=targeted_dlr, steps=10, targets=3)", "square(queries=40)"]
)
def test_verdicts_of_a_real_model_do_not_depend_on_the_slots(
    spec: str, hardened: nn.Module, standing: tuple[Tensor, Tensor]
) -> None:
    (x, y), threat = standing, Threat("linf", 0.1)
    found = [
        attack(hardened, x, y, attacks.build(spec), threat, slots=slots) for slots in (1, 7, 64)
    ]
    fell = [(z != x).flatten(1).any(1) for z in found]
    assert 3 < int(fell[0].sum()) < 37
    assert torch.equal(fell[0], fell[1])
    assert torch.equal(fell[0], fell[2])


def test_plain_attack_refuses_models_that_answer_nan(nearest: nn.Module) -> None:
    def model(x: Tensor) -> Tensor:
        logits: Tensor = nearest(x)
        return logits.where(x.flatten(1).sum(1, keepdim=True) > 0, torch.nan)

    x = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    x[1] = 0
    with pytest.raises(RobustkitError, match=r"NaN or infinite logits on the clean points 1$"):
        attack(model, x, torch.zeros(3).long(), attacks.build("fgsm"), Threat("linf", 0.1))


def test_plain_attack_keeps_no_graph(nearest: nn.Module, prototypes: Tensor) -> None:
    x = prototypes.clone().requires_grad_(True)
    threat = Threat("l2", 3.0)
    z = attack(nearest, x, torch.arange(4), attacks.build("pgd(steps=3)"), threat)
    assert not z.requires_grad
    assert x.grad is None


@pytest.mark.parametrize(("joint", "calls", "forwards"), [(False, 1, 2), (True, 0, 1)])
def test_a_surrogate_that_has_the_models_logits_saves_the_second_pass(
    joint: bool, calls: int, forwards: int
) -> None:
    class Declares(Model):
        def surrogates(self) -> dict[str, Callable[[Tensor], Any]]:
            def near(x: Tensor) -> Tensor:
                return 3 * torch.cat([x, -x], dim=1)

            own = Model()
            return {"near": Joint(lambda x: (near(x), own(x))) if joint else near}

    model, search = Declares(), attacks.build("pgd(surrogate=near)")
    zero = torch.zeros(4, dtype=torch.long)
    tasks = Tasks(torch.rand(4, 1), zero, zero[:, None], zero - 1, zero, zero, zero)
    state = search.start(tasks, Threat("linf", 0.1))
    reply = ask(model, search, state)
    torch.testing.assert_close(reply.logits, Model()(state.query))
    assert bool((reply.gradient < 0).all())  # of the surrogate
    assert (len(model.sizes), passes(model, search, state)) == (calls, (forwards, 1))


def test_an_attack_may_be_given_in_words(nearest: nn.Module, prototypes: Tensor) -> None:
    y, threat = torch.arange(4), Threat("l2", 3.0)
    built = attack(nearest, prototypes, y, attacks.build("pgd(steps=3)"), threat)
    assert torch.equal(attack(nearest, prototypes, y, "pgd(steps=3)", "l2:3"), built)
    with pytest.raises(UsageError, match="Unknown attack 'nothing'"):
        attack(nearest, prototypes, y, "nothing", threat)
