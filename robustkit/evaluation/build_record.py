"""From a finished ledger to the record."""

from __future__ import annotations

from collections.abc import Sequence

import robustkit.registry as registry
from robustkit.core.finite import FiniteThreat
from robustkit.core.packages import own_version
from robustkit.core.threat import Threat
from robustkit.data.dataset import digest
from robustkit.evaluation.answers import answered
from robustkit.evaluation.found_parameters import found_parameters
from robustkit.evaluation.review import majority, review
from robustkit.evaluation.run import Run
from robustkit.evaluation.stages.audit import broken_by_audit, drawn, pursued, unaudited
from robustkit.evaluation.stages.exhaustive import right_variants
from robustkit.models.surrogates.resolve import SOURCE
from robustkit.record import provenance
from robustkit.record.ledger_schema import CARRIED, CLEAN, REPLAYED, BrokenPoint, Cost
from robustkit.record.points import Points
from robustkit.record.record import COMPLETE, REPLAY, Record
from robustkit.record.schema import AuditInfo, Commit, DataInfo, Stage, ThreatInfo
from robustkit.record.status import Finished
from robustkit.search.audit import CONFIDENCE, missed
from robustkit.search.external import strength
from robustkit.search.protocol import enumerates, surrogate_of
from robustkit.verify.flags import Flag, flag


def make_record(
    run: Run,
    finished: Sequence[int],
    notes: Sequence[str],
    started: str,
    commit: Commit | None,
) -> Record:
    """Gather what the ledger holds of the points that the run has finished.

    Args:
        notes: what a reader of the record must know.
        started: when the run began.
        commit: of the code that ran.
    """
    costs, found = run.ledger.costs(), run.finished(finished)
    settings, prepared, points = run.settings, run.prepared, _points(run, found)
    replayed, stages = _replayed(run, found), _stages(run, found)
    names = [stage.attack for stage in stages]
    return Record(
        robustkit=own_version(),
        defense=settings.name,
        data=_data(run, finished),
        threat=_threat(settings.threat, run.ledger.identity("variants")),
        suite=settings.suite,
        attacks=[*names, *sorted(set(_carried(run, found).values()) - set(names))],
        seed=settings.seed,
        arguments=settings.arguments,
        weights=prepared.weights,
        certify=None if run.certifier is None else run.certifier.name,
        randomized=prepared.diagnosis.randomized,
        flags=answered(run, [*prepared.diagnosis.flags, *_outcome_flags(run, stages, points)]),
        notes=list(notes),
        audit=_audit(run),
        stages=[*replayed, *stages],
        points=points,
        forwards=sum(cost.forwards for cost in costs.values()),
        backwards=sum(cost.backwards for cost in costs.values()),
        flips=sum(cost.flips for cost in costs.values()),
        seconds=sum(cost.seconds for cost in costs.values()),
        started=started,
        versions=provenance.versions(),
        device=provenance.device_name(prepared.device),
        device_peak_bytes=provenance.device_peak(prepared.device),
        commit=commit,
    )


def _data(run: Run, finished: Sequence[int]) -> DataInfo:
    data, planned = run.settings.data, len(run.prepared.points)
    whole = len(finished) == planned
    return DataInfo(
        name=data.name,
        digest=run.prepared.content if whole else digest(run.prepared.data, finished),
        n=len(finished),
        planned=None if whole else planned,
        total=len(data),
        classes=data.classes,
        shape=list(data.shape),
        note=data.note,
        class_names=list(data.class_names) or None,
        sample="balanced" if run.settings.balanced else None,
    )


def _outcome_flags(run: Run, stages: Sequence[Stage], points: Points) -> list[Flag]:
    """Look at the outcome: the flags that only it can raise."""
    specs = {str(spec): number for number, spec in enumerate(run.line.specs)}
    ran = [specs[stage.attack] for stage in stages]
    searches = [run.line.searches[number] for number in ran]
    facts = [registry.attacks.entry(run.line.specs[number].name).facts for number in ran]
    aside = [bool(surrogate_of(search)) for search in searches]
    # Of an attack of another library it is known once it has run: did gradients reach the input?
    # What starts where a walk along a surrogate came nearest is not blind.
    white_box = [
        through or bool(getattr(search, "white_box", fact.get("white_box", stage.backwards)))
        for search, fact, stage, through in zip(searches, facts, stages, aside, strict=True)
    ]
    n, classes = len(points.status), run.settings.data.classes
    clean = n - points.status.count("misclassified")
    flags = review(stages, white_box, clean, n, classes, transfer=aside)
    if run.line.searches and all(surrogate_of(s).startswith(SOURCE) for s in run.line.searches):
        named = ", ".join(name for name, _ in run.prepared.sources)
        flags.append(flag("transfer_only", f"all gradients are those of {named}"))
    if "chance" not in {flag.name for flag in flags}:
        flags += majority(points.label, points.predicted)
    strayed = run.ledger.strayed()
    told = [
        f"{outside} of {moved} candidates of {run.line.specs[number]}"
        for number, (moved, outside) in sorted(strayed.items())
        if number in ran and 2 * outside > moved
    ]
    if told:
        flags.append(flag("outside", f"{'; '.join(told)} lie outside {run.settings.threat}"))
    known = {flag.name for flag in run.prepared.diagnosis.flags}
    if (changed := run.ledger.remembered("changed")) and "stateful" not in known:
        flags.insert(0, flag("stateful", changed))
    return flags


def _audit(run: Run) -> AuditInfo | None:
    sample = drawn(run.ledger)
    if sample is None or unaudited(run.line, run.ledger):
        return None
    escalated, (beyond, fallen) = bool(run.ledger.remembered("escalated")), pursued(run.ledger)
    broken = broken_by_audit(run.ledger, sample, run.line)
    return AuditInfo(
        near=len(sample.near),
        near_broken=len(broken & set(sample.near)),
        random=len(sample.random),
        random_broken=len(broken & set(sample.random)),
        rest=sample.rest,
        escalated=escalated,
        missed=0 if escalated else missed(sample, broken, len(fallen)),
        confidence=CONFIDENCE,
        attacks=[str(run.line.specs[stage]) for stage in run.line.auditing],
        pursued=len(beyond) or None,
        pursued_broken=len(fallen) if beyond else None,
    )


def _stages(run: Run, found: Finished) -> list[Stage]:
    costs, broken, status = run.ledger.costs(), found.broken, found.status
    spared = (
        set()
        if run.settings.attack_certified
        else {p for p, s in status.items() if s == "certified"} - set(run.ledger.verified(status))
    )
    left = {p for p in status if status[p] != "misclassified" and p not in spared}
    left -= {p for p in left if p in broken and broken[p].stage in (REPLAYED, CARRIED)}
    left -= set(run.carried.get("survived", {}))
    threat = run.settings.threat
    matter = threat.criterion.classes(run.prepared.diagnosis.classes)
    stages = []
    for number, spec in enumerate(run.line.specs):
        cost = costs.get(number, Cost())
        if number in run.line.reserved and not cost.entered:
            continue  # nothing called for it
        by_this = {point for point in left if point in broken and broken[point].stage == number}
        attack = run.line.searches[number]
        jobs = attack.jobs(threat, matter)
        # Of samples and of a search that runs on after a success, the ledger knows.
        counted = run.line.scouts <= number < run.line.audited and not run.line.screens(number)
        entered = len(left) if counted else max(cost.entered, len(by_this))
        entered = len(status) if enumerates(attack) else entered  # misclassified ones too
        stages.append(
            Stage(
                attack=str(spec),
                jobs=entered * len(jobs),
                entered=entered,
                broken=len(by_this),
                forwards=cost.forwards,
                backwards=cost.backwards,
                seconds=cost.seconds,
                strength=strength(attack, threat, matter),
            )
        )
        left -= set() if run.settings.minimum_norm else by_this
    return stages


def _replayed(run: Run, found: Finished) -> list[Stage]:
    """Return the stage of the replayed inputs, if there is one."""
    if run.replay is None:
        return []
    cost = run.ledger.costs().get(REPLAYED, Cost())
    broken = sum(one.stage == REPLAYED for one in found.broken.values())
    tried = len(run.ledger.spent(REPLAYED, found.status)) + broken
    correct = sum(s != "misclassified" for s in found.status.values())
    return [
        Stage(
            attack=REPLAY,
            jobs=tried,
            entered=correct,
            broken=broken,
            forwards=cost.forwards,
            backwards=0,
            seconds=cost.seconds,
        )
    ]


def _points(run: Run, found: Finished) -> Points:
    clean, index, before = found.predicted, list(found.status), _carried(run, found)
    # A minimum-norm run looks beyond the radius at which its verdicts are read.
    broken = {p: one for p, one in found.broken.items() if one.distance <= run.limit}
    attack = {p: before.get(p) or run.attack_name(one.stage) for p, one in broken.items()}
    return Points(
        index=index,
        label=[clean[point][0] for point in index],
        predicted=[clean[point][1] for point in index],
        status=list(found.status.values()),
        attack=[attack.get(point) for point in index],
        distance=[broken[p].distance if p in broken else None for p in index],
        nearest=[found.broken[p].distance if p in found.broken else None for p in index]
        if run.settings.minimum_norm
        else None,
        carried=_origins(run, index),
        errors=_errors(run, index, broken) if run.prepared.diagnosis.randomized else None,
        proof=_proofs(run, found),
        variants=_variants(run, index),
        parameters=found_parameters(run.settings, run.prepared.data, run.ledger, index),
    )


def _variants(run: Run, index: list[int]) -> list[str] | None:
    """Return which variants of each point are classified rightly, of a finite threat model."""
    threat = run.settings.threat
    if not isinstance(threat, FiniteThreat):
        return None
    return right_variants(run.ledger, 0, len(threat.variants), index)


def _threat(threat: Threat, content: str | None) -> ThreatInfo:
    if not isinstance(threat, FiniteThreat):
        return ThreatInfo(**threat.facts(), content=content)
    listed = list(map(str, threat.variants))
    return ThreatInfo(**threat.facts(), variants=listed, content=content)


def _proofs(run: Run, found: Finished) -> list[str | None] | None:
    """Return by what every point was proved, where a certificate was asked for."""
    if run.certifier is None:
        return None
    branched = {p for p, proved in run.ledger.verified(found.status).items() if proved}
    first = run.certifier.method
    several = first in ("auto", COMPLETE) or run.complete is not None
    bounds = "bounds" if several else first
    return [
        None if status != "certified" else COMPLETE if point in branched else bounds
        for point, status in found.status.items()
    ]


def _errors(run: Run, index: list[int], broken: dict[int, BrokenPoint]) -> list[float | None]:
    """Return how often the model errs at the input that a point is judged by.

    Of a robust point the clean or refused one that fooled it most often, measured apart from that.
    """
    known, refused = run.ledger.errors(), run.ledger.refused()
    clean = {p: known.get((p, CLEAN)) for p in index}
    return [
        known.get((p, broken[p].stage))
        if p in broken
        else refused[p].errors
        if p in refused and refused[p].seen > (clean[p] or 0)
        else clean[p]
        for p in index
    ]


def _carried(run: Run, found: Finished) -> dict[int, str]:
    """Return the points broken at a larger eps by a distance that counts here, and by what."""
    return {
        point: run.carried["attacks"][point]
        for point, one in found.broken.items()
        if one.stage == CARRIED
    }


def _origins(run: Run, index: list[int]) -> list[float | None] | None:
    """Return the larger eps at which a point was found robust."""
    if not run.carried:
        return None
    proved, survived = run.carried["proved"], run.carried["survived"]
    return [proved.get(point, survived.get(point)) for point in index]
