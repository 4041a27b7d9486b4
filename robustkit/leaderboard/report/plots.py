"""The plots of a page, drawn as SVG, and what they have in common with those for a paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from robustkit.core.text import short, with_interval
from robustkit.leaderboard.beside import Beside
from robustkit.leaderboard.report.labels import Dot, place
from robustkit.leaderboard.report.svg import (
    Scale,
    axes,
    drawing,
    fitted,
    path,
    staircase,
    tag,
    text,
    titled,
)
from robustkit.leaderboard.report.view import Group, Line

# Told apart without color vision (Okabe and Ito 2008), and seen on white and on black. The colors
# of a state are those of templates/style.css.
BLUE, SKY, VERMILLION, GREEN, ORANGE, PURPLE, GRAY = (
    *("#0072b2", "#56b4e9", "#d55e00", "#009e73"),
    *("#e69f00", "#cc79a7", "#8c8c8c"),
)
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
MANY = 8  # attacks that get a color each; the rest are drawn as one
CROWD = 60  # models; of more, a scatter plot draws no intervals and names those on the front
WIDTH, HEIGHT = 520, 380
_FRAME = (62.0, WIDTH - 16.0, HEIGHT - 52.0, 14.0)  # left, right, bottom, top


def tradeoff(group: Group, published: Sequence[Beside] = ()) -> str:
    """Draw robust over clean accuracy: a dot a model, its 95% interval, and the Pareto front.

    The axes show what there is as large as it can be, and as many names as find room.
    """
    rows, crowd = [line.row for line in group.lines], len(group.lines) > CROWD
    heights = [row.robust for row in rows] + [row.robust for row in published]
    if not crowd:
        heights += [end for row in rows for end in (row.robust_low, row.robust_high)]
    left, right, bottom, top = _FRAME
    x = fitted([*(row.clean for row in rows), *(row.clean for row in published)], left, right)
    y = fitted(heights, bottom, top)
    marks = [axes(x, y, ("clean accuracy", "robust accuracy")), _equal(x, y)]
    marks += [_published(row, x, y) for row in published]
    front = [(x(line.row.clean), y(line.row.robust)) for line in group.front]
    edge = staircase([(left, front[0][1]), *front, (front[-1][0], bottom)])
    marks.append(path(edge, class_="front"))
    named = group.front if crowd else [*group.front, *_rest(group)]
    dots = [
        Dot(x(line.row.clean), y(line.row.robust), line.label,
            None if crowd else (y(line.row.robust_low), y(line.row.robust_high)))
        for line in named
    ]  # fmt: skip
    others = [(x(row.clean), y(row.robust)) for row in published]
    labels = place(dots, WIDTH, bottom, others, edge)
    names = dict(zip((line.id for line in named), labels, strict=True))
    for line in group.lines:
        label = names.get(line.id)
        told = text(label.text, label.x, label.y, class_="name") if label else ""
        marks.append(_dot(line, x, y, told, interval=not crowd))
    said = (
        f"Scatter plot of robust over clean accuracy, {len(rows)} models, {group.title}. On the "
        f"Pareto front: {', '.join(short(line.label) for line in group.front)}."
    )
    return drawing("".join(marks), WIDTH, HEIGHT, said)


def _rest(group: Group) -> list[Line]:
    front = {line.id for line in group.front}
    return [line for line in group.lines if line.id not in front]


def _equal(x: Scale, y: Scale) -> str:
    """Draw robust = clean, where it is in the picture."""
    low, high = max(x.low, y.low), min(x.high, y.high)
    if low >= high:
        return ""
    return path([(x(low), y(low)), (x(high), y(high))], class_="equal")


def _dot(line: Line, x: Scale, y: Scale, label: str, *, interval: bool) -> str:
    row = line.row
    across, middle = x(row.clean), y(row.robust)
    reach = [(across, y(row.robust_low)), (across, y(row.robust_high))]
    return tag(
        "g",
        titled(hover(line)),
        path(reach, class_="whisker") if interval else "",
        tag("circle", cx=across, cy=middle, r=5, class_="dot"),
        label,
        data_m=line.id,
    )


def _published(row: Beside, x: Scale, y: Scale) -> str:
    told = f"{row.model} (published)\nclean {row.clean:.3f}\nrobust {row.robust:.3f}"
    across, middle = x(row.clean), y(row.robust)
    square = tag("rect", x=across - 4, y=middle - 4, width=8, height=8, class_="published",
                 transform=f"rotate(45 {across:.2f} {middle:.2f})")  # fmt: skip
    return tag("g", titled(told), square, data_published="")


def outcome(line: Line) -> list[tuple[str, str, float]]:
    """Return what became of the points of a line: state, what to call it, share of the points."""
    row = line.row
    certified = row.certified or 0.0
    parts = [("certified", "certified", certified)]
    parts.append(
        ("robust", "robust, not proved" if certified else "robust", row.robust - certified)
    )
    parts += [
        ("broken", f"broken by {name}", count / line.record.n)
        for name, count in line.broken.most_common()
    ]
    parts.append(("wrong", "misclassified", 1 - row.clean))
    return [(state, told, share) for state, told, share in parts if share > 1e-9]


def bar(line: Line) -> str:
    """Draw what became of the points of a line as one bar, with the 95% interval of robust."""
    marks, start = [], 0.0
    for state, told, share in outcome(line):
        words = f"{told}: {share:.3f}"
        marks.append(
            tag("rect", titled(words), x=_percent(start), y=0, width=_percent(share), height=16,
                class_=state)
        )  # fmt: skip
        start += share
    low, high = _percent(line.row.robust_low), _percent(line.row.robust_high)
    marks.append(tag("line", x1=low, x2=high, y1=8, y2=8, class_="whisker"))
    said = ", ".join(f"{told} {share:.3f}" for _, told, share in outcome(line))
    low, high = f"{line.row.robust_low:.3f}", f"{line.row.robust_high:.3f}"
    return tag("svg", "".join(marks), width="100%", height=16, role="img", class_="bar",
               aria_label=f"{said}; 95% interval of robust {low} to {high}")  # fmt: skip


def classes(line: Line) -> str:
    """Draw for each class of a run clean, robust and certified accuracy, one in the other."""
    found = line.classes
    step = min(72.0, max(9.0, 560 / len(found)))
    turned = step < 60
    bottom, room = 150.0, 110 if turned else 34
    left, right = 46.0, 46 + step * len(found)
    x, y = Scale(0, len(found), left, right), Scale(0, 1, bottom, 10)
    marks = [
        path([(left, y(v)), (right, y(v))], class_="grid")
        + text(f"{v:g}", left - 7, y(v) + 4, class_="tick", text_anchor="end")
        for v in (0, 0.5, 1)
    ]
    for place_, one in enumerate(found):
        middle = x(place_ + 0.5)
        proved = "" if one.certified is None else f", certified {one.certified:.3f}"
        told = (
            f"{one.name} ({one.n} points): clean {one.clean:.3f}, robust {one.robust:.3f}{proved}"
        )
        bars = [("clean", one.clean, 0.84), ("robust", one.robust, 0.62)]
        bars += [("certified", one.certified, 0.36)] if one.certified is not None else []
        marks.append(tag("g", titled(told), *(
            tag("rect", x=middle - step * wide / 2, y=y(share), width=step * wide,
                height=bottom - y(share), class_=kind) for kind, share, wide in bars
        )))  # fmt: skip
        if step >= 14:
            marks.append(_name(one.name, middle, bottom, turned))
    said = "Bars of clean, robust and certified accuracy by class; the table below has the numbers."
    return drawing(
        "".join(marks), round(right + (4 if not turned else 12)), round(bottom + room), said
    )


def _name(name: str, middle: float, bottom: float, turned: bool) -> str:
    words = short(name, 17 if turned else 10)
    if not turned:
        return text(words, middle, bottom + 18, class_="tick", text_anchor="middle")
    turn = f"rotate(-50 {middle:.2f} {bottom + 14:.2f})"
    return text(words, middle, bottom + 14, class_="tick", text_anchor="end", transform=turn)


def spread(lines: Sequence[Line], apart: float = 0.065) -> list[tuple[Line, float]]:
    """Find a height for the name of each line: near its robust accuracy, and none on another."""
    order = sorted(lines, key=lambda line: line.row.robust)
    heights: list[float] = []
    for line in order:
        heights.append(max(line.row.robust + 0.045, heights[-1] + apart if heights else 0.0))
    ceiling = 1.04  # above the point: the front runs through it
    for at in reversed(range(len(heights))):
        heights[at] = min(heights[at], ceiling)
        ceiling = heights[at] - apart
    return list(zip(order, heights, strict=True))


def attacks_of(lines: Iterable[Line]) -> list[tuple[str, ...]]:
    """List the attacks in the order they ran; those beyond `MANY` are one, at the end."""
    names = list(dict.fromkeys(bar.attack for line in lines for bar in line.bars))
    if len(names) <= MANY:
        return [(name,) for name in names]
    return [*((name,) for name in names[: MANY - 1]), tuple(names[MANY - 1 :])]


def broken_by(line: Line, names: tuple[str, ...]) -> float:
    """Return the share of the points of a line that these attacks broke."""
    return sum(line.broken[name] for name in names) / line.record.n


def passes_of(line: Line, names: tuple[str, ...]) -> float:
    """Return the passes per point, forward and backward, that these attacks used."""
    mine = [bar.forwards + bar.backwards for bar in line.bars if bar.attack in names]
    return sum(mine) / line.record.n


def title(names: tuple[str, ...]) -> str:
    """Name one attack, or several that are drawn as one."""
    return names[0] if len(names) == 1 else f"{len(names)} other attacks"


def hover(line: Line) -> str:
    """Return what is shown over a point: label, clean and robust accuracy, and what is proved."""
    row = line.row
    proved = "" if row.certified is None else f"\ncertified {row.certified:.3f}"
    return (
        f"{line.label}\nclean {row.clean:.3f}\nrobust "
        f"{with_interval(row.robust, row.robust_low, row.robust_high)}{proved}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"
