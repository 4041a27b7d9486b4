"""What the ledger says of points that are finished."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from robustkit.record.ledger_reader import LedgerReader
from robustkit.record.ledger_schema import BrokenPoint
from robustkit.record.points import Status


class Finished(NamedTuple):
    """Points of a ledger, read once: (label, predicted) of each, the broken ones, the verdicts."""

    predicted: dict[int, tuple[int, int]]
    broken: dict[int, BrokenPoint]
    status: dict[int, Status]


def read_finished(ledger: LedgerReader, points: Sequence[int], limit: float = math.inf) -> Finished:
    """Read `points`, which are finished, in their order.

    Args:
        limit: the distance up to which a success counts; a minimum-norm run looks farther.
    """
    predicted, broken = ledger.predicted(points), ledger.broken(points)
    proved = ledger.certified(points)
    return Finished(predicted, broken, dict(_verdicts(points, predicted, broken, proved, limit)))


def _verdicts(
    points: Sequence[int],
    predicted: dict[int, tuple[int, int]],
    broken: dict[int, BrokenPoint],
    proved: dict[int, bool],
    limit: float,
) -> Iterable[tuple[int, Status]]:
    for p in points:
        label, guess = predicted[p]
        if label != guess:
            yield p, "misclassified"
        elif p in broken and broken[p].distance <= limit:
            yield p, "broken"
        else:
            yield p, "certified" if proved.get(p) else "robust"
