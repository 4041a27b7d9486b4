"""Results that others have published: RobustBench's `model_info` files as rows of their own.

They were not measured here and have no verdicts per point, so that nothing can be computed from
them: they are ranked among themselves and labeled `published` with their source. beside.py sets
them beside measured rows.

A file is `DATASET/THREAT/NAME.json`; its fields are strings of percentages (`clean_acc`,
`autoattack_acc`, `external`) and `eps` ("8/255"). `external` is a stronger, adaptive result, where
one is known: the best known robust accuracy. In the folder `corruptions` a file tells
`corruptions_acc`, the mean accuracy over the fifteen corruptions and five severities.
"""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from robustkit.core import json_files
from robustkit.core.text import number, spreadsheet
from robustkit.errors import UsageError
from robustkit.leaderboard.grouping import group_of, ranks

SCHEMA = "robustkit/published/1"
CORRUPTIONS, _SEVEREST = "corruption:all", 5.0  # as records of the same threat model have them
_NORMS = {"Linf": "linf", "L2": "l2", "L1": "l1"}
_DATA = ("cifar10", "cifar100", "imagenet")  # folders of model_info
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")


class Published(NamedTuple):
    """One published result. Accuracies are fractions; None where nothing was published.

    Attributes:
        model: the name under which `robustkit evaluate robustbench:...` loads it.
        autoattack: None under common corruptions, which are not attacked.
        best_known: the external result where there is one, else AutoAttack's; under common
            corruptions the mean accuracy over corruptions and severities.
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
    autoattack: float | None
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


def load(paths: Iterable[Path | str]) -> tuple[list[Published], list[str]]:
    """Read files, and folders with everything in them.

    Returns:
        The rows, ranked within data, norm and eps by best known robust accuracy, and the names
        (DATASET/THREAT/NAME) of what is left out because it tells no robust accuracy.

    Raises:
        UsageError: for a file that is not of this kind, and when there is no result at all.
    """
    found: list[Published] = []
    left_out: list[str] = []
    for file in _files([Path(path) for path in paths]):
        if (row := _read(file)) is not None:
            found.append(row)
        else:
            left_out.append("/".join(file.with_suffix("").parts[-3:]))
    if not found:
        raise UsageError(
            "expected model_info files of RobustBench (DATASET/THREAT/NAME.json with "
            f"autoattack_acc), got none in {', '.join(map(str, paths))}."
        )
    found.sort(key=lambda row: (*group_of(row), -row.best_known, -row.clean, row.model))
    ranked = []
    for _, members in groupby(found, key=group_of):
        group = list(members)
        places = ranks([row.best_known for row in group])
        ranked += [row._replace(rank=rank) for row, rank in zip(group, places, strict=True)]
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
    threat = path.parent.name
    corrupted = threat == "corruptions" and "corruptions_acc" in told
    if "autoattack_acc" not in told and not corrupted:
        return None
    if threat not in _NORMS and not corrupted:
        raise UsageError(
            f"{path}: expected it in a folder named after its threat model "
            f"({', '.join(_NORMS)}), got {threat!r}: the file itself does not say it."
        )
    key = "corruptions_acc" if corrupted else "autoattack_acc"
    found, external = _share(path, told, key), _share(path, told, "external")
    clean = _share(path, told, "clean_acc")
    if found is None or clean is None:
        raise UsageError(f"{path}: expected numbers in clean_acc and {key}, got none.")
    # Some files of CIFAR-100 say cifar10; RobustBench's own tables go by the folder.
    place = path.parent.parent.name
    data = place if place in _DATA else str(told["dataset"])
    return Published(
        rank=1,
        label="published",
        model=f"robustbench:{data}/{threat}/{path.stem}",
        data=data,
        norm=CORRUPTIONS if corrupted else _NORMS[threat],
        eps=_SEVEREST if corrupted else _eps(path, told.get("eps")),
        clean=clean,
        autoattack=None if corrupted else found,
        best_known=found if external is None else external,
        reported=_share(path, told, "reported"),
        unreliable=told.get("unreliable") is True,
        extra_data=told.get("additional_data") is True,
        architecture=str(told.get("architecture") or ""),
        venue=_plain(told.get("venue")),
        title=_plain(told.get("name")),
        source=str(told.get("link") or ""),
        footnote=_plain(told.get("footnote")),
        file=str(path),
    )


def _plain(value: Any) -> str:
    """Read a text that was written for a web page: no tags, and `&amp;` is an ampersand."""
    return html.unescape(_TAG.sub("", str(value or ""))).strip()


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
