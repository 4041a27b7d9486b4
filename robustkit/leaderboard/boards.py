"""Boards of results that others published, shipped as data: no number of them was measured here.

They have a type and tables of their own and are never mixed with measured rows. A board is a CSV
file of what RobustBench's `model_info` says, with its source, commit and date in a head of comment
lines (`python -m benchmarks.published` writes it). `later.csv` is written by hand: what a later
attack left of a claim, with the source of each figure. Its rows are joined by board and model, and
those of models that RobustBench does not list say so.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Group

from robustkit.core.terminal_table import TerminalTable
from robustkit.core.text import clean, number, spreadsheet
from robustkit.errors import unknown
from robustkit.leaderboard import grouping
from robustkit.leaderboard.formats import Cell, Link, to_lines
from robustkit.leaderboard.published import CORRUPTIONS

SCHEMA = "robustkit/board/1"
LATER = "later"
FIELDS = (
    *("model", "eps", "clean", "claimed", "autoattack", "best_known", "unreliable", "extra_data"),
    *("architecture", "venue", "title", "source"),
)
_SHARES = ("clean", "claimed", "autoattack", "best_known", "later")
HEADS = ("rank", "model", "clean", "claimed", "AutoAttack", "best known", "later attack", "venue")
_LEAST = ("venue", "rank", "claimed", "later attack")
_WHOLE = ("rank", "clean", "claimed", "AutoAttack", "best known")
# Where the wheel has them, and where a checkout has.
_PLACES = (
    Path(__file__).with_name("board_files"),
    Path(__file__).parents[2] / "leaderboards" / "published",
)


class BoardRow(NamedTuple):
    """What was published of one model. Accuracies are fractions; None: nothing was.

    Attributes:
        label: "RobustBench", or "elsewhere" for a model that it does not list.
        claimed: robust accuracy that the authors claim; under corruptions the mean accuracy.
        autoattack: what RobustBench's AutoAttack left; None under corruptions.
        best_known: the lowest of all; under corruptions the mean accuracy over corruptions and
            severities.
        later: what a later attack left, `later_attack` by `later_source`.
        unreliable: its publisher says that AutoAttack is not to be trusted here.
        source: link of the paper.
    """

    rank: int
    label: str
    model: str
    eps: float
    clean: float | None
    claimed: float | None
    autoattack: float | None
    best_known: float
    later: float | None = None
    later_attack: str = ""
    later_source: str = ""
    unreliable: bool = False
    extra_data: bool = False
    architecture: str = ""
    venue: str = ""
    title: str = ""
    source: str = ""


class Board(NamedTuple):
    """The rows of one data set and threat model, best known robust accuracy falling.

    Attributes:
        facts: `data`, `norm`, `source`, `link`, `folder`, `commit`, `date` and `license` of the
            file.
    """

    name: str
    facts: dict[str, str]
    rows: list[BoardRow]

    @property
    def eps(self) -> float:
        """That of most rows; some were published at another, such as 0.031 for 8/255."""
        return Counter(row.eps for row in self.rows).most_common(1)[0][0]


def names() -> list[str]:
    """Name the boards there are, such as cifar10-linf."""
    return sorted(path.stem for path in _place().glob("*.csv") if path.stem != LATER)


def read(name: str) -> Board:
    """Read a board.

    Raises:
        UsageError: for an unknown name, with the list.
    """
    if name not in names():
        raise unknown("board", name, names())
    facts, lines = _parted(_place() / f"{name}.csv")
    later = {line["model"]: line for line in _parted(_place() / f"{LATER}.csv")[1]
             if line["board"] == name}  # fmt: skip
    rows = [_row(line | later.pop(line["model"], {}), "RobustBench") for line in lines]
    rows += [_row(line, "elsewhere") for line in later.values()]
    rows.sort(key=lambda row: (-row.best_known, -(row.clean or 0), row.model))
    places = grouping.ranks([row.best_known for row in rows])
    ranked = [row._replace(rank=rank) for row, rank in zip(rows, places, strict=True)]
    return Board(name, facts, ranked)


def _place() -> Path:
    return next((place for place in _PLACES if place.is_dir()), _PLACES[0])


def _parted(path: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Read the facts of the head, and the lines that say anything of each column."""
    lines = path.read_text(encoding="utf-8").splitlines()
    head = [line[1:].partition(":") for line in lines if line.startswith("#")]
    table = csv.DictReader(line for line in lines if not line.startswith("#"))
    filled = [{key: value for key, value in line.items() if value} for line in table]
    return {key.strip(): value.strip() for key, _, value in head}, filled


def _row(line: dict[str, str], label: str) -> BoardRow:
    told = {key: float(line[key]) for key in _SHARES if key in line}
    return BoardRow(
        rank=1,
        label=label,
        model=line["model"],
        eps=number(line["eps"]),
        clean=told.get("clean"),
        claimed=told.get("claimed"),
        autoattack=told.get("autoattack"),
        best_known=min(told[key] for key in ("autoattack", "best_known", "later") if key in told),
        later=told.get("later"),
        later_attack=line.get("later_attack", ""),
        later_source=line.get("later_source", ""),
        unreliable=line.get("unreliable") == "true",
        extra_data=line.get("extra_data") == "true",
        architecture=line.get("architecture", ""),
        venue=line.get("venue", ""),
        title=line.get("title", ""),
        source=line.get("source", ""),
    )


def to_csv(boards: Sequence[Board]) -> str:
    """Write every column, with board, commit and date in front."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["board", "commit", "date", *BoardRow._fields])
    for board in boards:
        first = [board.name, board.facts["commit"], board.facts["date"]]
        writer.writerows([*first, *map(_csv_cell, row)] for row in board.rows)
    return file.getvalue()


def to_json(boards: Sequence[Board]) -> dict[str, Any]:
    """Return the boards as a JSON object."""
    told = [
        {"name": board.name, **board.facts, "rows": [row._asdict() for row in board.rows]}
        for board in boards
    ]
    return {"schema": SCHEMA, "boards": told}


def to_markdown(boards: Sequence[Board]) -> str:
    """Write one table per board; venues and later attacks link to their sources."""
    return _lines(boards, "markdown")


def to_latex(boards: Sequence[Board]) -> str:
    r"""Write one `tabular` per board; needs `booktabs`, and `hyperref` for the links."""
    return _lines(boards, "latex")


def to_rich(boards: Sequence[Board]) -> Group:
    """Build one table per board for a terminal; other ways of writing have all columns."""
    return Group(*map(_terminal, boards))


def _lines(boards: Sequence[Board], layout: str) -> str:
    return "\n".join(to_lines(_title(board), HEADS, _all_cells(board), layout) for board in boards)


def _all_cells(board: Board) -> list[list[Cell]]:
    return [_cells(row, board.eps) for row in board.rows]


def _terminal(board: Board) -> TerminalTable:
    lines = [[cell.text if isinstance(cell, Link) else cell for cell in cells]
             for cells in _all_cells(board)]  # fmt: skip
    told = [any(cells) for cells in zip(*lines, strict=True)]
    heads = [head for head, any_told in zip(HEADS, told, strict=True) if any_told]
    table = TerminalTable(*heads, least=_LEAST, whole=_WHOLE, lined=True)
    table.title = clean(_title(board))
    for line in lines:
        table.add_row(*(clean(cell) for cell, any_told in zip(line, told, strict=True) if any_told))
    return table


def _title(board: Board) -> str:
    facts = board.facts
    mean = ", mean accuracy over corruptions and severities" * (facts["norm"] == CORRUPTIONS)
    return (
        "Published by others, not measured here: "
        f"{grouping.title(facts['data'], facts['norm'], board.eps)}{mean} "
        f"({facts['source']}, {facts['folder']}, commit {facts['commit'][:12]}, {facts['date']})"
    )


def _cells(row: BoardRow, eps: float) -> list[Cell]:
    """Return the cells below `HEADS`; another `eps` than the table's is told."""
    later = "" if row.later is None else f"{row.later:.4f} {row.later_attack}"
    marks = [
        *[f"eps = {grouping.shown_eps(row.eps)}"] * (row.eps != eps),
        *["unreliable"] * row.unreliable,
        *["not on RobustBench"] * (row.label == "elsewhere"),
    ]
    return [
        str(row.rank),
        f"{row.model} ({', '.join(marks)})" if marks else row.model,
        _share(row.clean),
        _share(row.claimed),
        _share(row.autoattack),
        _share(row.best_known),
        Link(later, row.later_source) if row.later_source else later,
        Link(row.venue or "link", row.source) if row.source else row.venue,
    ]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _csv_cell(value: float | str | None) -> str:
    if value is None or isinstance(value, bool):
        return "" if value is None else str(value).lower()
    return spreadsheet(value) if isinstance(value, str) else f"{value:.6g}"
