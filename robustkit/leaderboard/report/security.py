"""Security curves: robust accuracy over eps, what is proved of it, and the band between both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from robustkit.core.text import short
from robustkit.leaderboard.report.figure import Figure, Plot
from robustkit.leaderboard.report.plots import CYCLE, MARKERS, errors, hover, layout, plain
from robustkit.leaderboard.report.style import COLUMN, canvas
from robustkit.leaderboard.report.view import Curve

_MARKS, _DASHES = ("o", "s", "D", "^", "P", "*"), ("-", "--", "-.", ":")


def interactive(found: Sequence[Curve]) -> Plot:
    """Draw robust accuracy over eps for curves of one norm; at eps = 0 it is the clean accuracy.

    Below it the certified accuracy, where there is one, and between both the undecided points.
    """
    norm = found[0].norm
    figure = Figure(layout(f"eps ({norm})", "accuracy"))
    for number, curve in enumerate(found):
        rows, color = [line.row for line in curve.lines], CYCLE[number % len(CYCLE)]
        band = {}
        if certified := certified_steps(curve):
            figure.scatter(
                x=[eps for eps, _ in certified], y=[share for _, share in certified], mode="lines",
                name=plain(f"{short(curve.name)}: certified"), hoverinfo="skip",
                # Proved up to the next eps is only what is proved there.
                line={"color": color, "dash": "dash", "shape": "vh", "width": 1.5},
            )  # fmt: skip
            band = {"fill": "tonexty", "fillcolor": f"{color}22"}
        figure.scatter(
            **band,
            x=[0.0, *(row.eps for row in rows)],
            y=[rows[0].clean, *(row.robust for row in rows)],
            error_y=errors(curve.lines, start=True),
            mode="lines+markers",
            name=plain(short(curve.name)),
            hoverinfo="text",
            hovertext=[
                f"clean {rows[0].clean:.3f}",
                *(f"eps = {line.row.eps:.6g}<br>{hover(line)}" for line in curve.lines),
            ],
            line={"color": color},
            marker={"symbol": MARKERS[number % len(MARKERS)], "size": 9},
        )
    figure.axis("yaxis", range=[-0.02, 1.02], dtick=0.2)
    figure.axis("xaxis", rangemode="tozero")
    return figure.plot


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
