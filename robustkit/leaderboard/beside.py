"""Published results beside own: one table per threat model, sorted together, never ranked together.

A published row has no verdicts per point, so that no test tells it from an own one. Each row names
the nearest of the other source, and by how much their robust accuracies differ.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, Literal, NamedTuple

from rich.console import Group

from robustkit.core.terminal_table import TerminalTable
from robustkit.core.text import clean, spreadsheet
from robustkit.leaderboard.formats import Cell, Link, to_lines
from robustkit.leaderboard.grouping import group_of, named, title
from robustkit.leaderboard.published import Published
from robustkit.leaderboard.rows import Row

HEADS = (
    *("source", "rank", "model", "clean", "robust", "95% interval", "certified", "verdict"),
    *("difference", "to the nearest", "AutoAttack", "venue"),
)
_LEAST = (  # what a narrow terminal does without, the first of them first
    *("venue", "95% interval", "AutoAttack", "certified", "to the nearest", "verdict", "rank"),
)
_WHOLE = ("source", "rank", "clean", "robust", "95% interval", "certified", "difference", "verdict",
          "AutoAttack")  # fmt: skip


class Beside(NamedTuple):
    """One row of a table of own and published results; accuracies are fractions.

    Under a finite threat model, such as common corruptions, `robust` is the mean accuracy over its
    variants, as others publish it; own rows are ranked by another number and have no rank here.

    Attributes:
        source: "own", measured here, or "published".
        rank: among the rows of the same source in this table.
        robust: of a published row the best known robust accuracy.
        verdict: own: `Row.reliability`. Published: "unreliable" where its publisher says so.
        nearest: the row of the other source with the nearest robust accuracy; None: there is none.
        difference: `robust` less that of `nearest`.
        autoattack: published accuracy under AutoAttack.
        link: of the paper.
    """

    source: Literal["own", "published"]
    rank: str
    model: str
    data: str
    norm: str
    eps: float
    clean: float
    robust: float
    robust_low: float | None = None
    robust_high: float | None = None
    certified: float | None = None
    verdict: str = ""
    nearest: str | None = None
    difference: float | None = None
    autoattack: float | None = None
    venue: str = ""
    link: str = ""
    record: str = ""


def tables(own: Iterable[Row], published: Iterable[Published]) -> list[list[Beside]]:
    """Return the rows of each threat model that either has, robust accuracy falling.

    Of rows that are equally robust the own ones come first.
    """
    found = sorted([*map(_own, own), *map(_published, published)], key=_order)
    groups = [list(members) for _, members in groupby(found, key=group_of)]
    return [[_with_nearest(row, group) for row in group] for group in groups]


def to_csv(groups: Iterable[Sequence[Beside]]) -> str:
    """Write every column of all tables."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(Beside._fields)
    for row in (row for group in groups for row in group):
        writer.writerow(["" if value is None else spreadsheet_cell(value) for value in row])
    return file.getvalue()


def spreadsheet_cell(value: float | str) -> str:
    """Write a number as it is, and a text so that no spreadsheet takes it for a formula."""
    return f"{value:.6g}" if isinstance(value, float) else spreadsheet(value)


def to_json(groups: Iterable[Sequence[Beside]]) -> list[dict[str, Any]]:
    """Return the rows of all tables as JSON values, in order."""
    return [row._asdict() for group in groups for row in group]


def to_markdown(groups: Iterable[Sequence[Beside]]) -> str:
    """Write one table per threat model; a venue links to its paper."""
    return _lines(groups, "markdown")


def to_latex(groups: Iterable[Sequence[Beside]]) -> str:
    r"""Write one `tabular` per threat model; needs `booktabs`, and `hyperref` for the links."""
    return _lines(groups, "latex")


def to_rich(groups: Iterable[Sequence[Beside]]) -> Group:
    """Build one table per threat model for a terminal; other ways of writing have all columns."""
    return Group(*map(_terminal, groups))


def _terminal(group: Sequence[Beside]) -> TerminalTable:
    lines = [dict(zip(HEADS, map(str, cells(row)), strict=True)) for row in group]
    heads = [head for head in HEADS if any(line[head] for line in lines)]
    table = TerminalTable(*heads, least=_LEAST, whole=_WHOLE, lined=True)
    table.title = clean(_title(group))
    for line in lines:
        table.add_row(*(clean(_brief(line[head])) for head in heads))
    return table


def cells(row: Beside) -> list[Cell]:
    """Return the cells below `HEADS`."""
    known = row.robust_low is not None and row.robust_high is not None
    return [
        row.source,
        row.rank,
        row.model,
        _share(row.clean),
        _share(row.robust),
        f"{row.robust_low:.4f}–{row.robust_high:.4f}" if known else "",
        _share(row.certified),
        row.verdict,
        "" if row.difference is None else f"{row.difference:+.4f}",
        row.nearest or "",
        _share(row.autoattack),
        Link(row.venue or "link", row.link) if row.link else row.venue,
    ]


def _lines(groups: Iterable[Sequence[Beside]], layout: str) -> str:
    return "\n".join(to_lines(_title(group), HEADS, map(cells, group), layout) for group in groups)


def _title(group: Sequence[Beside]) -> str:
    # Own rows of another number than their rank's have none: those of finite threat models.
    finite = named(group[0].norm) and any(
        row.source == "published" or not row.rank for row in group
    )
    mean = ": mean accuracy over corruptions and severities" if finite else ""
    return title(*group_of(group[0])) + mean


def _brief(name: str) -> str:
    """Write `robustbench:DATA/NORM/NAME` as NAME: the heading of the table says the rest."""
    return name.rpartition("/")[2] if name.startswith("robustbench:") else name


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _order(row: Beside) -> tuple[Any, ...]:
    return *group_of(row), -row.robust, row.source, -row.clean, row.model, row.record


def _with_nearest(row: Beside, group: Sequence[Beside]) -> Beside:
    others = [other for other in group if other.source != row.source]
    if not others:
        return row
    near = min(others, key=lambda other: abs(other.robust - row.robust))
    return row._replace(nearest=near.model, difference=round(row.robust - near.robust, 6))


def _own(row: Row) -> Beside:
    found = _measured(row)
    if row.mean_corrupted is None:
        return found
    return found._replace(
        rank="", robust=row.mean_corrupted, robust_low=row.mean_corrupted_low,
        robust_high=row.mean_corrupted_high,
    )  # fmt: skip


def _measured(row: Row) -> Beside:
    return Beside(
        source="own",
        rank=row.rank,
        model=row.defense,
        data=row.data,
        norm=row.norm,
        eps=row.eps,
        clean=row.clean,
        robust=row.robust,
        robust_low=row.robust_low,
        robust_high=row.robust_high,
        certified=row.certified,
        verdict=row.reliability,
        record=row.record,
    )


def _published(row: Published) -> Beside:
    return Beside(
        source="published",
        rank=str(row.rank),
        model=row.model,
        data=row.data,
        norm=row.norm,
        eps=row.eps,
        clean=row.clean,
        robust=row.best_known,
        verdict="unreliable" * row.unreliable,
        autoattack=row.autoattack,
        venue=row.venue,
        link=row.source,
    )
