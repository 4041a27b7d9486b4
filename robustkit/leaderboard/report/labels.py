"""Names beside the dots of a plot, as many as find room."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from robustkit.core.text import short
from robustkit.leaderboard.report.svg import LETTER

_HEIGHT, _LONGEST, _REACH = 15.0, 26, 9.0  # pixels, letters, pixels around a dot


class Dot(NamedTuple):
    """A dot in pixels, with its name, and the ends of its interval, if it is drawn."""

    x: float
    y: float
    name: str
    reach: tuple[float, float] | None = None


class Label(NamedTuple):
    """Where the name of a dot goes: text, start and baseline in pixels."""

    text: str
    x: float
    y: float


_Box = tuple[float, float, float, float]


def place(
    dots: Sequence[Dot],
    width: float,
    height: float,
    others: Sequence[tuple[float, float]] = (),
    line: Sequence[tuple[float, float]] = (),
) -> list[Label | None]:
    """Place names in the order given, within the picture, on nothing else that is drawn.

    Args:
        others: centers of marks without names.
        line: corners of a line that goes up, down and across.
    """
    marks = [*((d.x, d.y) for d in dots), *others]
    taken: list[_Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y in marks]
    taken += [(d.x - 1, min(d.reach), d.x + 1, max(d.reach)) for d in dots if d.reach]
    taken += [
        (min(a[0], b[0]) - 1, min(a[1], b[1]) - 1, max(a[0], b[0]) + 1, max(a[1], b[1]) + 1)
        for a, b in pairwise(line)
    ]
    found: list[Label | None] = []
    for dot in dots:
        words = short(dot.name, _LONGEST)
        across = LETTER * len(words)
        label = None
        for x, y in _candidates(dot, across):
            box = (x, y - _HEIGHT + 3, x + across, y + 3)
            inside = box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height
            if inside and not any(_overlap(box, other) for other in taken):
                label = Label(words, x, y)
                taken.append(box)
                break
        found.append(label)
    return found


def _candidates(dot: Dot, across: float) -> list[tuple[float, float]]:
    ends = dot.reach or (dot.y, dot.y)
    right, left, middle = dot.x + _REACH, dot.x - _REACH - across, dot.x - across / 2
    return [
        *((right, dot.y + 4), (left, dot.y + 4), (middle, dot.y - 10), (middle, dot.y + 20)),
        *((right, dot.y - 10), (right, dot.y + 18), (left, dot.y - 10), (left, dot.y + 18)),
        *((middle, min(ends) - 5), (middle, max(ends) + 14)),
    ]


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
