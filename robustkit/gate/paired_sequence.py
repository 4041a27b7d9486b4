"""The paired outcomes of one metric in the order in which they come, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from robustkit.core.stats.sequential import growth, lower_bound, peak
from robustkit.gate.verdict import Answer

_EXACT = 1e-9  # drops are multiples of 1 / total; a float is not


class PairedSequence:
    """Outcomes z = baseline − candidate in {−1, 0, 1}, of which the drop is the mean.

    Args:
        before: whether the baseline is right, for every point of the claim.
        order: the points seen so far, in random order.
        now: whether the candidate is right, for each of them.
        finite: whether the claim is about the points of `before`, or about what they are a sample
            of.
    """

    def __init__(
        self,
        before: Mapping[int, bool],
        order: Sequence[int],
        now: Mapping[int, bool],
        *,
        finite: bool,
    ) -> None:
        z = np.array([before[point] - now[point] for point in order], dtype=np.float64)
        self.y, self.n, self.total = (1 + z) / 2, len(order), len(before)
        self.size = self.total if finite else None
        self.lost, self.gained = int((z > 0).sum()), int((z < 0).sum())
        right = sum(before[point] for point in order)
        self.baseline_rate = right / self.n if self.n else 0.0
        can_lose = sum(before.values()) - right
        can_gain = self.total - self.n - can_lose
        net = self.lost - self.gained
        self.least = (net - can_gain) / self.total if finite else -1.0
        self.most = (net + can_lose) / self.total if finite else 1.0

    @property
    def drop(self) -> float:
        """The drop on the points seen."""
        return (self.lost - self.gained) / self.n if self.n else 0.0

    def answer(self, tolerance: float, fail: float, ok: float) -> Answer:
        """Decide "the drop is above the tolerance"; err with probability `fail` or `ok`."""
        if self.least > tolerance + _EXACT:
            return "regressed"
        if self.most <= tolerance + _EXACT:
            return "pass"
        if peak(self.y, (1 + tolerance) / 2, self.size) >= math.log(1 / fail):
            return "regressed"
        if peak(1 - self.y, (1 - tolerance) / 2, self.size) >= math.log(1 / ok):
            return "pass"
        return "undecided"

    def better(self, alpha: float) -> bool:
        """Whether the candidate is better in the population, not on these points by chance."""
        return peak(1 - self.y, 0.5) >= math.log(1 / alpha)

    def bounds(self, fail: float, ok: float) -> tuple[float, float]:
        """Return bounds of the drop that err with probability `fail` (low) and `ok` (high)."""
        low = 2 * lower_bound(self.y, fail, self.size) - 1
        high = 1 - 2 * lower_bound(1 - self.y, ok, self.size)
        return max(low, self.least), min(high, self.most)

    def more(self, tolerance: float, alpha: float) -> int | None:
        """Guess how many points more a decision takes, were the rates those seen so far."""
        lost, gained = ((count + 0.5) / (self.n + 1) for count in (self.lost, self.gained))
        worse = lost - gained > tolerance
        up, down = (lost, gained) if worse else (gained, lost)
        mean = (1 + tolerance) / 2 if worse else (1 - tolerance) / 2
        speed = growth(up, 1 - up - down, down, mean)
        wealth = peak(self.y if worse else 1 - self.y, mean, self.size)
        left = self.total - self.n
        needed = math.ceil((math.log(1 / alpha) - wealth) / speed) if speed > 1e-9 else None
        if self.size is not None:  # all of them decide
            return left if needed is None else max(1, min(needed, left))
        return None if needed is None else max(1, needed)
