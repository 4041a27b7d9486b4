"""From a finished ledger to the record on disk."""

from __future__ import annotations

from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import robustkit.registry as registry
from robustkit import provenance
from robustkit.diagnose import review
from robustkit.errors import UsageError
from robustkit.ledger import CARRIED
from robustkit.record import (
    Commit,
    DataInfo,
    Points,
    Record,
    Stage,
    Status,
    ThreatInfo,
    WeightsInfo,
    load,
    save,
)
from robustkit.run import Run, Watcher

_EVIDENCE = ("defense", "points", "weights", "data", "threat", "attacks", "seed")


class Origin(NamedTuple):
    """What a record says beside the outcome: what was asked for, of what, when, and by which code.

    `content` is the digest of the points.
    """

    suite: str | None
    weights: WeightsInfo
    content: str
    arguments: dict[str, Any]
    notes: list[str]
    started: str
    commit: Commit | None


def settle_record(record: Record, path: Path, watcher: Watcher) -> Record:
    """Return the record on disk if it says what the ledger says, else write the ledger's."""
    if path.exists():
        try:
            kept = load(path)
            if (kept.points, kept.weights, kept.data) == (
                record.points,
                record.weights,
                record.data,
            ):
                return kept
        except UsageError:
            pass
        watcher.note(f"{path} did not agree with the ledger and was written anew from it")
    save(record, path)
    return record


def make_record(run: Run, origin: Origin) -> Record:
    """Gather what the ledger of a finished run holds."""
    costs, stages, points = run.ledger.costs(), _stages(run), _points(run)
    data, threat, names = run.data, run.threat, [str(spec) for spec in run.specs]
    white_box = [registry.attacks.entry(spec.name).facts["white_box"] for spec in run.specs]
    clean = len(points.status) - points.status.count("misclassified")
    flags = review(stages, white_box, clean, len(points.status), data.classes)
    return Record(
        robustkit=provenance.versions()["robustkit"],
        defense=run.name,
        data=DataInfo(
            name=data.name,
            digest=origin.content,
            n=len(run.points),
            total=len(data),
            classes=data.classes,
            shape=list(data.shape),
            note=data.note,
            class_names=list(data.class_names) or None,
        ),
        threat=ThreatInfo(**asdict(threat)),
        suite=origin.suite,
        attacks=[*names, *sorted(set(_carried(run).values()) - set(names))],
        seed=run.seed,
        arguments=origin.arguments,
        weights=origin.weights,
        certify=None if run.certifier is None else run.certifier.name,
        randomized=run.health.randomized,
        flags=[*run.health.flags, *flags],
        notes=origin.notes,
        stages=stages,
        points=points,
        forwards=sum(cost.forwards for cost in costs.values()),
        backwards=sum(cost.backwards for cost in costs.values()),
        flips=sum(cost.flips for cost in costs.values()),
        seconds=sum(cost.seconds for cost in costs.values()),
        started=origin.started,
        versions=provenance.versions(),
        device=provenance.device_name(run.device),
        commit=origin.commit,
    )


def _stages(run: Run) -> list[Stage]:
    costs, falls = run.ledger.costs(), run.ledger.falls().values()
    stages = []
    for number, spec in enumerate(run.specs):
        cost = costs[number]
        jobs = registry.attacks.build(spec).jobs(run.threat, run.health.classes)
        stages.append(
            Stage(
                attack=str(spec),
                jobs=cost.entered * len(jobs),
                entered=cost.entered,
                broken=sum(fall.stage == number for fall in falls),
                forwards=cost.forwards,
                backwards=cost.backwards,
                seconds=cost.seconds,
            )
        )
    return stages


def _points(run: Run) -> Points:
    clean, found, proved = run.ledger.clean(), run.ledger.falls(), run.ledger.certified()
    limit, index = run.threat.limit(prod(run.data.shape)), run.points.tolist()
    # A minimum-norm run looks beyond the radius at which its verdicts are read.
    falls = {p: fall for p, fall in found.items() if fall.distance <= limit}
    before = _carried(run)
    taken = {p: before.get(p) or str(run.specs[fall.stage]) for p, fall in falls.items()}
    statuses: list[Status] = [
        "misclassified"
        if clean[p][0] != clean[p][1]
        else "broken"
        if p in falls
        else "certified"
        if proved.get(p)
        else "robust"
        for p in index
    ]
    return Points(
        index=index,
        label=[clean[point][0] for point in index],
        predicted=[clean[point][1] for point in index],
        status=statuses,
        attack=[taken.get(p) for p in index],
        distance=[falls[p].distance if p in falls else None for p in index],
        nearest=[found[p].distance if p in found else None for p in index]
        if run.minimum_norm
        else None,
        carried=_origins(run, index),
    )


def _carried(run: Run) -> dict[int, str]:
    """Return the points that fell to a larger eps at a distance that counts here, and to what."""
    return {
        point: run.carried["attacks"][point]
        for point, fall in run.ledger.falls().items()
        if fall.stage == CARRIED
    }


def _origins(run: Run, index: list[int]) -> list[float | None] | None:
    """Return the larger eps at which a verdict of standing was reached."""
    if not run.carried:
        return None
    proved, survived = run.carried["proved"], run.carried["survived"]
    return [proved.get(point, survived.get(point)) for point in index]
