"""Writes explanation/across-threats.md: the color models under every threat model, and the worst.

Every figure is computed from the committed records on the bundled color images.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

from robustkit.leaderboard.grouping import shown_threat
from robustkit.leaderboard.models import Model, models
from robustkit.leaderboard.rows import load_records
from robustkit.record.points import ROBUST
from robustkit.record.record import Record

RECORDS = Path(__file__).resolve().parent.parent / "leaderboards" / "records"
DATA = "bundled-color"
KINDS = ("linf", "l2", "l1", "patch", "style", "corruption")  # the order of the columns
NONE = "–"
TEXT = (
    "# From one threat model to the others\n\n"
    "Networks trained for linf on CIFAR-10 (JPEG), on the color images of the package "
    f"(`{DATA}`), under every threat model with records of two models or more. A cell is the "
    "accuracy that is left, with the number of images where it is not 200: for norms, patches and "
    "style an upper bound, under corruptions the share of images recognized in all 75 variants. "
    "*Worst* is the least cell of the row, and where it stands; *all* is the share of the images "
    "common to its runs that no threat model of the row breaks. A cell without a run is "
    f"{NONE}; a row that lacks some is flattered by its last two columns.\n"
)


@functools.cache
def page() -> str:
    """Write the page from the committed records."""
    found = [(path, record) for path, record in load_records([RECORDS]) if record.data.name == DATA]
    groups = columns(found)
    return "\n".join([TEXT, table(groups), *map(_suites, groups)])


def columns(found: Iterable[tuple[Path | str, Record]]) -> list[list[Model]]:
    """Return the models under each threat model that two or more have records of."""
    groups = [group for group in models(found) if len(group) > 1]
    return sorted(groups, key=lambda of: (_kind(of[0].record), of[0].record.threat.text))


def table(groups: Sequence[Sequence[Model]]) -> str:
    """Write a line per model: clean accuracy, a cell per threat model, the worst, and all."""
    heads = [_shown(group[0].record) for group in groups]
    cells: dict[str, dict[str, Model]] = {}
    for head, group in zip(heads, groups, strict=True):
        for model in group:
            cells.setdefault(model.row.defense, {})[head] = model
    ranked = sorted(cells.items(), key=lambda item: (-len(item[1]), -_worst(item[1])[0], item[0]))
    lines = [
        ["model", "clean", *heads, "worst", "all"],
        ["---"] * (len(heads) + 4),
        *([f"`{name}`", *_line(of, heads)] for name, of in ranked),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _line(of: dict[str, Model], heads: Sequence[str]) -> list[str]:
    most = max(of.values(), key=lambda model: model.row.n)
    worst, where = _worst(of)
    common = set.intersection(*(set(model.record.points.index) for model in of.values()))
    kept = set.intersection(common, *(_robust(model.record) for model in of.values()))
    return [
        f"{most.row.clean:.3f}",
        *(_cell(of[head].row.robust, of[head].row.n) if head in of else NONE for head in heads),
        f"{worst:.3f} {where}",
        _cell(len(kept) / len(common), len(common)),
    ]


def _worst(of: dict[str, Model]) -> tuple[float, str]:
    return min((model.row.robust, head) for head, model in of.items())


def _robust(record: Record) -> set[int]:
    pairs = zip(record.points.index, record.points.status, strict=True)
    return {index for index, status in pairs if status in ROBUST}


def _cell(share: float, n: int) -> str:
    return f"{share:.3f}" + (f" (n = {n})" if n != 200 else "")


def _kind(record: Record) -> int:
    kind = record.threat.norm.partition(":")[0]
    return KINDS.index(kind) if kind in KINDS else len(KINDS)


def _shown(record: Record) -> str:
    return shown_threat(record.threat.norm, record.threat.eps).replace(", eps =", "")


def _suites(group: Sequence[Model]) -> str:
    """Say by which suites a column was attacked, which its figures depend on."""
    runs = (record for model in group for _, record in model.runs)
    names = {f"`{(record.suite or 'attacks').partition('(')[0]}`" for record in runs}
    return f"- {_shown(group[0].record)}: {', '.join(sorted(names))}."
