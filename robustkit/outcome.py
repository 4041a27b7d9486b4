"""From a finished ledger to the record on disk."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import robustkit.registry as registry
from robustkit import provenance
from robustkit.audit import CONFIDENCE, missed
from robustkit.diagnose import review
from robustkit.errors import UsageError
from robustkit.foreign import strength
from robustkit.record import (
    AuditInfo,
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
    facts = [registry.attacks.entry(spec.name).facts for spec in run.specs]
    # Of an attack of another library it is known once it has run: did gradients reach the input?
    white_box = [
        bool(fact.get("white_box", stage.backwards))
        for fact, stage in zip(facts, stages, strict=True)
    ]
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
        attacks=names,
        seed=run.seed,
        arguments=origin.arguments,
        weights=origin.weights,
        certify=None if run.certifier is None else run.certifier.name,
        randomized=run.health.randomized,
        flags=[*run.health.flags, *flags],
        notes=origin.notes,
        audit=_audit(run),
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


def _audit(run: Run) -> AuditInfo | None:
    sample = run.sample()
    if sample is None:
        return None
    broken, escalated = run.audit_broken(sample), bool(run.ledger.remembered("escalated"))
    return AuditInfo(
        near=len(sample.near),
        near_broken=len(broken & set(sample.near)),
        random=len(sample.random),
        random_broken=len(broken & set(sample.random)),
        rest=sample.rest,
        escalated=escalated,
        missed=0 if escalated else missed(sample, broken),
        confidence=CONFIDENCE,
    )


def _stages(run: Run) -> list[Stage]:
    costs, falls = run.ledger.costs(), run.ledger.falls().values()
    stages = []
    for number, spec in enumerate(run.specs):
        cost = costs[number]
        attack = registry.attacks.build(spec)
        jobs = attack.jobs(run.threat, run.health.classes)
        stages.append(
            Stage(
                attack=str(spec),
                jobs=cost.entered * len(jobs),
                entered=cost.entered,
                broken=sum(fall.stage == number for fall in falls),
                forwards=cost.forwards,
                backwards=cost.backwards,
                seconds=cost.seconds,
                strength=strength(attack, run.threat, run.health.classes),
            )
        )
    return stages


def _points(run: Run) -> Points:
    clean, falls, proved = run.ledger.clean(), run.ledger.falls(), run.ledger.certified()
    index = run.points.tolist()
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
        attack=[str(run.specs[falls[p].stage]) if p in falls else None for p in index],
        distance=[falls[p].distance if p in falls else None for p in index],
    )
