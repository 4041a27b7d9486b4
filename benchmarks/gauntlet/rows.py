"""Rows of the table and their sum: which verdicts are wrong, by how much, and warned of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

FOOLED = 2.0  # points by which a verdict must be too high to count as fooled
FEWEST = 50  # points of the data, below which targets are not judged
LARGEST, MEAN = 1.0, 0.3  # most points by which `adaptive` may be too high: anywhere, on average


@dataclass
class Cell:
    """One verdict on one wrapper, in points of robust accuracy (0 to 100).

    Attributes:
        over: points held to be robust that are not, as a share of n.
        under: points held to be broken that are not: lucky draws, and values that are not numbers.
    """

    robust: float | None
    over: float | None
    under: float | None
    flags: list[str] = field(default_factory=list)
    verdict: str = ""
    error: str = ""


@dataclass
class Row:
    """One wrapper."""

    wrapper: str
    family: str
    kind: str
    random: bool
    truth: float
    cells: dict[str, Cell]


def cell(verdict: Mapping[int, bool], truth: Mapping[int, bool], elsewhere: int, n: int) -> Cell:
    """Compare a verdict with the truth.

    Args:
        elsewhere: points that are not attacked and count as robust.
        n: all points.
    """
    over = sum(ok and not truth[p] for p, ok in verdict.items())
    under = sum(truth[p] and not ok for p, ok in verdict.items())
    return Cell(100 * (elsewhere + sum(verdict.values())) / n, 100 * over / n, 100 * under / n)


@dataclass
class Summary:
    """What the rows add up to, over those that have the column."""

    wrappers: dict[str, int]
    largest: dict[str, float]
    mean: dict[str, float]
    fooled: dict[str, list[str]]
    unflagged: list[str]
    """Wrappers that fool `parity` and raise no flag there."""
    reached: bool | None
    """Whether `adaptive` reaches its targets and none is unflagged; None: not judged, as some are
    missing or the points are few."""
    missing: list[str]
    """What `parity` and `adaptive` have not both evaluated."""
    limit: float = FOOLED
    """Points by which a verdict must be too high to count as fooled."""
    few: bool = False
    """Whether the points of the data are too few to judge."""


def summarize(
    rows: Sequence[Row],
    limit: float = FOOLED,
    names: Sequence[str] = (),
    n: int | None = None,
) -> Summary:
    """Add up the rows; a verdict is fooled where it is too high by more than `limit` points.

    Args:
        names: what should have a row; what has one should as well.
        n: points of the data; None: enough to judge.
    """
    over: dict[str, dict[str, float]] = {}
    for row in rows:
        for column, found in row.cells.items():
            if found.over is not None:
                over.setdefault(column, {})[row.wrapper] = found.over
    fooled = {c: [w for w, by in found.items() if by > limit] for c, found in over.items()}
    flags = {row.wrapper: row.cells["parity"].flags for row in rows if "parity" in row.cells}
    unflagged = [w for w in fooled.get("parity", []) if not flags[w]]
    largest = {c: max(found.values()) for c, found in over.items()}
    mean = {c: sum(found.values()) / len(found) for c, found in over.items()}
    wanted = dict.fromkeys([*names, *(row.wrapper for row in rows)])
    both = over.get("parity", {}).keys() & over.get("adaptive", {}).keys()
    missing = [name for name in wanted if name not in both]
    reached, few = None, n is not None and n < FEWEST
    if wanted and not missing and not few:
        reached = largest["adaptive"] <= LARGEST and mean["adaptive"] <= MEAN and not unflagged
    counted = {c: len(found) for c, found in over.items()}
    return Summary(counted, largest, mean, fooled, unflagged, reached, missing, limit, few)
