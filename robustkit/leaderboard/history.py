"""How robust accuracy went from commit to commit, from the records in a folder."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from robustkit.core import files, stats
from robustkit.core.packages import install_command
from robustkit.core.text import clean, posix, short
from robustkit.errors import RobustkitError
from robustkit.record.interval import robust_interval
from robustkit.record.record import Record


class HistoryRow(NamedTuple):
    """One record as one line of a history; the fields are the columns, in order.

    `change` is that of the robust accuracy against the entry before it of the same defense, data,
    threat model, suite and n; `p` is the exact McNemar test of it, where both are on the same
    points.
    """

    started: str
    commit: str
    defense: str
    data: str
    threat: str
    suite: str
    n: int
    clean: float
    robust: float
    robust_low: float
    robust_high: float
    change: float | None
    p: float | None
    reason: str
    record: str


def history(records: Iterable[tuple[Path | str, Record]]) -> pd.DataFrame:
    """Make a table of records and the paths they lie at, oldest first; columns as in `HistoryRow`.

    A run and the baseline that was recorded from it are one line: the baseline, which has a reason.
    """
    items = sorted(_distinct(records), key=lambda item: (item[1].started, str(item[0])))
    last: dict[tuple[str | int, ...], Record] = {}
    rows = []
    for path, record in items:
        line = _entry(path, record)
        key = (line.defense, line.data, line.threat, line.suite, line.n)
        if (before := last.get(key)) is not None:
            line = line._replace(change=record.robust - before.robust, p=_paired(before, record))
        last[key] = record
        rows.append(line)
    return pd.DataFrame(rows, columns=list(HistoryRow._fields))


def _distinct(records: Iterable[tuple[Path | str, Record]]) -> list[tuple[Path | str, Record]]:
    found: dict[str, tuple[Path | str, Record]] = {}
    for path, record in records:
        key = record.model_dump_json(exclude={"arguments", "digest", "ledger"})
        if key not in found or (_reason(record) and not _reason(found[key][1])):
            found[key] = (path, record)
    return list(found.values())


def _reason(record: Record) -> str:
    return str(record.arguments.get("reason", ""))


def plot(frame: pd.DataFrame, path: Path) -> None:
    """Draw robust accuracy over time with its 95% intervals, one line for each series.

    Raises:
        RobustkitError: when matplotlib is not installed, or cannot write such a file.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise RobustkitError(f"plots need matplotlib: {install_command('report')}.") from None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ticks = {started: place for place, started in enumerate(sorted(set(frame["started"])))}
    for key, group in frame.groupby(["defense", "data", "threat", "suite"], sort=True):
        where = [ticks[started] for started in group["started"]]
        middle = group["robust"].to_numpy()
        below = middle - group["robust_low"].to_numpy()
        above = group["robust_high"].to_numpy() - middle
        axes.errorbar(where, middle, yerr=[below, above], marker="o", capsize=3,
                      label=short(clean(", ".join(map(str, key))), 80))  # fmt: skip
    names = dict(zip(frame["started"], frame["commit"], strict=True))
    axes.set_xticks(list(ticks.values()), [_tick(s, names[s]) for s in ticks], rotation=30)
    axes.set_ylabel("robust accuracy")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    picture, kind = io.BytesIO(), path.suffix[1:] or "png"
    try:
        figure.savefig(picture, format=kind, metadata={} if kind == "png" else None)
    except ValueError as error:
        raise RobustkitError(f"{path}: could not be drawn ({error}).") from None
    files.write(picture.getvalue(), path)


def _entry(path: Path | str, record: Record) -> HistoryRow:
    low, high = robust_interval(record)
    dirty = "-dirty" if record.commit and record.commit.dirty else ""
    return HistoryRow(
        started=record.started,
        commit=record.commit.hash[:12] + dirty if record.commit else "",
        defense=record.defense,
        data=record.data.name,
        threat=record.threat.text,
        suite=record.suite or ", ".join(record.attacks),
        n=record.n,
        clean=record.clean,
        robust=record.robust,
        robust_low=round(low, 6),
        robust_high=round(high, 6),
        change=None,
        p=None,
        reason=_reason(record),
        record=posix(path),
    )


def _paired(before: Record, now: Record) -> float | None:
    if before.data.digest != now.data.digest:
        return None
    then, here = before.outcomes, now.outcomes
    if then.keys() != here.keys():  # the same images at other positions
        return None
    lost = sum(ok and not here[point] for point, ok in then.items())
    gained = sum(ok and not then[point] for point, ok in here.items())
    return stats.mcnemar(lost, gained)


def _tick(started: str, commit: Any) -> str:
    return f"{clean(started[:10])}\n{clean(str(commit)[:8])}" if commit else clean(started[:10])
