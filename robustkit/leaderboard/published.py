"""Results that others have published: RobustBench's `model_info` files as rows of their own.

They were not measured here and have no verdicts per point, so that nothing can be computed from
them: they are ranked among themselves, labeled `published` with their source, and never share
a table with measured rows.

A file is `DATASET/THREAT/NAME.json`; its fields are strings of percentages (`clean_acc`,
`autoattack_acc`, `external`) and `eps` ("8/255"). `external` is a stronger, adaptive result, where
one is known: the best known robust accuracy.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from robustkit.core import json_files
from robustkit.core.text import number, spreadsheet
from robustkit.errors import UsageError
from robustkit.leaderboard.formats import to_lines
from robustkit.leaderboard.grouping import group_of, title

SCHEMA = "robustkit/published/1"
_NORMS = {"Linf": "linf", "L2": "l2", "L1": "l1"}
_HEADS = ("rank", "model", "clean", "AutoAttack", "best known", "architecture", "venue", "source")


class Published(NamedTuple):
    """One published result. Accuracies are fractions; None where nothing was published.

    Attributes:
        model: the name under which `robustkit evaluate robustbench:...` loads it.
        best_known: the external result where there is one, else AutoAttack's.
        unreliable: its publisher says that AutoAttack is not to be trusted here.
        source: link of the paper.
        file: where the row was read.
    """

    rank: int
    label: str
    model: str
    data: str
    norm: str
    eps: float
    clean: float
    autoattack: float
    best_known: float
    reported: float | None
    unreliable: bool
    extra_data: bool
    architecture: str
    venue: str
    title: str
    source: str
    footnote: str
    file: str


def load(paths: Iterable[Path | str]) -> tuple[list[Published], int]:
    """Read files, and folders with everything in them.

    Returns:
        The rows, ranked within data, norm and eps by best known robust accuracy, and the number of
        files left out because they tell no robust accuracy (common corruptions).

    Raises:
        UsageError: for a file that is not of this kind, and when there is no result at all.
    """
    found, left_out = [], 0
    for file in _files([Path(path) for path in paths]):
        row = _read(file)
        found += [row] if row is not None else []
        left_out += row is None
    if not found:
        raise UsageError(
            "expected model_info files of RobustBench (DATASET/THREAT/NAME.json with "
            f"autoattack_acc), got none in {', '.join(map(str, paths))}."
        )
    found.sort(key=lambda row: (*group_of(row), -row.best_known, -row.clean, row.model))
    ranked = []
    for _, members in groupby(found, key=group_of):
        group = list(members)
        better = [sum(other.best_known > row.best_known for other in group) for row in group]
        ranked += [row._replace(rank=n + 1) for row, n in zip(group, better, strict=True)]
    return ranked, left_out


def to_csv(rows: Sequence[Published]) -> str:
    """Write every column; the label says that nothing here was measured."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(Published._fields)
    for row in rows:
        writer.writerow(["" if v is None else spreadsheet(str(v)) for v in row])
    return file.getvalue()


def to_json(rows: Sequence[Published]) -> list[dict[str, Any]]:
    """Return the rows as JSON values."""
    return [row._asdict() for row in rows]


def to_markdown(rows: Sequence[Published]) -> str:
    """Write one table per data set, norm and eps."""
    return "\n".join(
        to_lines(heading, _HEADS, cells, "markdown") for heading, cells in _tables(rows)
    )


def to_latex(rows: Sequence[Published]) -> str:
    r"""Write one `tabular` per data set, norm and eps; needs `\usepackage{booktabs}`."""
    return "\n".join(to_lines(heading, _HEADS, cells, "latex") for heading, cells in _tables(rows))


def to_rich(rows: Sequence[Published]) -> Group:
    """Build one table per data set, norm and eps for a terminal."""
    tables = []
    for heading, cells in _tables(rows):
        table = Table(title=Text(heading), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for head in _HEADS:
            table.add_column(head, overflow="fold", no_wrap=head in ("rank", "clean", "AutoAttack"))
        for line in cells:
            table.add_row(*map(Text, line))
        tables.append(table)
    return Group(*tables)


def _tables(rows: Sequence[Published]) -> list[tuple[str, list[list[str]]]]:
    return [
        (
            f"published, not measured here: {title(*group)}",
            [_cells(row) for row in members],
        )
        for group, members in groupby(rows, key=group_of)
    ]


def _cells(row: Published) -> list[str]:
    doubt = " (unreliable)" * row.unreliable
    return [
        str(row.rank),
        row.model,
        f"{row.clean:.4f}",
        f"{row.autoattack:.4f}{doubt}",
        f"{row.best_known:.4f}",
        row.architecture,
        row.venue,
        row.source,
    ]


def _files(places: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for place in places:
        if not place.exists():
            raise UsageError(f"{place}: expected model_info files, got no such path.")
        found += [place] if place.is_file() else sorted(place.rglob("*.json"))
    return list(dict.fromkeys(path.resolve() for path in found))


def _read(path: Path) -> Published | None:
    told = json_files.read(path)
    if not isinstance(told, dict) or "clean_acc" not in told or "dataset" not in told:
        raise UsageError(
            f"{path}: expected a model_info file of RobustBench with dataset and clean_acc, got "
            "another kind of JSON."
        )
    if "autoattack_acc" not in told:
        return None
    threat = path.parent.name
    if threat not in _NORMS:
        raise UsageError(
            f"{path}: expected it in a folder named after its threat model "
            f"({', '.join(_NORMS)}), got {threat!r}: the file itself does not say it."
        )
    attacked, external = _share(path, told, "autoattack_acc"), _share(path, told, "external")
    clean = _share(path, told, "clean_acc")
    if attacked is None or clean is None:
        raise UsageError(f"{path}: expected numbers in clean_acc and autoattack_acc, got none.")
    data = str(told["dataset"])
    return Published(
        rank=1,
        label="published",
        model=f"robustbench:{data}/{threat}/{path.stem}",
        data=data,
        norm=_NORMS[threat],
        eps=_eps(path, told.get("eps")),
        clean=clean,
        autoattack=attacked,
        best_known=attacked if external is None else external,
        reported=_share(path, told, "reported"),
        unreliable=told.get("unreliable") is True,
        extra_data=told.get("additional_data") is True,
        architecture=str(told.get("architecture") or ""),
        venue=str(told.get("venue") or ""),
        title=str(told.get("name") or ""),
        source=str(told.get("link") or ""),
        footnote=str(told.get("footnote") or ""),
        file=str(path),
    )


def _share(path: Path, told: dict[str, Any], key: str) -> float | None:
    """Read a percentage as a fraction; "", "null" and nothing are None."""
    value = told.get(key)
    if value in (None, "", "null"):
        return None
    try:
        percent = float(str(value))
    except ValueError:
        percent = -1.0
    if not 0 <= percent <= 100:
        raise UsageError(f"{path}: expected {key} in percent, from 0 to 100, got {value!r}.")
    return round(percent / 100, 6)


def _eps(path: Path, value: Any) -> float:
    try:
        eps = number(str(value))
    except ValueError:
        eps = 0.0
    if not 0 < eps < float("inf"):
        raise UsageError(
            f"{path}: expected eps as a number or fraction such as 8/255, got {value!r}."
        )
    return eps
