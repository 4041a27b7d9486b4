"""One row per model: the lowest verdict on every point, over all runs of the model.

A model that was attacked by several suites or under several seeds has one robust accuracy, that of
the points which none of the runs broke; ranks and intervals follow from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from robustkit.leaderboard.grouping import group_of
from robustkit.leaderboard.rows import Row, ranges, row
from robustkit.record.interval import stopped_early
from robustkit.record.points import Points
from robustkit.record.record import Record
from robustkit.verify.flags import Flag

# A point is what the worst of its runs says; a proof stands where no run broke the point.
_LOWEST = {"misclassified": 0, "broken": 1, "certified": 2, "robust": 3}


class Model(NamedTuple):
    """One model under one threat model.

    Attributes:
        row: its line of the table.
        record: what `row` was made from: the record of its one run, or the lowest verdicts of all
            that are on the same points.
        runs: every run and its own row, the one that counts most first.
        counted: so many of them, from the first on, are in `row`; the others are on other points.
    """

    row: Row
    record: Record
    runs: list[tuple[Row, Record]]
    counted: int


def models(records: Iterable[tuple[Path | str, Record]]) -> list[list[Model]]:
    """Return the models of records and the paths they lie at, ranked, threat model by threat model.

    A model is its name and the digest of its weights. The points are those of its `adaptive` run,
    else of the run on most points; the verdict (`reliability`) and the flags are those of its
    `adaptive` runs, which act on what is found about a model, else of all its runs.
    """
    items = sorted(((row(record, path), record) for path, record in records), key=_identity)
    found = [_model(list(runs)) for _, runs in groupby(items, key=_identity)]
    found.sort(key=lambda of: (*group_of(of.row), -of.row.robust, -of.row.clean, of.row.defense,
                               of.row.seed, of.row.record))  # fmt: skip
    groups = []
    for _, members in groupby(found, key=lambda model: group_of(model.row)):
        group = list(members)
        ranks = ranges([model.record for model in group])
        groups.append(
            [of._replace(row=of.row._replace(rank=rank))
             for of, rank in zip(group, ranks, strict=True)]
        )  # fmt: skip
    return groups


def _identity(item: tuple[Row, Record]) -> tuple[Any, ...]:
    line, record = item
    return *group_of(line), line.defense, record.weights.digest


def _adaptive(record: Record) -> bool:
    return (record.suite or "").partition("(")[0] == "adaptive"


def _model(runs: list[tuple[Row, Record]]) -> Model:
    runs.sort(key=lambda run: (not _adaptive(run[1]), -run[1].n, run[0].robust, run[0].suite or "",
                               run[0].seed, run[0].record))  # fmt: skip
    digest = runs[0][1].data.digest
    same = [run for run in runs if run[1].data.digest == digest]
    others = [run for run in runs if run[1].data.digest != digest]
    trusted = [record for _, record in runs if _adaptive(record)] or [record for _, record in runs]
    if len(runs) == 1:
        return Model(runs[0][0], runs[0][1], runs, 1)
    record = lowest([record for _, record in same], trusted)
    return Model(row(record, runs[0][0].record), record, [*same, *others], len(same))


def lowest(records: Sequence[Record], trusted: Sequence[Record] | None = None) -> Record:
    """Return one record of the lowest verdict on every point of `records`, all on the same points.

    Costs are added, attacks and stages are joined. Flags are those of `trusted`. It is for tables:
    no run wrote it, so that it has no ledger and no audit.
    """
    trusted = records if trusted is None else trusted
    base = next((record for record in records if stopped_early(record)), records[0])
    rows = [{point: at for at, point in enumerate(record.points.index)} for record in records]
    worst = [
        min(
            ((record.points, where[point]) for record, where in zip(records, rows, strict=True)),
            key=lambda place: _LOWEST[place[0].status[place[1]]],
        )
        for point in base.points.index
    ]
    flags: dict[str, Flag] = {}
    for flag in (flag for record in trusted for flag in record.flags):
        # An answered flag weighs less: one that a run left unanswered stays so.
        if flag.name not in flags or flags[flag.name].answered:
            flags[flag.name] = flag
    disputed = sum(
        points.status[at] == "broken"
        and any(r.points.status[where[point]] == "certified"
                for r, where in zip(records, rows, strict=True))
        for point, (points, at) in zip(base.points.index, worst, strict=True)
    )  # fmt: skip
    notes = [f"{disputed} points are certified in one run and broken in another"] * bool(disputed)
    return base.model_copy(
        update={
            "points": _points(worst),
            "suite": ", ".join(dict.fromkeys(record.suite or "attacks" for record in records)),
            "attacks": list(dict.fromkeys(name for record in records for name in record.attacks)),
            "stages": [stage for record in records for stage in record.stages],
            "certify": next((record.certify for record in records if record.certify), None),
            "randomized": any(record.randomized for record in [*records, *trusted]),
            "flags": list(flags.values()),
            "notes": notes,
            "audit": None,
            "forwards": sum(record.forwards for record in records),
            "backwards": sum(record.backwards for record in records),
            "flips": sum(record.flips for record in records),
            "seconds": sum(record.seconds for record in records),
            "ledger": None,
        }
    )


def _points(worst: Sequence[tuple[Points, int]]) -> Points:
    """Take every point from the columns that say the lowest about it."""
    names = ("index", "label", "predicted", "status", "attack", "distance")
    return Points(**{name: [getattr(points, name)[at] for points, at in worst] for name in names})
