"""The interactive plots of a page, as what plotly.js reads, without colors for the paper.

Plotly reads labels as a kind of HTML, so every name goes through `plain`. The page sets background,
text and grid for light and dark; `templates/page.js` draws.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from robustkit.core.text import short, with_interval
from robustkit.leaderboard.report.figure import Figure, Plot
from robustkit.leaderboard.report.view import Group, Line

# Told apart without color vision (Okabe and Ito 2008), and seen on white and on black.
BLUE, SKY, VERMILLION, GREEN, ORANGE, PURPLE, GRAY = (
    *("#0072b2", "#56b4e9", "#d55e00", "#009e73"),
    *("#e69f00", "#cc79a7", "#8c8c8c"),
)
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
SHAPES = ("", "/", "x", "-", ".", "+", "\\", "|")
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
MANY = 8  # attacks that get a color each; the rest are drawn as one
_UNIT = "passes per point"
CROWD = 12  # rows that are all named in a scatter plot; of more, those on the front


def plain(text: str) -> str:
    """Write a name so that plotly shows it as it is."""
    return html.escape(text, quote=False)


def tradeoff(group: Group) -> Plot:
    """Draw robust over clean accuracy with 95% intervals, certified accuracy and Pareto front."""
    front = group.front
    named = front if len(group.lines) > CROWD else group.lines
    edge = [(0.0, front[0].row.robust), *((at.row.clean, at.row.robust) for at in front)]
    figure = Figure(layout("clean accuracy", "robust accuracy"))
    figure.scatter(
        x=[0, 1], y=[0, 1], mode="lines", name="robust = clean", hoverinfo="skip",
        line={"color": GRAY, "dash": "dot", "width": 1},
    )  # fmt: skip
    figure.scatter(
        x=[*(x for x, _ in edge), edge[-1][0]], y=[*(y for _, y in edge), 0], mode="lines",
        name="Pareto front", hoverinfo="skip", line={"color": GREEN, "shape": "vh", "width": 2},
    )  # fmt: skip
    rows = [line.row for line in group.lines]
    figure.scatter(
        x=[row.clean for row in rows],
        y=[row.robust for row in rows],
        error_y=errors(group.lines),
        mode="markers",
        name="robust, 95% interval",
        cliponaxis=False,
        hoverinfo="text",
        hovertext=[hover(line) for line in group.lines],
        marker={"color": BLUE, "size": 10},
    )
    proved = [row for row in rows if row.certified is not None]
    if proved:
        figure.scatter(
            x=[row.clean for row in proved], y=[row.certified for row in proved], mode="markers",
            name="certified", hoverinfo="skip",
            marker={"color": VERMILLION, "size": 15, "symbol": "triangle-up-open"},
        )  # fmt: skip
    for line, height in spread(named):
        figure.annotate(
            x=line.row.clean, y=line.row.robust, ax=line.row.clean - 0.05, ay=height,
            axref="x", ayref="y", xanchor="right", text=plain(short(line.label, 28)), arrowhead=0,
            arrowwidth=1, arrowcolor=GRAY, standoff=6,
        )  # fmt: skip
    figure.axis("xaxis", range=[0, 1.02], dtick=0.2)
    figure.axis("yaxis", range=[-0.02, 1.08], dtick=0.2)
    return figure.plot


def outcomes(group: Group) -> Plot:
    """Draw for each record, as one bar, what became of its points, by attack."""
    attacks = attacks_of(group.lines)
    figure = Figure(layout("share of the points", ""))
    parts = [
        ("certified", BLUE, [line.row.certified or 0 for line in group.lines]),
        (
            "robust, not proved",
            SKY,
            [line.row.robust - (line.row.certified or 0) for line in group.lines],
        ),
    ]
    colors = (VERMILLION, ORANGE, PURPLE)
    for number, names in enumerate(attacks):
        lost = [broken_by(line, names) for line in group.lines]
        parts.append((title(names), colors[number % len(colors)], lost))
    parts.append(("misclassified", GRAY, [1 - line.row.clean for line in group.lines]))
    for number, (name, color, shares) in enumerate(parts):
        pattern = number - 1 if 2 <= number < len(parts) - 1 else 0  # only attacks are hatched
        figure.bar(**_stacked(group, name, color, pattern, shares, "of the points"))
    _bars(figure, group)
    figure.axis("xaxis", range=[0, 1], dtick=0.2)
    return figure.plot


def costs(group: Group) -> Plot:
    """Draw for each record the passes per point, forward and backward, by attack."""
    figure = Figure(layout("passes per point, forward + backward", ""))
    for number, names in enumerate(attacks_of(group.lines)):
        passes = [passes_of(line, names) for line in group.lines]
        color = CYCLE[number % len(CYCLE)]
        figure.bar(**_stacked(group, title(names), color, number, passes, _UNIT, ",.1f"))
    other = [sum(line.rest) / line.record.n for line in group.lines]
    figure.bar(**_stacked(group, "clean pass and checks", GRAY, 0, other, _UNIT, ",.1f"))
    _bars(figure, group)
    return figure.plot


def classes(line: Line) -> Plot:
    """Draw for each class of a record clean, robust and certified accuracy, one in the other."""
    found = line.classes
    figure = Figure(layout("", "accuracy"))
    kinds = [("clean", GRAY, 0.85), ("robust", SKY, 0.6), ("certified", BLUE, 0.35)]
    hover = [
        f"{plain(bar.name)} ({bar.n} points)<br>clean {bar.clean:.3f}<br>robust {bar.robust:.3f}"
        + ("" if bar.certified is None else f"<br>certified {bar.certified:.3f}")
        for bar in found
    ]
    for kind, color, width in kinds:
        heights = [getattr(bar, kind) for bar in found]
        if None not in heights:
            figure.bar(
                x=list(range(len(found))), y=heights, width=width, name=kind, hovertext=hover,
                hoverinfo="text", marker={"color": color, "opacity": 0.6 if kind == "clean" else 1},
            )  # fmt: skip
    figure.layout.update(barmode="overlay")
    figure.axis(
        "xaxis",
        tickmode="array",
        tickvals=list(range(len(found))),
        ticktext=[plain(short(bar.name, 24)) for bar in found],
        automargin=True,
    )
    figure.axis("yaxis", range=[0, 1.02], dtick=0.2)
    return figure.plot


def spread(lines: Sequence[Line], apart: float = 0.065) -> list[tuple[Line, float]]:
    """Find a height for the name of each line: near its robust accuracy, and none on another."""
    order = sorted(lines, key=lambda line: line.row.robust)
    heights: list[float] = []
    for line in order:
        heights.append(max(line.row.robust + 0.045, heights[-1] + apart if heights else 0.0))
    ceiling = 1.04  # above the point: the front runs through it
    for place in reversed(range(len(heights))):
        heights[place] = min(heights[place], ceiling)
        ceiling = heights[place] - apart
    return list(zip(order, heights, strict=True))


def attacks_of(lines: Iterable[Line]) -> list[tuple[str, ...]]:
    """List the attacks in the order they ran; those beyond `MANY` are one, at the end."""
    names = list(dict.fromkeys(bar.attack for line in lines for bar in line.bars))
    if len(names) <= MANY:
        return [(name,) for name in names]
    return [*((name,) for name in names[: MANY - 1]), tuple(names[MANY - 1 :])]


def broken_by(line: Line, names: tuple[str, ...]) -> float:
    """Return the share of the points of a record that these attacks broke."""
    return sum(bar.broken for bar in line.bars if bar.attack in names) / line.record.n


def passes_of(line: Line, names: tuple[str, ...]) -> float:
    """Return the passes per point, forward and backward, that these attacks used."""
    mine = [bar.forwards + bar.backwards for bar in line.bars if bar.attack in names]
    return sum(mine) / line.record.n


def title(names: tuple[str, ...]) -> str:
    """Name one attack, or several that are drawn as one."""
    return names[0] if len(names) == 1 else f"{len(names)} other attacks"


def _stacked(
    group: Group,
    name: str,
    color: str,
    number: int,
    values: list[float],
    unit: str,
    digits: str = ".3f",
) -> dict[str, Any]:
    return {
        "x": values,
        "y": list(range(len(values))),
        "orientation": "h",
        "name": plain(short(name)),
        "hoverinfo": "text",
        "hovertext": [
            f"{plain(line.label)}<br>{plain(name)}: {value:{digits}} {unit}"
            for line, value in zip(group.lines, values, strict=True)
        ],
        "marker": {
            "color": color,
            "pattern": {
                "shape": SHAPES[number % len(SHAPES)],
                "fillmode": "overlay",
                "fgcolor": "#ffffff",
                "size": 7,
                "solidity": 0.15,
            },
        },
        "width": 0.5,
    }


def _bars(figure: Figure, group: Group) -> None:
    """Stack the bars, each below its name: names beside them would leave no room on a phone."""
    entries = len(figure.traces)
    figure.layout.update(barmode="stack", height=110 + 20 * entries + 46 * len(group.lines))
    for number, line in enumerate(group.lines):
        figure.annotate(
            x=0, y=number - 0.25, text=plain(short(line.label)), showarrow=False,
            xanchor="left", yanchor="bottom",
        )  # fmt: skip
    ends = [len(group.lines) - 0.5, -0.75]
    figure.axis("yaxis", range=ends, showticklabels=False, showgrid=False, ticks="")
    figure.axis("xaxis", tickangle=0, automargin=True)


def errors(lines: Sequence[Line], start: bool = False) -> dict[str, Any]:
    """Error bars from the intervals; `start`: before them a point at eps = 0, clean."""
    ends = [(row.robust, row.robust_low, row.robust_high) for row in (line.row for line in lines)]
    if start:
        ends.insert(0, (lines[0].row.clean, lines[0].clean_low, lines[0].clean_high))
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, high - middle) for middle, _, high in ends],
        "arrayminus": [max(0.0, middle - low) for middle, low, _ in ends],
        "thickness": 1.2,
        "width": 4,
    }


def hover(line: Line) -> str:
    """Return what is shown over a point: label, clean and robust accuracy, and what is proved."""
    row = line.row
    proved = "" if row.certified is None else f"<br>certified {row.certified:.3f}"
    return (
        f"{plain(line.label)}<br>clean {row.clean:.3f}<br>robust "
        f"{with_interval(row.robust, row.robust_low, row.robust_high)}{proved}"
    )


def layout(x: str, y: str) -> dict[str, Any]:
    """Return the layout that all plots share, with the titles of both axes."""
    return {
        "template": "none",
        "xaxis": {"title": {"text": plain(x)}, "zeroline": False},
        "yaxis": {"title": {"text": plain(y)}, "zeroline": False},
        "margin": {"l": 56 if y else 8, "r": 16, "t": 16, "b": 48},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        "height": 420,
        "dragmode": False,
    }
