"""Records become rows, and rows a table in one total order, with intervals and ranges of ranks.

A row is ranked only against rows of the same data, norm and eps. A tie is shown as a range.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from robustkit.core import stats
from robustkit.core.text import posix
from robustkit.errors import UsageError
from robustkit.leaderboard.formats import (
    OF_PROMPTS,
    to_csv,
    to_json,
    to_latex,
    to_markdown,
    to_rich,
)
from robustkit.leaderboard.grouping import group_of
from robustkit.record.evidence import refuse_altered
from robustkit.record.interval import robust_interval, variants_interval
from robustkit.record.record import Record, load
from robustkit.record.schema import Stage

__all__ = [
    "Row",
    "load_records",
    "robust_interval",
    "row",
    "table",
    "to_csv",
    "to_json",
    "to_latex",
    "to_markdown",
    "to_rich",
]


class Row(NamedTuple):
    """One record as one line of a table. The fields are the columns, in order.

    Accuracies are fractions of all n points; eps is in input units.
    """

    rank: str
    defense: str
    data: str
    norm: str
    eps: float
    n: int
    clean: float
    robust: float
    robust_low: float
    robust_high: float
    audit_bound: float | None
    certified: float | None
    worst_class: float
    worst_class_name: str
    tail_30: float
    randomized: bool
    flags: str
    strongest_attack: str | None
    suite: str | None
    forwards_per_point: float
    backwards_per_point: float
    seconds: float
    seed: int
    record: str
    strength: str = ""
    """What each attack's power depends on, with the forward passes per point it was given."""
    reliability: str = "reliable"
    """The verdict of the gravest flag: reliable, suspicious or unreliable."""
    undecided: float | None = None
    """Share of the points neither proved nor broken; None where no certificate was asked for."""
    audit_halving: int | None = None
    """Passes that would halve `audit_bound`, by a larger random part of the audit."""
    refusal: float | None = None
    """Of a model of prompts the share of harmful ones that are refused without an attack."""
    attack_success: float | None = None
    """Of those the share that an attack of the threat model got answered."""
    over_refusal: float | None = None
    """The share of the prompts to be answered, near misses among them, that are refused."""
    mean_corrupted: float | None = None
    """Of a finite threat model the mean over corruptions of the mean over severities (mCA)."""
    mean_corrupted_low: float | None = None
    mean_corrupted_high: float | None = None
    severity_5: float | None = None
    worst_corruption: float | None = None
    worst_corruption_name: str = ""
    corruptions: str = ""
    """The accuracy under each corruption, the mean over its severities."""


OF_FINITE = Row._fields[Row._fields.index("mean_corrupted") :]


def row(record: Record, path: Path | str, rank: str = "1") -> Row:
    """Make the row of one record.

    `robust_low` and `robust_high` are the 95% interval of `robustkit.record.interval`, rounded to
    six digits.
    """
    interval, worst = robust_interval(record), record.worst_class
    return Row(
        rank=rank,
        defense=record.defense,
        data=record.data.title,
        norm=record.threat.kind,
        eps=record.threat.eps,
        n=record.n,
        clean=record.clean,
        robust=record.robust,
        robust_low=round(interval.low, 6),
        robust_high=round(interval.high, 6),
        audit_bound=record.audit_bound,
        certified=record.certified,
        worst_class=worst.accuracy,
        worst_class_name=record.class_name(worst.label),
        tail_30=record.tail_30,
        randomized=record.randomized,
        flags=";".join(flag.name for flag in record.flags),
        strongest_attack=record.strongest_attack,
        suite=record.suite,
        forwards_per_point=record.forwards_per_point,
        backwards_per_point=record.backwards_per_point,
        seconds=record.seconds,
        seed=record.seed,
        record=posix(path),
        strength="; ".join(map(_strength, record.stages)),
        reliability=record.reliability,
        undecided=record.undecided,
        audit_halving=record.audit_halving,
        **_of_prompts(record),
        **_corrupted(record),
    )


def _of_prompts(record: Record) -> dict[str, Any]:
    """The columns of a model that refuses prompts or complies; the others leave them empty."""
    if tuple(record.data.class_names or ()) != ("refused", "complied"):
        return {}
    points = list(zip(record.points.label, record.points.status, strict=True))
    harmful = [status for label, status in points if label == 0]
    allowed = [status for label, status in points if label == 1]
    refused = [status for status in harmful if status != "misclassified"]
    return {
        "refusal": _share(len(refused), harmful),
        "attack_success": _share(refused.count("broken"), refused),
        "over_refusal": _share(allowed.count("misclassified"), allowed),
    }


def _share(count: int, of: Sequence[Any]) -> float | None:
    return count / len(of) if of else None


def _corrupted(record: Record) -> dict[str, Any]:
    """The columns of a finite threat model; the others leave them empty."""
    found = record.corruptions
    if found is None:
        return {}
    low, high = variants_interval(record, found)
    name, worst = found.worst
    return {
        "mean_corrupted": found.mean,
        "mean_corrupted_low": round(low, 6),
        "mean_corrupted_high": round(high, 6),
        "severity_5": found.hardest,
        "worst_corruption": worst,
        "worst_corruption_name": name,
        "corruptions": "; ".join(f"{kind}={mean:.4f}" for kind, mean in found.kinds.items()),
    }


def table(records: Iterable[tuple[Path | str, Record]]) -> pd.DataFrame:
    """Make a table of records and the paths they lie at; the columns are those of `Row`.

    Rows of one data set, norm and eps (but for rounding) form one table and are ranked together:
    robust accuracy falling, then clean accuracy falling, then defense; the ranks are those of
    `robustkit.core.stats.ranks.rank_ranges`. The order of `records` does not matter.
    """
    return frame([line for group in ranked(records) for line, _ in group])


def frame(ranked: list[Row]) -> pd.DataFrame:
    """Make the table of rows; without the columns of a kind of model or threat that no row has."""
    table = pd.DataFrame(ranked, columns=list(Row._fields))
    finite = any(line.mean_corrupted is not None for line in ranked)
    prompts = any((line.refusal, line.over_refusal) != (None, None) for line in ranked)
    return table.drop(columns=[*(() if finite else OF_FINITE), *(() if prompts else OF_PROMPTS)])


def ranked(records: Iterable[tuple[Path | str, Record]]) -> list[list[tuple[Row, Record]]]:
    """Return the rows of `table` with their records, group by group."""
    items = sorted(((row(record, path), record) for path, record in records), key=_order)
    groups = []
    for _, members in groupby(items, key=lambda item: group_of(item[0])):
        group = list(members)
        ranks = ranges([record for _, record in group])
        groups.append(
            [(line._replace(rank=rank), record)
             for (line, record), rank in zip(group, ranks, strict=True)]
        )  # fmt: skip
    return groups


def ranges(records: Sequence[Record]) -> list[str]:
    """Return the rank of each of the records of one group: "2", or "1-3" where it is a tie."""
    outcomes = [stats.Outcomes(record.data.digest, record.outcomes) for record in records]
    found = stats.rank_ranges(outcomes)
    return [str(best) if best == worst else f"{best}-{worst}" for best, worst in found]


def load_records(paths: Iterable[Path | str], *, inputs: bool = False) -> list[tuple[Path, Record]]:
    """Load records from files and folders, each different record once.

    A folder stands for every `record.json` at any depth, and for every `*.json` that lies in the
    folder itself where it is called `records`, or in a folder of that name at any depth.

    Raises:
        UsageError: naming the file that is no record, or when there is no record at all.
        EvidenceAltered: naming a record that is not what its run wrote.
    """
    places = [Path(path) for path in paths]
    found: dict[int, list[tuple[Path, Record]]] = {}  # by what hardly two records share
    for file in (file for place in places for file in _files(place)):
        record = load(file)
        refuse_altered(record, file)
        key = hash((record.defense, record.seconds, *record.points.status))
        alike = found.setdefault(key, [])
        if not any(record == known for _, known in alike):
            alike.append((file, record))
    if not found:
        where = ", ".join(map(str, places)) or "nothing"
        raise UsageError(
            "expected records (record.json, or *.json in a folder called records), "
            f"got none in {where}. `robustkit evaluate` makes them."
        )
    return list(chain.from_iterable(found.values()))


def fingerprint(strength: Mapping[str, Any]) -> str:
    """Write a fingerprint on one line: `steps=10, restarts=1`."""
    return ", ".join(
        f"{key}=[{fingerprint(value)}]"
        if isinstance(value, Mapping)
        else f"{key}={value:.6g}"
        if isinstance(value, float)
        else f"{key}={value}"
        for key, value in strength.items()
    )


def _strength(stage: Stage) -> str:
    """Write the fingerprint of one attack: name, settings, passes per point that entered."""
    passes = stage.forwards / stage.entered if stage.entered else 0.0
    settings = f"{fingerprint(stage.strength)}, " if stage.strength else ""
    return f"{stage.attack.partition('(')[0]}: {settings}F={passes:.1f}"


def _order(item: tuple[Row, Record]) -> tuple[Any, ...]:
    line = item[0]
    return group_of(line), -line.robust, -line.clean, line.defense, line.seed, line.record


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise UsageError(f"{place}: expected a record or a folder of records, got no such path.")
    found = {*place.rglob("record.json"), *place.rglob("records/*.json")}
    if place.resolve().name == "records":
        found.update(place.glob("*.json"))
    return sorted(file for file in found if file.is_file())
