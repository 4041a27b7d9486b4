"""Marks of SVG, and axes that fit their data: plots are drawn when a page is written.

Sizes are in pixels of the drawing. Colors are classes of templates/style.css, so that a drawing
follows light, dark and print by itself; names are escaped here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

LETTER = 7.2  # pixels: mean width of a letter in the labels


class Scale(NamedTuple):
    """A straight map from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """Return three to eight round values within the axis."""
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(step * i, 10) for i in range(first, last + 1)]


def fitted(values: Iterable[float], start: float, end: float) -> Scale:
    """Return the scale that shows shares from 0 to 1 as large as they allow, with room around."""
    found = list(values)
    low, high = min(found), max(found)
    room = max(0.06 * (high - low), 0.02)
    return Scale(max(low - room, -0.02), min(high + room, 1.02), start, end)


def tag(name: str, *inside: str, **attributes: str | float) -> str:
    """Write one element; `inside` is markup, attributes are text or pixels. `class_` is class."""
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_number(value)}"'
        for key, value in attributes.items()
    )
    return f"<{name}{told}>{''.join(inside)}</{name}>" if inside else f"<{name}{told}/>"


def text(words: str, x: float, y: float, **attributes: str | float) -> str:
    """Write a name or a number at a place."""
    return tag("text", escape(words), x=x, y=y, **attributes)


def titled(words: str) -> str:
    """Write what is shown over a mark."""
    return tag("title", escape(words))


def path(points: Sequence[tuple[float, float]], **attributes: str | float) -> str:
    """Draw a line through points."""
    steps = "L".join(f"{_number(x)},{_number(y)}" for x, y in points)
    return tag("path", d=f"M{steps}", **attributes)


def staircase(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Between two points go up or down at the first, then across."""
    corners = [(a[0], b[1]) for a, b in pairwise(points)]
    pairs = zip(points, corners, strict=False)
    return [point for pair in pairs for point in pair] + list(points[-1:])


def axes(x: Scale, y: Scale, titles: tuple[str, str]) -> str:
    """Draw grid, ticks and titles of both axes."""
    marks = []
    for value in x.ticks:
        marks.append(path([(x(value), y.start), (x(value), y.end)], class_="grid"))
        marks.append(
            text(f"{value:g}", x(value), y.start + 18, class_="tick", text_anchor="middle")
        )
    for value in y.ticks:
        marks.append(path([(x.start, y(value)), (x.end, y(value))], class_="grid"))
        marks.append(
            text(f"{value:g}", x.start - 7, y(value) + 4, class_="tick", text_anchor="end")
        )
    middle, center = (x.start + x.end) / 2, (y.start + y.end) / 2
    marks.append(text(titles[0], middle, y.start + 38, class_="axis", text_anchor="middle"))
    turn = f"rotate(-90 14 {center:.0f})"
    marks.append(text(titles[1], 14, center, class_="axis", text_anchor="middle", transform=turn))
    return "".join(marks)


def drawing(inside: str, width: int, height: int, said: str) -> str:
    """Wrap marks as one picture; `said` is what a screen reader says of it."""
    box: dict[str, str | float] = {"viewBox": f"0 0 {width} {height}", "class_": "drawing"}
    return tag("svg", inside, **box, width=width, height=height, role="img", aria_label=said)


def _number(value: str | float) -> str:
    return escape(value) if isinstance(value, str) else f"{value:.1f}".rstrip("0").rstrip(".")
