"""What the ledger says of points that are finished."""

from __future__ import annotations

import math
from collections.abc import Sequence

from robustkit.record.ledger import Ledger
from robustkit.record.points import Status


def statuses(ledger: Ledger, points: Sequence[int], limit: float = math.inf) -> dict[int, Status]:
    """Return the verdict on each of `points`, which are finished.

    Args:
        limit: the distance up to which a success counts; a minimum-norm run looks farther.
    """
    clean, broken = ledger.predicted(points), ledger.broken(points)
    proved = ledger.certified(points)
    found: dict[int, Status] = {}
    for p in points:
        if clean[p][0] != clean[p][1]:
            found[p] = "misclassified"
        elif p in broken and broken[p].distance <= limit:
            found[p] = "broken"
        else:
            found[p] = "certified" if proved.get(p) else "robust"
    return found
