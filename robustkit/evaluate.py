"""The one function that walks the line: data → defense → search → verify → record."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import robustkit.registry as registry
from robustkit import provenance
from robustkit.data import Dataset, digest, select
from robustkit.device import default_slots, pick_device, stride
from robustkit.diagnose import Health, examine, review
from robustkit.engine import Engine
from robustkit.errors import UsageError
from robustkit.ledger import Cost, Ledger
from robustkit.model import refuse_training_mode
from robustkit.record import (
    Commit,
    DataInfo,
    Points,
    Record,
    Stage,
    Status,
    ThreatInfo,
    WeightsInfo,
)
from robustkit.record import load as load_record
from robustkit.record import save as save_record
from robustkit.run import Run, Watcher
from robustkit.spec import Spec
from robustkit.suites import line_up
from robustkit.threat import Threat
from robustkit.types import Model

KEEP_BYTES = 2**30  # adversarial inputs are stored by default up to this size


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


def evaluate(
    model: Model | nn.Module,
    *,
    name: str,
    data: Dataset,
    threat: Threat,
    folder: Path,
    suite: str | None = None,
    attacks: Sequence[str | Spec] = (),
    n: int | None = None,
    seed: int = 0,
    device: str = "auto",
    batch_size: int | None = None,
    fresh: bool = False,
    save_adversarial: bool | None = None,
    arguments: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    watcher: Watcher | None = None,
) -> Record:
    """Evaluate one model and leave `ledger.sqlite` and `record.json` in `folder`.

    A folder that holds part of the same evaluation is resumed; the verdicts are those of an
    uninterrupted run. The model itself is never touched: all passes go through a private copy.

    Args:
        model: maps [b, c, h, w] in [0, 1] to logits [b, k], each row by itself.
        suite, attacks: a named line-up, or specs such as "apgd(steps=50)"; exactly one of them.
        n: evaluate a fixed, seeded, class-balanced subset of this size.
        batch_size: points in flight at once; chosen by device when not given.
        save_adversarial: store what was found; by default up to 1 GiB.
        arguments: what the user typed, for the record.

    Raises:
        UsageError: for arguments, data or a model that cannot be evaluated, and for a folder that
            is in use or holds another evaluation.
        RobustkitError: when the run cannot finish; what was found so far is kept.
    """
    watcher, target = watcher or Watcher(), pick_device(device)
    specs, points = line_up(suite, attacks, threat), select(data, n, seed)
    private = private_copy(model, target, name)
    weights, content = _weights(private), digest(data, points)
    identity = {
        "robustkit": provenance.versions()["robustkit"],
        "defense": name,
        "weights": weights.digest,
        "data": content,
        "n": len(points),
        "threat": asdict(threat),
        "attacks": [str(spec) for spec in specs],
        "seed": seed,
    }
    watcher.model(name, len(points))
    sample = data.fetch(points[:: max(1, len(points) // 16)][:16])[0].to(target)
    health = examine(private, sample, data.classes, name)
    path, commit = folder / "record.json", provenance.commit()
    with Ledger(folder / "ledger.sqlite", identity, fresh=fresh) as ledger:
        _same_answers(ledger, health, name)
        origin = Origin(suite, weights, content, dict(arguments or {}), list(notes),
                        _first_start(ledger), commit)  # fmt: skip
        if path.exists() and ledger.costs().get(len(specs) - 1, Cost()).finished:
            record = load_record(path)
        else:
            path.unlink(missing_ok=True)  # of an earlier configuration: the ledger started over
            engine = Engine(private, threat, batch_size or default_slots(target), stride(target))
            keep = _keep(save_adversarial, data, len(points), watcher)
            run = Run(name, private, data, threat, specs, points, seed, engine, target, ledger,
                      health, keep, watcher)  # fmt: skip
            run.all()
            record = _record(run, origin)
            save_record(record, path)
    for flag in record.flags:
        watcher.note(f"{name}: {flag.name}: {flag.message}")
    return record


def _same_answers(ledger: Ledger, health: Health, name: str) -> None:
    """Refuse to go on with a model that answers otherwise than when the run began.

    The digest of the weights does not see a changed forward pass.
    """
    now, before = health.answers.cpu(), ledger.remembered("answers")
    if before is None or health.randomized:
        ledger.remember("answers", now.tolist())
        return
    then = torch.tensor(before)
    if then.shape != now.shape or float((then - now).abs().max() / now.abs().max()) > 1e-3:
        raise UsageError(
            f"{ledger.path.parent} holds a run of {name} when it answered otherwise to the same "
            "inputs: its code has changed. Choose another --out, or start over with --fresh."
        )


def private_copy(model: Model | nn.Module, device: torch.device, name: str) -> Model:
    """Return a copy in evaluation mode with frozen weights; plain callables come back as they are.

    Raises:
        UsageError: when the model is in a training mode that changes its answers, or cannot be
            copied.
    """
    if not isinstance(model, nn.Module):
        return model
    refuse_training_mode(model, name)
    try:
        private = copy.deepcopy(model)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{name} cannot be copied ({error}); hand over a module whose attributes are "
            "parameters, buffers and plain values, not tensors with a gradient history."
        ) from error
    private = private.to(device).eval().requires_grad_(False)
    if device.type == "cpu":  # the layout that a CPU's convolutions are fastest in
        private = private.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return private


def _weights(model: Model) -> WeightsInfo:
    module = model if isinstance(model, nn.Module) else nn.Identity()
    content, parameters = provenance.weights_digest(module)
    return WeightsInfo(digest=content, parameters=parameters)


def _keep(asked: bool | None, data: Dataset, n: int, watcher: Watcher) -> bool:
    size = 4 * n * prod(data.shape)
    if asked is None and size > KEEP_BYTES:
        watcher.note(
            f"adversarial inputs are not stored: up to {size / 2**30:.1f} GiB, and the default "
            f"ends at {KEEP_BYTES / 2**30:.0f} GiB. Ask for them with --save-adversarial."
        )
        return False
    return asked is not False


def _first_start(ledger: Ledger) -> str:
    """Return when the run began, in its first life."""
    started = ledger.remembered("started")
    if started is None:
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        ledger.remember("started", started)
    return str(started)


def _record(run: Run, origin: Origin) -> Record:
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
        attacks=names,
        seed=run.seed,
        arguments=origin.arguments,
        weights=origin.weights,
        certify=None,
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
    clean, falls = run.ledger.clean(), run.ledger.falls()
    index = run.points.tolist()
    statuses: list[Status] = [
        "misclassified" if clean[p][0] != clean[p][1] else "broken" if p in falls else "robust"
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
