"""What the ledger says of points that are finished."""

from __future__ import annotations

from collections.abc import Sequence

from robustkit.ledger import Ledger
from robustkit.record import Status


def statuses(ledger: Ledger, points: Sequence[int]) -> dict[int, Status]:
    """Return the verdict on each of `points`, which are finished."""
    clean, falls, proved = ledger.clean(), ledger.falls(), ledger.certified()
    found: dict[int, Status] = {}
    for p in points:
        if clean[p][0] != clean[p][1]:
            found[p] = "misclassified"
        else:
            found[p] = "broken" if p in falls else "certified" if proved.get(p) else "robust"
    return found
