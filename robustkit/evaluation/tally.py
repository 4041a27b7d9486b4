"""What a run has come to so far, for those who watch it."""

from __future__ import annotations

import time

from robustkit.evaluation.watcher import Watcher
from robustkit.record.ledger import Ledger

_PAUSE = 1.0  # seconds between two readings within a stage
_PULSE = 0.25  # seconds between two counts of queries
_SHARE = 20  # a reading takes at most one part in so many of the time of a run


class Tally:
    """Counts broken and proved points and passes, as the ledger has them, and tells a watcher.

    Args:
        limit: the distance up to which a success counts.
    """

    def __init__(self, ledger: Ledger, watcher: Watcher, limit: float) -> None:
        self._ledger, self._watcher, self._limit = ledger, watcher, limit
        self._next = 0.0

    def tell(self, *, now: bool = False) -> None:
        """Tell it `now`, at the end of a stage, or if it was not told lately."""
        began = time.monotonic()
        if not now and began < self._next:
            return
        broken = sum(found.distance <= self._limit for found in self._ledger.broken().values())
        proved = sum(self._ledger.certified().values())
        forwards = sum(cost.forwards for cost in self._ledger.costs().values())
        self._watcher.tally(broken, proved, forwards)
        ended = time.monotonic()
        self._next = ended + max(_PAUSE, _SHARE * (ended - began))


class Pulse:
    """Tells a watcher how many queries a stage has made, a few times a second."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher, self._next = watcher, 0.0

    def __call__(self, done: int) -> None:
        """Tell it, if it was not told lately."""
        if (now := time.monotonic()) >= self._next:
            self._watcher.queries(done)
            self._next = now + _PULSE
