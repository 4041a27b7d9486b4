"""The suites `quick` and `fast`: budgets, the audit in a run, its verdict in the record."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import robustkit.registry as registry
from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset, subset
from robustkit.evaluation.budget import Budget, BudgetExhausted, StoppingRule
from robustkit.evaluation.evaluate import evaluate
from robustkit.evaluation.stages import audit
from robustkit.evaluation.watcher import Watcher
from robustkit.leaderboard.rows import row
from robustkit.record.ledger_schema import Cost
from robustkit.record.record import Record
from robustkit.registry import attacks, suites
from robustkit.search.audit import Audit

THREAT = Threat("linf", 0.08)
WEAK = ["pgd(steps=1, step_size=0.3, random_start=false)"]
FULL = ["apgd(steps=20)", "square(queries=30)"]
BLUNT = ["pgd(steps=1, step_size=0.2, random_start=false)", "apgd(steps=20)"]


@dataclass(frozen=True)
class Lazy:
    """Searches by a third of a step, and lets the audit find out."""

    threshold: float = 0.002

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        return WEAK

    def audit(self, threat: Threat) -> Audit:
        return Audit(FULL, near=0.2, random=0.2, least=4, threshold=self.threshold)


@pytest.fixture(scope="module")
def lazy() -> Iterator[None]:
    suites.register("lazy")(Lazy)
    yield
    registry.suites._entries.pop("lazy")


@pytest.fixture(scope="module")
def few(bundled: Dataset) -> Dataset:
    return subset(bundled, range(0, 1000, 12))


def run(model: nn.Module, data: Dataset, folder: Path, **options: Any) -> Record:
    return evaluate(
        model, name="net", data=data, threat=THREAT, folder=folder, **{"device": "cpu", **options}
    )


def outcome(record: Record) -> list[tuple[int, str, str | None]]:
    points = record.points
    return list(zip(points.index, points.status, points.attack, strict=True))


@pytest.fixture(scope="module")
def uninterrupted(
    lazy: None, hardened: nn.Module, few: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Record]:
    """The record of a run of this suite that nothing cut short."""

    @functools.cache
    def whole(suite: str) -> Record:
        return run(hardened, few, tmp_path_factory.mktemp("whole"), suite=suite)

    return whole


@pytest.mark.usefixtures("lazy")
def test_an_audit_that_alarms_gives_the_full_line_up(
    hardened: nn.Module, few: Dataset, uninterrupted: Callable[[str], Record], tmp_path: Path
) -> None:
    audited = uninterrupted("lazy")
    full = run(hardened, few, tmp_path / "full", attacks=[*WEAK, *FULL])
    assert audited.audit is not None
    assert audited.audit.near_broken + audited.audit.random_broken > 0
    assert audited.audit.escalated
    assert audited.audit_bound == 0
    assert outcome(audited) == outcome(full)
    assert audited.stages[1].entered == full.stages[1].entered


@dataclass(frozen=True)
class Blunt(Lazy):
    """Its audit begins with an attack that breaks nothing more."""

    def audit(self, threat: Threat) -> Audit:
        return Audit(BLUNT, near=0.2, random=0.2, least=4, threshold=0.002)


def test_points_of_the_sample_that_another_attack_broke_have_entered_too(
    hardened: nn.Module, few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suites, "_entries", dict(suites._entries))
    suites.register("blunt")(Blunt)
    audited = run(hardened, few, tmp_path / "audited", suite="blunt")
    full = run(hardened, few, tmp_path / "full", attacks=[*WEAK, *BLUNT])
    assert audited.audit is not None and audited.audit.escalated
    assert audited.audit.near_broken + audited.audit.random_broken > 0
    entered = [stage.entered for stage in audited.stages]
    assert entered[:2] == [stage.entered for stage in full.stages[:2]]
    assert outcome(audited) == outcome(full)


@pytest.mark.usefixtures("lazy")
def test_an_audit_that_does_not_alarm_states_its_bound(
    uninterrupted: Callable[[str], Record],
) -> None:
    record = uninterrupted("lazy(threshold=1.0)")
    audit = record.audit
    assert audit is not None
    assert not audit.escalated
    left = record.stages[0].entered - record.stages[0].broken
    assert audit.near == audit.random == round(0.2 * left)
    assert audit.rest == left - audit.near
    assert record.stages[1].entered == audit.near + audit.random
    assert record.stages[1].broken + record.stages[2].broken == (
        audit.near_broken + audit.random_broken
    )
    assert 0 < audit.missed <= audit.rest - audit.random
    assert record.audit_bound == audit.missed / record.n
    assert row(record, "r").audit_bound == record.audit_bound


@pytest.mark.usefixtures("lazy")
@pytest.mark.parametrize("suite", ["lazy", "lazy(threshold=1.0)"])
@pytest.mark.parametrize("length", [2, 4, 6, 9])
@pytest.mark.slow
def test_an_interrupted_audit_ends_like_an_uninterrupted_one(
    hardened: nn.Module, few: Dataset, uninterrupted: Callable[[str], Record], tmp_path: Path,
    suite: str, length: int,
) -> None:  # fmt: skip
    class Fuse(Watcher):
        left = length

        def advance(self, done: int, robust: int, points: int) -> None:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    whole = uninterrupted(suite)
    with pytest.raises(KeyboardInterrupt):
        run(hardened, few, tmp_path / "cut", suite=suite, watcher=Fuse(), batch_size=7)
    cut = run(hardened, few, tmp_path / "cut", suite=suite, batch_size=16)
    assert outcome(cut) == outcome(whole)
    assert cut.audit == whole.audit


@pytest.mark.usefixtures("lazy")
@pytest.mark.parametrize("suite", ["lazy", "lazy(threshold=1.0)"])
def test_a_budget_ends_an_audit_too_and_the_record_says_so(
    hardened: nn.Module, few: Dataset, uninterrupted: Callable[[str], Record], tmp_path: Path,
    suite: str,
) -> None:  # fmt: skip
    class Late(StoppingRule):
        """Time runs out at the first look in the second attack of the audit."""

        def check_time(self) -> None:
            if heard.attack == FULL[1]:
                raise BudgetExhausted("the time is up")

    class Heard(Watcher):
        attack = ""

        def stage(self, name: str, tasks: int) -> None:
            self.attack = name

    heard, whole = Heard(), uninterrupted(suite)
    search = run(hardened, few, tmp_path / "search", attacks=WEAK)
    spent = StoppingRule(Budget(forwards=search.forwards + 1))
    for pace, reason in ((spent, "forward passes are used"), (Late(), "the time is up")):
        cut = run(hardened, few, tmp_path / "cut", suite=suite, budget=pace, watcher=heard)
        assert pace.reason is not None and reason in pace.reason
        assert cut.n == whole.n and cut.audit is None and cut.audit_bound is None
        assert "nothing bounds what its search may have missed" in cut.notes[-1]
    done = run(hardened, few, tmp_path / "cut", suite=suite, budget=StoppingRule())
    assert (outcome(done), done.audit, done.notes) == (outcome(whole), whole.audit, whole.notes)


@pytest.mark.usefixtures("lazy")
def test_a_kill_after_the_last_attack_of_the_audit_does_not_forget_the_alarm(
    hardened: nn.Module, few: Dataset, uninterrupted: Callable[[str], Record], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole = uninterrupted("lazy")

    class Killed(BaseException):
        pass

    def perform(line: Any, ledger: Any, *rest: Any) -> None:
        keep = ledger.remember

        def remember(key: str, value: Any) -> None:
            if ledger.costs().get(len(line.specs) - 1, Cost()).finished:
                raise Killed
            keep(key, value)

        ledger.remember = remember
        audit.perform(line, ledger, *rest)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("robustkit.evaluation.run.perform", perform)
        run(hardened, few, tmp_path / "cut", suite="lazy")
    cut = run(hardened, few, tmp_path / "cut", suite="lazy")
    assert cut.audit == whole.audit
    assert cut.audit is not None and cut.audit.escalated


@pytest.mark.slow
@pytest.mark.usefixtures("brief_adaptive")
def test_fast_does_not_depend_on_the_batch(
    hardened: nn.Module, few: Dataset, tmp_path: Path
) -> None:
    suite = "fast(audit_least=2)"
    small = run(hardened, few, tmp_path / "a", suite=suite, batch_size=3, n=16)
    large = run(hardened, few, tmp_path / "b", suite=suite, batch_size=200, n=16)
    assert outcome(small) == outcome(large)
    assert small.audit == large.audit


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_quick_keeps_to_its_budget(norm: Any) -> None:
    """Steps and one pass each for the start of every leg or run."""
    threat, spent = Threat(norm, 0.1), 0
    for spec in suites.build("quick").attacks(threat):
        search = attacks.build(spec)
        if spec.startswith("relay"):
            legs = [search.first] + search.probes * [search.probe] + search.legs * [search.steps]
            spent += sum(leg + 1 for leg in legs)
        else:
            spent += len(search.jobs(threat, 10)) * (search.steps + 1)
    assert spent <= 120


def test_surrogates_are_attacked_too() -> None:
    specs = suites.build("fast").attacks(THREAT, ["smooth"])
    assert specs == ["relay", "relay(surrogate=smooth)"]
    quick = [
        attacks.build(spec) for spec in suites.build("quick").attacks(THREAT, ["smooth", "mean"])
    ]
    assert [search.surrogate for search in quick] == ["", "smooth", "mean"]
    assert [search.legs + search.probes for search in quick] == [3, 1, 0]


def test_suites_without_audit_say_so(hardened: nn.Module, few: Dataset, tmp_path: Path) -> None:
    record = run(hardened, few, tmp_path, suite="quick", n=10)
    assert record.audit is None
    assert record.audit_bound is None
