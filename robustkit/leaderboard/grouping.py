"""Which rows are ranked together, in one table: those of one data set, norm, criterion and eps."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Protocol

_ROUNDING = 5e-6  # relative: eps in float32 (6e-8), or written with six digits (at most 5e-6)


class Ranked(Protocol):
    """A row that has a place among others."""

    @property
    def data(self) -> str: ...
    @property
    def norm(self) -> str: ...
    @property
    def eps(self) -> float: ...


def group_of(row: Ranked) -> tuple[str, str, float]:
    """Return data set, norm with criterion, and eps; eps that differ by rounding alone are one.

    8/255, its float32 0.03137255 and 0.0313725 are: each is the fraction of a denominator up to
    1000 that lies within 5e-6 of it. Where there is none, eps counts to six digits.
    """
    simple = float(Fraction(row.eps).limit_denominator(1000))
    near = abs(simple - row.eps) <= _ROUNDING * row.eps
    return row.data, row.norm, simple if near else float(f"{row.eps:.6g}")


def ranks(values: Sequence[float]) -> list[int]:
    """Return the places of numbers that nobody gave an interval of, the largest first.

    >>> ranks([0.5, 0.7, 0.5])
    [2, 1, 2]
    """
    return [1 + sum(other > value for other in values) for value in values]


def shown_eps(eps: float) -> str:
    """Write eps as people do: with few digits where they do, as a fraction of 255, else with six.

    >>> shown_eps(8 / 255), shown_eps(0.3), shown_eps(0.031372551), shown_eps(0.123456)
    ('8/255', '0.3', '8/255', '0.123456')
    """
    levels = round(255 * eps)
    for text, value in ((f"{eps:.3g}", float(f"{eps:.3g}")), (f"{levels}/255", levels / 255)):
        if abs(value - eps) <= _ROUNDING * eps:
            return text
    return f"{eps:.6g}"


def shown_threat(norm: str, eps: float) -> str:
    """Write a threat model as people do; the name of a finite one says it all.

    >>> shown_threat("linf", 8 / 255), shown_threat("l2 targeted:3", 0.5)
    ('linf, eps = 8/255', 'l2, eps = 0.5, targeted:3')
    """
    plain, _, criterion = norm.partition(" ")
    told = plain if named(norm) else f"{plain}, eps = {shown_eps(eps)}"
    return f"{told}, {criterion}" if criterion else told


def named(norm: str) -> bool:
    """Tell whether a threat model goes by a name; a criterion may follow norm or name."""
    return ":" in norm.partition(" ")[0]


def title(data: str, norm: str, eps: float) -> str:
    """Name the rows of one group."""
    return f"{data}, {shown_threat(norm, eps)}"
