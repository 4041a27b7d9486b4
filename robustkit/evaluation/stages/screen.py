"""An attack on the survivors in blocks, the nearest first, for as long as it breaks any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from robustkit.record.ledger import Ledger
from robustkit.record.ledger_schema import Cost
from robustkit.search.audit import Audit, draw, nearest_first


def screen(
    stage: int,
    points: Sequence[int],
    ledger: Ledger,
    audit: Audit,
    left: Callable[[Sequence[int]], Sequence[int]],
    seed: int,
    attack: Callable[[int, Sequence[int], bool], None],
    *,
    last: bool,
) -> None:
    """Run a stage on a sample of the survivors among `points`, and on others if it breaks any.

    The sample is drawn as for the audit, at half its size: the nearest points, and others at random
    for where being near says little. After it come blocks of its size, by falling nearness; the
    first one without a success is the last. Where a random point of the sample is broken, all
    others are attacked. The order is settled once and kept in the ledger: a run that was killed
    goes on with it.

    Args:
        audit: how the suite audits.
        left: tells which of some points are robust.
        attack: runs a stage on those of some points that are still robust; True: they are the last.
        last: no points are to come after these.
    """
    key, whose = f"screen {stage}", [points[0], len(points)] if points else []
    kept = ledger.remembered(key)
    if kept is None or kept["points"] != whose:  # of an earlier part of the run
        kept = {"points": whose} | _order(ledger, audit, left(points), seed, key)
        ledger.remember(key, kept)
    for block in kept["blocks"]:
        attack(stage, block, False)
        broken = _fallen(ledger, block, stage)
        if broken & set(kept["random"]):
            attack(stage, points, last)
            return
        if not broken:
            break
    ledger.write(stage, [], [], Cost(finished=last))


def reached(ledger: Ledger, points: Sequence[int], below: int | None) -> bool | None:
    """Tell where a screened stage led, for one that is the same with more draws.

    Args:
        below: the stage that averaged fewer draws; None: there was none.

    Returns:
        True: to all of `points`. False: to none, as it broke none. None: near ones alone fell.
    """
    if below is None:
        return None
    fell, order = _fallen(ledger, points, below), ledger.remembered(f"screen {below}")
    if not fell:
        return False
    # One that went to all without a sample of its own has left no order.
    own = order is not None and order["points"] == [points[0], len(points)]
    return not own or bool(fell & set(order["random"])) or None


def _fallen(ledger: Ledger, points: Sequence[int], stage: int) -> set[int]:
    """Return which of `points` a stage broke."""
    return {p for p, found in ledger.broken(points).items() if found.stage == stage}


def _order(
    ledger: Ledger, audit: Audit, robust: Sequence[int], seed: int, stream: str
) -> dict[str, Any]:
    """Draw the sample, and cut the others into blocks.

    From a stream of its own: the random points of an audit were then not all tried before.
    """
    closest = ledger.closest()
    half = replace(audit, near=audit.near / 2, random=audit.random / 2, least=-(-audit.least // 2))
    sample = draw(half, closest, robust, seed, stream)
    first = sorted(sample.points)
    rest = nearest_first(closest, [point for point in robust if point not in sample.points])
    cuts = range(0, len(rest), max(1, len(first)))
    blocks = [first, *(rest[start : start + len(first)] for start in cuts)]
    return {"blocks": blocks, "random": list(sample.random)}
