"""Ranks of the rows of a table, with ties where the data do not separate them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from robustkit.core.stats.paired import fisher, mcnemar


class Outcomes(NamedTuple):
    """One row of a table: which points were evaluated, and whether the model is robust on each."""

    digest: str
    """Equal for two rows exactly when the points are the same."""
    robust: Mapping[int, bool]
    """By position in the data set."""


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p-values so that all together err with the probability that each one states.

    Rejecting those ≤ alpha keeps the chance of any false rejection ≤ alpha, whatever the
    dependence between the tests. Holm 1979.
    """
    order = sorted(range(len(p)), key=p.__getitem__)
    adjusted, running = [0.0] * len(p), 0.0
    for place, i in enumerate(order):
        running = max(running, min(1.0, (len(p) - place) * p[i]))
        adjusted[i] = running
    return adjusted


def compare(a: Outcomes, b: Outcomes) -> float:
    """Two-sided p-value for the two rows having equal robust accuracy.

    Rows on the same points are paired (`mcnemar`); others are taken as independent samples
    (`fisher`), which is conservative where they share points.
    """
    if a.digest != b.digest or a.robust.keys() != b.robust.keys():
        return fisher(sum(a.robust.values()), len(a.robust), sum(b.robust.values()), len(b.robust))
    only_a = sum(robust and not b.robust[i] for i, robust in a.robust.items())
    only_b = sum(robust and not a.robust[i] for i, robust in b.robust.items())
    return mcnemar(only_a, only_b)


def rank_ranges(rows: Sequence[Outcomes], confidence: float = 0.95) -> list[tuple[int, int]]:
    """Best and worst rank of each row that are consistent with the data.

    Best is 1 + the number of rows significantly better, worst is the number of rows − the number
    significantly worse. Every pair is tested (`compare`), with `holm` over all pairs: with the
    stated confidence no row is wrongly placed above or below another one of the table.
    """
    pairs = list(combinations(range(len(rows)), 2))
    adjusted = holm([compare(rows[i], rows[j]) for i, j in pairs])
    accuracy = [sum(row.robust.values()) / len(row.robust) for row in rows]
    better, worse = [0] * len(rows), [0] * len(rows)
    for (i, j), p in zip(pairs, adjusted, strict=True):
        if p <= 1 - confidence:
            upper, lower = (i, j) if accuracy[i] > accuracy[j] else (j, i)
            better[lower] += 1
            worse[upper] += 1
    return [(1 + b, len(rows) - w) for b, w in zip(better, worse, strict=True)]
