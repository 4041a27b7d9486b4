"""Security curves: robust accuracy over eps, what is proved of it, and the band between both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from robustkit.core.text import short
from robustkit.leaderboard.grouping import shown_eps
from robustkit.leaderboard.report.plots import CYCLE, HEIGHT, WIDTH
from robustkit.leaderboard.report.style import COLUMN, canvas
from robustkit.leaderboard.report.svg import (
    Scale,
    axes,
    drawing,
    fitted,
    path,
    staircase,
    tag,
    titled,
)
from robustkit.leaderboard.report.view import Curve

COLORS = 6  # of curves on a page, in templates/style.css
_MARKS, _DASHES = ("o", "s", "D", "^", "P", "*"), ("-", "--", "-.", ":")


def interactive(found: Sequence[Curve]) -> str:
    """Draw robust accuracy over eps for curves of one norm; at eps = 0 it is the clean accuracy.

    Below it, dashed, the certified accuracy, where there is one.
    """
    left, right, bottom, top = 62.0, WIDTH - 16.0, HEIGHT - 52.0, 14.0
    ends = [
        height
        for curve in found
        for line in curve.lines
        for height in (line.row.robust_low, line.row.robust_high, line.row.clean)
    ]
    lower = [share for curve in found for _, share in certified_steps(curve)]
    x = Scale(0.0, 1.05 * max(line.row.eps for c in found for line in c.lines), left, right)
    y = fitted([*ends, *lower], bottom, top)
    marks = [axes(x, y, (f"eps ({found[0].norm})", "accuracy"))]
    marks += [_curve(curve, number % COLORS, x, y) for number, curve in enumerate(found)]
    names = ", ".join(short(curve.name) for curve in found)
    said = f"Line plot of robust accuracy over eps: {names}. The table below has its numbers."
    return drawing("".join(marks), WIDTH, HEIGHT, said)


def _curve(curve: Curve, color: int, x: Scale, y: Scale) -> str:
    rows = [line.row for line in curve.lines]
    points = [(0.0, rows[0].clean), *((row.eps, row.robust) for row in rows)]
    drawn = [(x(eps), y(share)) for eps, share in points]
    marks = [titled(curve.name)]
    if certified := certified_steps(curve):
        # Proved up to the next eps is only what is proved there.
        steps = staircase([(x(eps), y(share)) for eps, share in certified])
        marks.append(path(steps, class_=f"curve certified-curve s{color}"))
    marks.append(path(drawn, class_=f"curve s{color}"))
    marks += [
        path([(x(r.eps), y(r.robust_low)), (x(r.eps), y(r.robust_high))], class_=f"reach s{color}")
        for r in rows
    ]
    for (eps, share), (across, height) in zip(points, drawn, strict=True):
        told = titled(f"{curve.name}\neps = {shown_eps(eps) if eps else 0}: {share:.3f}")
        marks.append(tag("circle", told, cx=across, cy=height, r=4, class_=f"mark s{color}"))
    return tag("g", "".join(marks), data_m=" ".join(line.model for line in curve.lines))


def certified_steps(curve: Curve) -> list[tuple[float, float]]:
    """Return (eps, certified accuracy) from the clean accuracy at 0 up; empty without any."""
    rows = [line.row for line in curve.lines]
    proved = [(row.eps, row.certified) for row in rows if row.certified is not None]
    return [(0.0, rows[0].clean), *proved] if proved else []


def draw(found: Sequence[Curve]) -> Any:
    """Draw the same for a paper."""
    figure, axes = canvas(COLUMN, 2.4)
    axes = axes[0, 0]
    for number, curve in enumerate(found):
        rows, first = [line.row for line in curve.lines], curve.lines[0]
        ends = [(first.row.clean, first.clean_low, first.clean_high)]
        ends += [(row.robust, row.robust_low, row.robust_high) for row in rows]
        radii, color = [0.0, *(row.eps for row in rows)], CYCLE[number % len(CYCLE)]
        _band(axes, curve, radii, [middle for middle, _, _ in ends], color)
        axes.errorbar(
            radii, [middle for middle, _, _ in ends],
            yerr=[[m - low for m, low, _ in ends], [high - m for m, _, high in ends]],
            color=color, marker=_MARKS[number % len(_MARKS)],
            linestyle=_DASHES[number % len(_DASHES)], markersize=3.5, capsize=2,
            label=short(curve.name),
        )  # fmt: skip
    axes.set(ylim=(-0.02, 1.02), xlabel=f"eps ({found[0].norm})", ylabel="accuracy")
    axes.set_xlim(left=0)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def _band(
    axes: Any, curve: Curve, radii: Sequence[float], robust: Sequence[float], color: str
) -> None:
    """Draw the certified accuracy, and shade what lies undecided between it and the robust one."""
    certified = certified_steps(curve)
    if not certified:
        return
    x, y = zip(*certified, strict=True)
    # Proved up to the next eps is only what is proved there.
    axes.step(x, y, where="pre", color=color, linestyle="--", linewidth=0.8,
              label=f"{short(curve.name)}: certified")  # fmt: skip
    fine = np.linspace(0.0, x[-1], 512)
    lower = np.asarray(y)[np.searchsorted(x, fine)]
    axes.fill_between(fine, lower, np.interp(fine, radii, robust), color=color, alpha=0.13, lw=0)
