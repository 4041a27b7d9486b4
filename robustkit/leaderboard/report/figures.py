"""The plots of a report as static figures for a paper, and its table in LaTeX."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from robustkit.core import files
from robustkit.core.text import short
from robustkit.errors import UsageError, unknown
from robustkit.leaderboard import rows
from robustkit.leaderboard.formats import to_latex
from robustkit.leaderboard.report import plots, security
from robustkit.leaderboard.report.gallery import GalleryMaker, Picture
from robustkit.leaderboard.report.optional import need
from robustkit.leaderboard.report.plots import (
    BLUE,
    CYCLE,
    GRAY,
    GREEN,
    SKY,
    VERMILLION,
)
from robustkit.leaderboard.report.style import COLUMN, FORMATS, canvas, save, styled
from robustkit.leaderboard.report.view import Group, Line, arrange, curves
from robustkit.record.record import Record

_CROWD = 12  # models that are all named in a scatter plot; of more, those on the front
_HATCHES = ("//", "xx", "--", "..", "\\\\", "++", "||", "oo")


def write_figures(
    records: Iterable[tuple[Path | str, Record]],
    folder: Path | str,
    *,
    formats: Sequence[str] = ("pdf",),
    data_root: Path | None = None,
    data: str | None = None,
    pictures: int = 6,
    advance: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Write every figure in each of `formats` ("png", "svg", "pdf"), and leaderboard.tex.

    Per data set, norm and eps: bracket, accuracy against robustness, what became of the points,
    passes per point; per record: classes, and a gallery where it can be shown; and the security
    curves. Figures are one column (3.25 inches) wide, fonts are embedded.

    Args:
        data_root, data, pictures, advance: as for `write_page`; `advance` hears each file's name.

    Returns:
        The files, in the order they were written.

    Raises:
        UsageError: without records, for an unknown format, or without the extra `report`.
        RobustkitError: when a file cannot be written.
    """
    for kind in formats:
        if kind not in FORMATS:
            raise unknown("format", kind, FORMATS)
    records, folder = list(records), Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; figures go into a folder.")
    groups = arrange(records)
    written = [folder / "leaderboard.tex"]
    files.write(to_latex(rows.table(records)).encode(), written[0])
    with styled():
        for name, figure in _figures(groups, GalleryMaker(data_root, data), pictures):
            for kind in formats:
                written.append(folder / f"{name}.{kind}")
                save(figure, written[-1], kind)
            advance(name)
    return written


def _figures(groups: Sequence[Group], maker: GalleryMaker, limit: int) -> Iterator[tuple[str, Any]]:
    used: set[str] = set()
    for group in groups:
        name = _file(f"{group.data}-{group.threat}", used)
        yield f"bracket-{name}", _bracket(group)
        yield f"tradeoff-{name}", _tradeoff(group)
        yield f"attacks-{name}", _outcomes(group)
        yield f"cost-{name}", _costs(group)
        for line in group.lines:
            own = _file(f"{name}-{line.label}", used)
            yield f"classes-{own}", _classes(line)
            run = line.runs[0]  # the ledger that holds the inputs is that of a run
            found = maker.gallery(run.record, run.row.record, limit).pictures
            if found:
                yield f"gallery-{own}", _gallery(found)
    found_curves = curves(groups)
    for norm in dict.fromkeys(curve.norm for curve in found_curves):
        yield f"security-{norm}", security.draw([c for c in found_curves if c.norm == norm])


def _bracket(group: Group) -> Any:
    handles = [
        _patch("certified", BLUE),
        _patch("robust, not proved", SKY),
        _patch("broken", "white", "////", VERMILLION),
    ]
    figure, axes, columns = _rows(group, [handle.get_label() for handle in handles])
    for place, line in enumerate(group.lines):
        row, proved = line.row, line.row.certified or 0.0
        axes.barh(place, proved, color=BLUE, height=0.55)
        axes.barh(place, row.robust - proved, left=proved, color=SKY, height=0.55)
        axes.barh(
            place, row.clean - row.robust, left=row.robust, height=0.55,
            color="white", edgecolor=VERMILLION, hatch="////", linewidth=0,
        )  # fmt: skip
        axes.barh(place, row.clean, color="none", edgecolor="black", height=0.55, linewidth=0.5)
        reach = [[row.robust - row.robust_low], [row.robust_high - row.robust]]
        axes.errorbar(row.robust, place, xerr=reach, color="black", capsize=2, linewidth=0.8)
    figure.legend(handles=handles, loc="outside upper center", ncols=columns)
    axes.set(xlim=(0, 1), xlabel="share of the points")
    return figure


def _tradeoff(group: Group) -> Any:
    figure, axes = canvas(COLUMN, 2.6)
    axes = axes[0, 0]
    rows = [line.row for line in group.lines]
    axes.plot([0, 1], [0, 1], ":", color=GRAY, linewidth=0.6)
    front = group.front
    x = [0.0, *(line.row.clean for line in front), front[-1].row.clean]
    y = [front[0].row.robust, *(line.row.robust for line in front), 0.0]
    axes.step(x, y, where="pre", color=GREEN, label="Pareto front")
    below = [row.robust - row.robust_low for row in rows]
    above = [row.robust_high - row.robust for row in rows]
    axes.errorbar(
        [row.clean for row in rows], [row.robust for row in rows], yerr=[below, above],
        fmt="o", color=BLUE, markersize=3.5, capsize=2, linewidth=0.8, label="robust, 95% interval",
    )  # fmt: skip
    proved = [row for row in rows if row.certified is not None]
    if proved:
        axes.plot(
            [row.clean for row in proved], [row.certified for row in proved], "^", color=VERMILLION,
            markerfacecolor="none", markersize=6, label="certified",
        )  # fmt: skip
    named = front if len(group.lines) > _CROWD else group.lines
    for line, height in plots.spread(named, 0.075):
        axes.annotate(
            short(line.label, 28), xy=(line.row.clean, line.row.robust),
            xytext=(line.row.clean - 0.06, height), ha="right", va="center", fontsize=6,
            arrowprops={
                "arrowstyle": "-", "color": GRAY, "linewidth": 0.4, "shrinkB": 3,
                "relpos": (1, 0.5),
            },
        )  # fmt: skip
    axes.set(xlim=(0, 1.02), ylim=(-0.03, 1.08), xlabel="clean accuracy", ylabel="robust accuracy")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def _outcomes(group: Group) -> Any:
    attacks = plots.attacks_of(group.lines)
    parts = [
        ("certified", BLUE, "", [line.row.certified or 0.0 for line in group.lines]),
        (
            "robust, not proved",
            SKY,
            "",
            [ln.row.robust - (ln.row.certified or 0.0) for ln in group.lines],
        ),
    ]
    for number, names in enumerate(attacks):
        broken = [plots.broken_by(line, names) for line in group.lines]
        hatch = _HATCHES[number % len(_HATCHES)]
        parts.append((plots.title(names), VERMILLION, hatch, broken))
    parts.append(("misclassified", GRAY, "", [1 - line.row.clean for line in group.lines]))
    figure, axes = _stack(group, parts)
    axes.set(xlim=(0, 1), xlabel="share of the points")
    return figure


def _costs(group: Group) -> Any:
    parts = []
    for number, names in enumerate(plots.attacks_of(group.lines)):
        spent = [plots.passes_of(line, names) for line in group.lines]
        hatch = "" if number == 0 else _HATCHES[number % len(_HATCHES)]
        parts.append((plots.title(names), CYCLE[number % len(CYCLE)], hatch, spent))
    other = [sum(line.rest) / line.record.n for line in group.lines]
    parts.append(("clean pass and checks", GRAY, "", other))
    figure, axes = _stack(group, parts)
    axes.set(xlabel="passes per point, forward + backward")
    return figure


def _stack(group: Group, parts: Sequence[tuple[str, str, str, list[float]]]) -> tuple[Any, Any]:
    figure, axes, columns = _rows(group, [name for name, *_ in parts])
    start = [0.0] * len(group.lines)
    for _, color, hatch, sizes in parts:
        axes.barh(
            range(len(sizes)), sizes, left=start, color=color, hatch=hatch,
            edgecolor="white", linewidth=0.2, height=0.55,
        )  # fmt: skip
        start = [a + b for a, b in zip(start, sizes, strict=True)]
    handles = [_patch(name, color, hatch) for name, color, hatch, _ in parts]
    figure.legend(handles=handles, loc="outside upper left", ncols=columns)
    return figure, axes


def _classes(line: Line) -> Any:
    found = line.classes
    figure, axes = canvas(max(COLUMN, 0.13 * len(found)), 2.0)
    axes = axes[0, 0]
    kinds = [("clean", "#bbbbbb", 0.85), ("robust", SKY, 0.6), ("certified", BLUE, 0.35)]
    for kind, color, width in kinds:
        heights = [getattr(bar, kind) for bar in found]
        if None not in heights:
            axes.bar(range(len(found)), heights, width=width, color=color, label=kind)
    turn = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(found)), [short(bar.name, 24) for bar in found], **turn)
    axes.set(ylim=(0, 1), ylabel="accuracy")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def _gallery(found: Sequence[Picture]) -> Any:
    figure, axes = canvas(COLUMN, 1.25 * len(found), len(found), 3)
    for row, picture in zip(axes.reshape(len(found), 3), found, strict=True):
        titles = (
            short(picture.label, 24),
            short(picture.fooled, 24),
            f"change × {picture.factor:.3g}",
        )
        for place, image, title in zip(row, picture.images, titles, strict=True):
            place.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            place.set_title(title)
            place.set_axis_off()
    return figure


def _rows(group: Group, entries: Sequence[str]) -> tuple[Any, Any, int]:
    """Return axes for a bar a record, each below its name, and the columns of the legend."""
    columns = 1 if max(map(len, entries)) > 20 else 2
    height = 0.55 + 0.15 * -(-len(entries) // columns) + 0.34 * len(group.lines)
    figure, axes = canvas(COLUMN, height)
    axes = axes[0, 0]
    for place, line in enumerate(group.lines):
        axes.text(0, place - 0.3, short(line.label), ha="left", va="bottom", fontsize=7)
    axes.set_yticks([])
    axes.set_ylim(len(group.lines) - 0.6, -0.85)
    return figure, axes, columns


def _patch(label: str, color: str, hatch: str = "", edge: str = "white") -> Any:
    patch = need("matplotlib.patches").Patch
    return patch(facecolor=color, hatch=hatch, label=short(label), edgecolor=edge, linewidth=0.2)


def _file(name: str, used: set[str]) -> str:
    """Return `name` as a file name that no other has."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:80] or "record"
    number = 1
    while (told := plain if number == 1 else f"{plain}-{number}").lower() in used:
        number += 1
    used.add(told.lower())
    return told
