"""How many bad points may be left where a random part was looked at."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln  # `scipy.stats` takes a second to import


class Hypergeometric(NamedTuple):
    """How many of `draws` drawn from `total` are among `bad`, for many such urns [m] at once."""

    total: NDArray[Any] | int
    bad: NDArray[Any] | int
    draws: NDArray[Any] | int

    def logpmf(self, k: NDArray[Any]) -> NDArray[Any]:
        """Return the log probability of k [m]."""
        rest = _log_choose(self.total - self.bad, self.draws - k)
        found: NDArray[Any] = _log_choose(self.bad, k) + rest - _log_choose(self.total, self.draws)
        return found

    def between(self, low: NDArray[Any], high: NDArray[Any]) -> NDArray[Any]:
        """Return the probability of low to high, both included [m]."""
        found = np.zeros(len(low))
        for row, (first, last) in enumerate(zip(low, high, strict=True)):
            urn = Hypergeometric(*(np.asarray(part)[row] for part in self))
            found[row] = np.exp(urn.logpmf(np.arange(first, last + 1))).sum()
        return found


def most_bad(rest: int, size: int, found: int, confidence: float = 0.95) -> int:
    """Bound the bad points among `rest`, of which `size` were drawn at random and `found` are bad.

    The largest number of bad points under which a draw with so few of them still has probability
    above 1 − confidence.
    """
    if size in (0, rest):
        return found if size else rest
    bad = np.arange(found, rest - size + found + 1)
    seen = np.arange(found + 1)[:, None]
    chance = np.exp(Hypergeometric(rest, bad, size).logpmf(seen))
    return int(bad[chance.sum(0) > 1 - confidence].max())


def _log_choose(n: NDArray[Any] | int, k: NDArray[Any] | int) -> NDArray[Any]:
    """Return log C(n, k), −∞ where it is zero."""
    n, k = np.broadcast_arrays(n, k)
    defined = (k >= 0) & (k <= n)
    kept = np.where(defined, k, 0)
    value = gammaln(n + 1) - gammaln(kept + 1) - gammaln(n - kept + 1)
    return np.where(defined, value, -np.inf)


def drawn_to_halve(rest: int, size: int, found: int, missed: int) -> int:
    """Return how many of `rest` must be drawn so that at most half of `missed` may be missed.

    If as large a share of them is bad as of those drawn so far.
    """
    return next(
        (
            more
            for more in range(size + 1, rest)
            if most_bad(rest, more, share := found * more // max(size, 1)) - share <= missed // 2
        ),
        rest,
    )
