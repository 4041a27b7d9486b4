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


SAMPLE = {"near": [90, 91], "random": [92], "rest": 8}


def names(
    *on_all: Any,
    audit: tuple[Any, ...] = (GRADIENT, BLIND),
    reserve: tuple[Any, ...] = (),
    findings: Findings | None = None,
    broken: Mapping[int, int] | None = None,
    escalated: bool = False,
    skipped: tuple[int, ...] = (),
    finished: bool = True,
    pursued: int | None = None,
) -> set[str]:
    """Return which flags are answered; `broken` tells by which stage points fell."""
    searches = [*on_all, *audit, *reserve]
    found_before = findings or Findings()
    answers = ("no_gradient",) if found_before.true else ()
    line = LineUp([Spec(f"s{i}") for i in range(len(searches))], searches, len(on_all), Audit([]),
                  len(reserve), found_before, answers)  # fmt: skip
    costs = {i: Cost(entered=int(i not in skipped), finished=finished)
             for i in range(len(searches))}  # fmt: skip
    found = {p: BrokenPoint(p, stage, 0, 0.0) for p, stage in (broken or {}).items()}
    memo: dict[str, Any] = {"escalated": escalated, "audit": SAMPLE}
    if pursued is not None:
        memo |= {"next": list(range(8)), "pursued": pursued, "finders": [len(on_all)]}
    ledger = SimpleNamespace(
        costs=lambda: costs,
        broken=lambda points=None: {p: found[p] for p in (found if points is None else points)
                                    if p in found},
        remembered=memo.get,
    )  # fmt: skip
    run: Any = SimpleNamespace(line=line, ledger=ledger)
    return {one.name for one in answered(run, FLAGS) if one.answered}


def test_surrogates_answer_what_they_were_followed_for() -> None:
    true = Findings(true=("bpda",))
    assert names(GRADIENT, ASIDE, findings=true, broken={1: 1}) == {"no_gradient", "transfer"}
    assert names(GRADIENT, ASIDE, findings=true) == {"no_gradient"}  # it broke nothing
    assert names(GRADIENT, ASIDE, findings=true, broken={1: 1}, finished=False) == set()


def test_noise_is_answered_by_as_many_draws_as_it_needs() -> None:
    assert names(AVERAGED, findings=Findings(eot=8)) == {"randomized"}
    assert names(AVERAGED, findings=Findings(eot=9)) == set()
    assert names(GRADIENT, findings=Findings(eot=8)) == set()


def test_attacks_without_gradients_are_answered_by_longer_ones_that_break_nothing() -> None:
    assert names(GRADIENT, reserve=(BLIND,)) == {"black_box"}
    assert names(GRADIENT, reserve=(BLIND,), skipped=(3,)) == set()  # never called for
    assert names(GRADIENT, reserve=(BLIND,), broken={5: 3}) == set()
    # Restarts are in reserve for another reason.
    assert names(GRADIENT, reserve=(GRADIENT, BLIND), skipped=(3,)) == {"black_box"}


def test_what_is_in_reserve_answers_for_no_audit() -> None:
    true = Findings(true=("bpda",))
    reserve = (GRADIENT, BLIND)  # stages 3 and 4, after an audit of 1 and 2
    assert names(GRADIENT, reserve=reserve, findings=true) >= {"no_gradient"}
    assert names(GRADIENT, reserve=reserve, findings=true, broken={5: 3}) == set()
    # The last attack on every survivor broke one; that others broke none of a sample is not enough.
    assert names(GRADIENT, reserve=reserve, findings=true, escalated=True, broken={5: 2}) == set()


def test_an_audit_that_went_to_everyone_must_end_with_both_kinds_of_attack_in_vain() -> None:
    audit = (BLIND, GRADIENT, BLIND)  # stages 1, 2 and 3
    assert names(ASIDE, audit=audit, escalated=True, broken={0: 0, 1: 1}) == {"transfer"}
    for last in (2, 3):  # after it no gradient attack is left, or nothing at all
        assert names(ASIDE, audit=audit, escalated=True, broken={0: 0, 1: last}) == set()


def test_what_was_pursued_must_end_with_a_block_that_held() -> None:
    before = {50: 0, 90: 1}  # a surrogate broke one point, the audit a near one
    assert names(ASIDE, broken=before, pursued=2) == {"transfer"}
    assert names(ASIDE, broken={**before, 0: 1}, pursued=4) == {"transfer"}
    assert names(ASIDE, broken={**before, 2: 1}, pursued=4) == set()
    assert names(ASIDE, broken=before, pursued=0) == set()  # nothing was left to pursue


def test_a_suite_that_looked_for_no_findings_answers_nothing() -> None:
    line = LineUp([], [], 0, None)
    run: Any = SimpleNamespace(line=line)
    assert answered(run, FLAGS) == FLAGS
