"""The gauntlet as a table: on the terminal, in Markdown and JSON; and what the run exits with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from benchmarks.gauntlet.rows import FEWEST, LARGEST, MEAN, Cell, Row, Summary
from benchmarks.options import Asked

TITLES = {"standard": "AutoAttack standard", "rand": "AutoAttack rand"}


def headings(columns: Sequence[str], noun: str = "wrapper") -> list[str]:
    """Return the column titles; `noun` is what a row is."""
    shown = [TITLES.get(column, column) for column in columns]
    return [noun, "truth", *shown, "flags"]


def cells(row: Row, columns: Sequence[str]) -> list[str]:
    """Return one line of the table."""
    bound = "≤ " if row.kind == "at most" else ""
    verdicts = [_verdict(row.cells.get(column)) for column in columns]
    looked = {"parity", "adaptive"} & row.cells.keys()
    flags = ", ".join(_flags(row)) or ("none" if looked else "–")
    return [row.wrapper, f"{bound}{row.truth:.1f}", *verdicts, flags]


def _verdict(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    if cell.robust is None or cell.over is None:
        return "error"
    wrong = [f"+{cell.over:.1f}"] if cell.over else []
    wrong += [f"−{cell.under:.1f}"] if cell.under else []
    return f"{cell.robust:.1f}" + (f" ({', '.join(wrong)})" if wrong else "")


def _flags(row: Row) -> list[str]:
    named: dict[str, None] = {}
    for cell in row.cells.values():
        named |= dict.fromkeys(cell.flags)
    return list(named)


def table(rows: Sequence[Row], columns: Sequence[str], title: str, noun: str = "wrapper") -> Table:
    """Lay the rows out for the terminal."""
    found = Table(title=title)
    for number, heading in enumerate(headings(columns, noun)):
        found.add_column(heading, justify="right" if 0 < number <= 1 + len(columns) else "left")
    family = ""
    for row in rows:
        if row.family != family:
            found.add_section()
            family = row.family
        found.add_row(*cells(row, columns))
    return found


def markdown(rows: Sequence[Row], columns: Sequence[str], noun: str = "wrapper") -> str:
    """Lay the rows out in Markdown."""
    heads = headings(columns, noun)
    lines = [heads, ["---", *["---:"] * (1 + len(columns)), "---"]]
    lines += [[f"`{row.wrapper}`", *cells(row, columns)[1:]] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def account(summary: Summary, columns: Sequence[str], noun: str = "wrapper") -> list[str]:
    """Say in lines what the rows add up to."""
    lines = []
    for column in columns:
        if column in summary.mean:
            fooled = summary.fooled[column]
            lines.append(
                f"{TITLES.get(column, column)}: too high by {summary.mean[column]:.2f} points on "
                f"average, by {summary.largest[column]:.1f} at most; by more than "
                f"{summary.limit:g} on {len(fooled)} of {summary.wrappers[column]} {noun}s"
            )
    if "parity" in summary.mean:
        silent = ", ".join(summary.unflagged) or "none"
        lines.append(f"fool parity by more than {summary.limit:g} points without a flag: {silent}")
    if summary.few and not summary.missing:
        lines.append(f"targets: not judged: fewer than {FEWEST} points")
    elif summary.reached is None:
        missing = ", ".join(summary.missing) or f"no {noun}"
        lines.append(f"targets: not judged; by parity and adaptive, not evaluated: {missing}")
    else:
        lines.append(
            f"targets (adaptive: at most {LARGEST:g} points anywhere, {MEAN:g} on average; every "
            f"{noun} that fools parity is flagged): {'reached' if summary.reached else 'missed'}"
        )
    return lines


def show(
    asked: Asked,
    rows: Sequence[Row],
    summary: Summary,
    columns: Sequence[str],
    title: str,
    failed: Sequence[str],
    noun: str = "wrapper",
) -> int:
    """Print the rows as asked for, what they add up to, and what could not finish.

    Returns:
        The exit code: 3 when an evaluation could not finish, 1 under --check when a target is
        missed or not judged, else 0.
    """
    title += f": one point of the data is {100 / asked.n:g} points of accuracy"
    if asked.as_json:
        listed, total = [asdict(row) for row in rows], asdict(summary)
        click.echo(json.dumps({"title": title, "rows": listed, "summary": total}))
    else:
        if asked.as_markdown:
            click.echo(markdown(rows, columns, noun))
        else:
            Console(width=max(150, Console().width)).print(table(rows, columns, title, noun))
        for line in account(summary, columns, noun):
            click.echo(line)
    for text in failed:
        Console(stderr=True).print(f"could not finish: {text}", style="red", highlight=False)
    return 3 if failed else int(asked.check and not summary.reached)
