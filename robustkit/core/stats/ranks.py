"""The order of the rows of a table, as far as the data tell them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from robustkit.core.stats.paired import fisher, mcnemar


class Outcomes(NamedTuple):
    """One row of a table: which points were evaluated, and whether each one stands."""

    digest: str
    """Equal for two rows exactly when the points are the same."""
    stands: Mapping[int, bool]
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
    (`fisher`), which errs on the side of a tie where they share points.
    """
    if a.digest != b.digest or a.stands.keys() != b.stands.keys():
        return fisher(sum(a.stands.values()), len(a.stands), sum(b.stands.values()), len(b.stands))
    only_a = sum(stands and not b.stands[i] for i, stands in a.stands.items())
    only_b = sum(stands and not a.stands[i] for i, stands in b.stands.items())
    return mcnemar(only_a, only_b)


def rank_ranges(rows: Sequence[Outcomes], confidence: float = 0.95) -> list[tuple[int, int]]:
    """Best and worst rank of each row that the data leave open.

    Best is 1 + the number of rows significantly better, worst is the number of rows − the number
    significantly worse. Every pair is tested (`compare`), with `holm` over all pairs: with the
    stated confidence no row is wrongly placed above or below another one of the table.
    """
    pairs = list(combinations(range(len(rows)), 2))
    adjusted = holm([compare(rows[i], rows[j]) for i, j in pairs])
    accuracy = [sum(row.stands.values()) / len(row.stands) for row in rows]
    better, worse = [0] * len(rows), [0] * len(rows)
    for (i, j), p in zip(pairs, adjusted, strict=True):
        if p <= 1 - confidence:
            upper, lower = (i, j) if accuracy[i] > accuracy[j] else (j, i)
            better[lower] += 1
            worse[upper] += 1
    return [(1 + b, len(rows) - w) for b, w in zip(better, worse, strict=True)]
