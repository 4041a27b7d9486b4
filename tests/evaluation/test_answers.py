"""When a flag is answered: by what was meant for it, and an audit that ended quietly."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from robustkit.core.spec import Spec
from robustkit.evaluation.answers import answered
from robustkit.record.ledger_schema import BrokenPoint, Cost
from robustkit.search.audit import Audit
from robustkit.search.findings import Findings
from robustkit.search.suites import LineUp
from robustkit.verify.flags import flag

GRADIENT, BLIND = SimpleNamespace(uses_gradient=True), SimpleNamespace(uses_gradient=False)
ASIDE = SimpleNamespace(uses_gradient=True, surrogate="bpda")
AVERAGED = SimpleNamespace(uses_gradient=True, eot=8)
FLAGS = [flag(name, "seen") for name in ("no_gradient", "randomized", "black_box", "transfer")]


def names(
    *on_all: Any,
    audit: tuple[Any, ...] = (GRADIENT, BLIND),
    reserve: tuple[Any, ...] = (),
    findings: Findings | None = None,
    broken: Mapping[int, int] | None = None,
    escalated: bool = False,
    skipped: tuple[int, ...] = (),
    finished: bool = True,
) -> set[str]:
    """Return which flags are answered; `broken` tells by which stage points fell."""
    searches = [*on_all, *audit, *reserve]
    line = LineUp([Spec(f"s{i}") for i in range(len(searches))], searches, len(on_all), Audit([]),
                  len(reserve), findings or Findings(), ("no_gradient",))  # fmt: skip
    costs = {i: Cost(entered=int(i not in skipped), finished=finished)
             for i in range(len(searches))}  # fmt: skip
    found = {p: BrokenPoint(p, stage, 0, 0.0) for p, stage in (broken or {}).items()}
    ledger = SimpleNamespace(
        costs=lambda: costs, broken=lambda: found, remembered={"escalated": escalated}.get
    )
    run: Any = SimpleNamespace(line=line, ledger=ledger)
    return {one.name for one in answered(run, FLAGS) if one.answered}


def test_surrogates_answer_what_they_were_followed_for() -> None:
    assert names(GRADIENT, ASIDE) == {"no_gradient", "transfer"}
    assert names(GRADIENT) == set()
    assert names(GRADIENT, ASIDE, finished=False) == set()


def test_noise_is_answered_by_as_many_draws_as_it_needs() -> None:
    assert names(AVERAGED, findings=Findings(eot=8)) == {"randomized"}
    assert names(AVERAGED, findings=Findings(eot=9)) == set()
    assert names(GRADIENT, findings=Findings(eot=8)) == set()


def test_attacks_without_gradients_are_answered_by_longer_ones_that_break_nothing() -> None:
    assert names(GRADIENT, reserve=(BLIND,)) == {"black_box"}
    assert names(GRADIENT, reserve=(BLIND,), skipped=(3,)) == set()  # never called for
    assert names(GRADIENT, reserve=(BLIND,), broken={5: 3}) == set()


def test_an_audit_that_went_to_everyone_must_end_with_both_kinds_of_attack_in_vain() -> None:
    audit = (BLIND, GRADIENT, BLIND)  # stages 2, 3 and 4
    assert names(ASIDE, GRADIENT, audit=audit, escalated=True, broken={1: 2}) >= {"transfer"}
    for last in (3, 4):  # after it no gradient attack is left, or nothing at all
        assert names(ASIDE, GRADIENT, audit=audit, escalated=True, broken={1: last}) == set()


def test_a_suite_that_looked_for_no_findings_answers_nothing() -> None:
    line = LineUp([], [], 0, None)
    run: Any = SimpleNamespace(line=line)
    assert answered(run, FLAGS) == FLAGS
