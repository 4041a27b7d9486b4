"""Ranks of the rows of a table, with ties where the data do not separate them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from robustkit.core.stats.paired import fisher_all, mcnemar_all


class Outcomes(NamedTuple):
    """One row of a table: which points were evaluated, and whether the model is robust on each."""

    digest: str
    """Equal for two rows exactly when the points are the same."""
    robust: Mapping[int, bool]
    """By position in the data set."""


def holm(p: Float[np.ndarray, " m"] | Sequence[float]) -> list[float]:
    """Adjust p-values so that all together err with the probability that each one states.

    Rejecting those ≤ alpha keeps the chance of any false rejection ≤ alpha, whatever the
    dependence between the tests. Holm 1979.
    """
    given = np.asarray(p, dtype=np.float64)
    order = np.argsort(given, kind="stable")
    steps = np.minimum(1.0, np.arange(len(given), 0, -1) * given[order])
    adjusted = np.empty_like(given)
    adjusted[order] = np.maximum.accumulate(steps)
    return list(map(float, adjusted))


def compare(a: Outcomes, b: Outcomes) -> float:
    """Two-sided p-value for the two rows having equal robust accuracy.

    Rows on the same points are paired (`mcnemar`); others are taken as independent samples
    (`fisher`), which is conservative where they share points.
    """
    return float(_pairwise([a, b])[0, 1])


def rank_ranges(rows: Sequence[Outcomes], confidence: float = 0.95) -> list[tuple[int, int]]:
    """Best and worst rank of each row that are consistent with the data.

    Best is 1 + the number of rows significantly better, worst is the number of rows − the number
    significantly worse. Every pair is tested (`compare`), with `holm` over all pairs: with the
    stated confidence no row is wrongly placed above or below another one of the table.
    """
    size = len(rows)
    upper = np.triu_indices(size, 1)
    apart = np.zeros((size, size), dtype=bool)
    apart[upper] = np.array(holm(_pairwise(rows)[upper])) <= 1 - confidence
    apart |= apart.T
    accuracy = np.array([sum(row.robust.values()) / len(row.robust) for row in rows])
    better = (apart & (accuracy[None] > accuracy[:, None])).sum(axis=1)
    worse = apart.sum(axis=1) - better
    return [(1 + int(b), size - int(w)) for b, w in zip(better, worse, strict=True)]


def _pairwise(rows: Sequence[Outcomes]) -> Float[np.ndarray, "m m"]:
    """Return the p-value of every pair; every test of one kind is made in one call."""
    robust = np.array([sum(row.robust.values()) for row in rows])
    points = np.array([len(row.robust) for row in rows])
    groups = _by_points(rows)
    group = np.empty(len(rows), dtype=np.int64)
    only: Int[np.ndarray, "m m"] = np.zeros((len(rows), len(rows)), dtype=np.int64)
    for number, members in enumerate(groups):
        group[members] = number
        only[np.ix_(members, members)] = _discordant([rows[i] for i in members])
    p = np.ones((len(rows), len(rows)))
    i, j = np.triu_indices(len(rows), 1)
    paired = group[i] == group[j]
    a, b = i[paired], j[paired]
    p[a, b] = mcnemar_all(only[a, b], only[b, a])
    a, b = i[~paired], j[~paired]
    if len(a):
        p[a, b] = fisher_all(robust[a], points[a], robust[b], points[b])
    return p


def _by_points(rows: Sequence[Outcomes]) -> list[list[int]]:
    """Return the places of the rows that are on the same points, group by group."""
    groups: dict[tuple[str, frozenset[int]], list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault((row.digest, frozenset(row.robust)), []).append(place)
    return list(groups.values())


def _discordant(rows: Sequence[Outcomes]) -> Int[np.ndarray, "m m"]:
    """Return on how many points row i alone of i and j is robust. All are on the same points."""
    order = list(rows[0].robust)
    matrix: Bool[np.ndarray, "m n"] = np.array([[row.robust[i] for i in order] for row in rows])
    # In float32 the product is BLAS's, and exact: counts stay below 2 ** 24 points.
    whole = np.asarray(matrix, dtype=np.float32 if len(order) < 1 << 24 else np.float64)
    both: Int[np.ndarray, "m m"] = np.rint(np.dot(whole, whole.T)).astype(np.int64)
    alone: Int[np.ndarray, "m m"] = both.diagonal()[:, None] - both
    return alone
