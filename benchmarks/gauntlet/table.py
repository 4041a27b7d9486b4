"""The gauntlet as a table on the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from benchmarks.gauntlet.rows import LARGEST, MEAN, Cell, Row, Summary

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
    if summary.reached is None:
        lines.append(f"targets: not judged, as parity and adaptive have not run on every {noun}")
    else:
        lines.append(
            f"targets (adaptive: at most {LARGEST:g} points anywhere, {MEAN:g} on average; every "
            f"{noun} that fools parity is flagged): {'reached' if summary.reached else 'missed'}"
        )
    return lines
