"""How many bad points may be left where a random part was looked at."""

from __future__ import annotations

import numpy as np


def most_bad(rest: int, size: int, found: int, confidence: float = 0.95) -> int:
    """Bound the bad points among `rest`, of which `size` were drawn at random and `found` are bad.

    The largest number of bad points under which a draw with so few of them still has probability
    above 1 − confidence.
    """
    if size in (0, rest):
        return found if size else rest
    from scipy.stats import hypergeom  # takes a second to import

    bad = np.arange(found, rest - size + found + 1)
    return int(bad[hypergeom.cdf(found, rest, bad, size) > 1 - confidence].max())


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
