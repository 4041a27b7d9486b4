"""Which mean and scale make one image of another: the least ones, solved on a lattice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from robustkit.core.parametric import STEPS

Values = NDArray[np.float64]
_PAIRS, _TRIES = 512, 64  # pairs of pixels that rule positions out; positions that are tried
_EXACT = 1e-12  # of sums in float64


def nearest_positions(
    x: Values, apart: Values, z: NDArray[np.float32], means: Values, scales: Values
) -> tuple[int, int] | None:
    """Return i and j with z = clip(x + scales[j] · apart + means[i]) bit by bit, or None.

    Of several the pair with the least maximum of |i| and |j|; of those, with the least sum.

    Args:
        x, apart, z: the pixels [n]: clean, less their mean, and claimed (float32).
        means, scales: 2 · STEPS + 1 increasing values, 0 in the middle; all 0: it does not move.
    """
    pairs = np.unique(np.stack([x, apart, z.astype(np.float64)]), axis=1)
    few = pairs[:, np.linspace(0, pairs.shape[1] - 1, min(_PAIRS, pairs.shape[1])).astype(int)]
    j = np.arange(-STEPS, STEPS + 1) if scales.any() else np.zeros(1, dtype=np.int64)
    low, high = _allowed(few, scales[j + STEPS], means)
    rows = np.flatnonzero(low <= high)
    middle = np.clip(0, low[rows], high[rows])
    most = np.maximum(np.abs(middle), np.abs(j[rows]))
    order = np.lexsort([np.abs(middle) + np.abs(j[rows]), most])[:_TRIES]
    for at in order:
        # Where means lie close together, several fit all pairs up to their rounding.
        fitting = range(int(low[rows][at]), int(high[rows][at]) + 1)
        for i in sorted(fitting, key=abs)[:_TRIES]:
            chosen = int(j[rows][at])
            moved = _moved(pairs, means[i + STEPS], scales[chosen + STEPS])
            if np.array_equal(moved, pairs[2].astype(np.float32)):
                return i, chosen
    return None


def _moved(pairs: Values, mean: float, scale: float) -> NDArray[np.float32]:
    """Add in the order of `ParametricThreat.images`: mean, then scale."""
    found: NDArray[np.float32] = np.clip(pairs[0] + mean + scale * pairs[1], 0, 1).astype(
        np.float32
    )
    return found


def _allowed(
    pairs: Values, scales: Values, means: Values
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for each scale [s] the first and the last position of a mean that fits all pairs."""
    x, apart, z = pairs
    missing = z - (x + scales[:, None] * apart)
    rounded = np.spacing(z.astype(np.float32)).astype(np.float64) / 2
    below = np.where(z > 0, missing - rounded, -np.inf).max(1)
    above = np.where(z < 1, missing + np.where(z > 0, rounded, _EXACT), np.inf).min(1)
    low = np.searchsorted(means, below - _EXACT, "left") - STEPS
    high = np.searchsorted(means, above + _EXACT, "right") - 1 - STEPS
    if not means.any():  # one value, wherever it is looked up
        fits = (below <= _EXACT) & (above >= -_EXACT)
        low, high = np.where(fits, 0, 1), np.zeros(len(scales), dtype=np.int64)
    return low.astype(np.int64), high.astype(np.int64)
