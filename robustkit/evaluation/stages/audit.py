"""The audit of a run: its sample, whether it alarms, and the attacks on whom it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from robustkit.core.spec import Spec
from robustkit.record.ledger import Ledger
from robustkit.record.ledger_schema import Cost
from robustkit.registry import attacks
from robustkit.search.audit import Sample, alarming, draw, many, nearest_first
from robustkit.search.protocol import surrogate_of
from robustkit.search.suites import LineUp


def perform(
    line: LineUp,
    ledger: Ledger,
    left: Callable[[], Sequence[int]],
    everything: Sequence[int],
    seed: int,
    attack: Callable[[int, Sequence[int], bool], None],
) -> None:
    """Attack a sample of the survivors, and more of them if too much of it breaks.

    All of them if the random part broke; else those that come next in order of need, by the attacks
    that broke near ones (`_pursue`). The reserve runs where attacks of its kind broke points that
    should have fallen before (`masked`, `shallow`). The sample is drawn once and kept in the
    ledger: a run that was killed goes on with it.

    Args:
        left: tells which points the search has left robust.
        attack: runs a stage on those of some points that are still robust; True: they are the last.
    """
    audit, stages = line.audit, line.auditing
    if audit is None:
        return
    sample = drawn(ledger)
    if sample is None:
        sample = draw(audit, ledger.closest(), left(), seed)
        ledger.remember("audit", asdict(sample))
    for stage in stages:
        attack(stage, sorted(sample.points), False)
    escalate = ledger.remembered("escalated")
    if escalate is None:  # a run that was killed goes on as it decided
        broken = broken_by_audit(ledger, sample, line)
        alarmed = alarming(audit, sample, broken, len(everything))
        escalate = alarmed and bool(broken & set(sample.random))
        if alarmed and not escalate:
            others = [point for point in left() if point not in sample.points]
            finders = sorted({found.stage for p, found in ledger.broken(broken).items()})
            ledger.remember("next", nearest_first(ledger.closest(), others))
            ledger.remember("finders", finders)
        ledger.remember("escalated", escalate)
    if not escalate:
        _pursue(ledger, len(sample.near), attack)
    for stage in stages:
        if escalate:
            attack(stage, everything, True)
        else:
            ledger.write(stage, [], [], Cost(finished=True))
    called = {True: shallow(ledger, line), False: masked(ledger, line, len(everything))}
    for stage in line.reserved:
        if called[follows_gradients(line.searches[stage])]:
            attack(stage, everything, True)
        else:
            ledger.write(stage, [], [], Cost(finished=True))


def _pursue(ledger: Ledger, size: int, attack: Callable[[int, Sequence[int], bool], None]) -> None:
    """Go on with the attacks that broke near points, block by block, until a block holds.

    A block has as many points as were taken for near. Where none of them falls, fewer than 17% of
    such points would (95%, by 16 of them), and those behind them are farther.
    """
    ahead, finders = ledger.remembered("next") or [], ledger.remembered("finders") or []
    for start in range(0, len(ahead), max(size, 1)):  # with no near points, none is ahead
        block = ahead[start : start + size]
        for stage in finders:
            attack(stage, block, False)
        ledger.remember("pursued", start + len(block))
        if not _fallen(ledger, block):
            return


def pursued(ledger: Ledger) -> tuple[list[int], set[int]]:
    """Return the points beyond the sample that `_pursue` attacked, and those it broke."""
    ahead: list[int] = ledger.remembered("next") or []
    ahead = ahead[: ledger.remembered("pursued") or 0]
    return ahead, _fallen(ledger, ahead)


def held(ledger: Ledger) -> bool:
    """Tell whether the sample held, or the last block of the next nearest did."""
    if ledger.remembered("next") is None:
        return True
    (ahead, _), sample = pursued(ledger), drawn(ledger)
    size = max(1, len(sample.near)) if sample else 1
    last = ahead[(len(ahead) - 1) // size * size :] if ahead else []
    return bool(last) and not _fallen(ledger, last)


def _fallen(ledger: Ledger, points: Sequence[int]) -> set[int]:
    """Return which of `points` the attacks that are pursued broke."""
    finders = ledger.remembered("finders") or []
    return {p for p, found in ledger.broken(points).items() if found.stage in finders}


def unaudited(line: LineUp, ledger: Ledger) -> bool:
    """Tell whether an audit was due and has not come to its end."""
    costs = ledger.costs()
    stages = range(line.audited, len(line.specs))
    return line.audit is not None and not all(costs.get(s, Cost()).finished for s in stages)


def masked(ledger: Ledger, line: LineUp, n: int) -> bool:
    """Tell whether attacks without gradients broke points: more than one, and than 0.2% of all.

    The reserve itself does not count: a run that was killed goes on as it began.
    """
    before = range(line.reserved.start)
    blind = {stage for stage in before if _blind(line.specs[stage], line.searches[stage])}
    return many(sum(found.stage in blind for found in ledger.broken().values()), n)


def shallow(ledger: Ledger, line: LineUp) -> bool:
    """Tell whether attacks of the audit with gradients broke points, and no block of others held.

    Those before it have then missed what others find from other starts: more starts may find more.
    """
    unsettled = ledger.remembered("escalated") or not held(ledger)
    along = {stage for stage in line.auditing if follows_gradients(line.searches[stage])}
    return bool(unsettled) and any(found.stage in along for found in ledger.broken().values())


def follows_gradients(search: Any) -> bool:
    """Tell whether an attack asks for gradients, of the model or of a surrogate."""
    return bool(getattr(search, "uses_gradient", True))


def _blind(spec: Spec, search: Any) -> bool:
    """Whether an attack finds its way without gradients, if not all of it."""
    if not follows_gradients(search):
        return True
    known = attacks.entry(spec.name).facts.get("white_box", True)
    return not known and not surrogate_of(search)


def drawn(ledger: Ledger) -> Sample | None:
    """Return the sample of a run, once it is drawn."""
    kept = ledger.remembered("audit")
    return kept and Sample(tuple(kept["near"]), tuple(kept["random"]), kept["rest"])


def broken_by_audit(ledger: Ledger, sample: Sample, line: LineUp) -> set[int]:
    """Return which points of the sample the audit broke."""
    broken = ledger.broken()
    return {p for p in sample.points if p in broken and broken[p].stage in line.auditing}
