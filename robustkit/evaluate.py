"""The one function that walks the line: data → defense → search → verify → record."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from robustkit import provenance
from robustkit.bounds.certify import Certifier, certifier
from robustkit.data import Dataset, digest, select
from robustkit.device import pick_device, stride
from robustkit.diagnose import Health, examine
from robustkit.engine import Engine
from robustkit.errors import UsageError
from robustkit.ledger import Cost, Ledger
from robustkit.model import refuse_training_mode
from robustkit.outcome import Origin, make_record, settle_record
from robustkit.pace import Pace
from robustkit.record import Record, WeightsInfo
from robustkit.replay import Examples, find_examples
from robustkit.run import Run, Watcher
from robustkit.spec import Spec
from robustkit.suites import LineUp, line_up
from robustkit.threat import Threat
from robustkit.tuning import AUTOMATIC, Tuning, tune
from robustkit.types import Images, Model

KEEP_BYTES = 2**30  # adversarial inputs are stored by default up to this size


def evaluate(
    model: Model | nn.Module,
    *,
    name: str,
    data: Dataset,
    threat: Threat,
    folder: Path | str,
    suite: str | None = None,
    attacks: Sequence[str | Spec] = (),
    certify: str | None = None,
    attack_certified: bool = False,
    n: int | None = None,
    points: Sequence[int] | None = None,
    replay: Path | str | None = None,
    pace: Pace | None = None,
    seed: int = 0,
    device: str = "auto",
    batch_size: int | None = None,
    tuning: Tuning = AUTOMATIC,
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
        certify: a certificate to try first: "ibp", "crown", "alpha-crown", "smoothing" or "auto".
            Points that are proved robust get no attack, unless `attack_certified` is set.
        n: evaluate a fixed, seeded, class-balanced subset of this size.
        points: or exactly these, by their position in the data set.
        replay: folder of an earlier run on the same data, whose adversarial inputs come first.
        pace: may end the run early; the record then speaks of the points that are finished.
        batch_size: points in flight at once; chosen by device when not given.
        tuning: how the model is made fast for searches; verdicts are always float32.
        save_adversarial: store what was found; by default up to 1 GiB.
        arguments: what the user typed, for the record.

    Raises:
        UsageError: for arguments, data or a model that cannot be evaluated, and for a folder that
            is in use or holds another evaluation.
        RobustkitError: when the run cannot finish; what was found so far is kept. Also when an
            attack takes a point with a certificate.
    """
    watcher, target, folder = watcher or Watcher(), pick_device(device), Path(folder)
    line, chosen = line_up(suite, attacks, threat, model), _choose(data, n, points, seed)
    private, health, sample = preflight(model, name, data, chosen, target)
    tuned = tune(private, sample, tuning, randomized=health.randomized)
    health, notes = health.after(tuned.forwards, tuned.backwards), [*notes, *tuned.notes]
    prover = certifier(private, data.shape, threat, certify, seed) if certify else None
    weights, content = _weights(private), digest(data, chosen)
    examples = find_examples(Path(replay), data.shape) if replay is not None else None
    identity = _identity(name, weights, content, len(chosen), threat, seed)
    identity |= _program(line, prover, attack_certified, examples)
    _announce(watcher, name, len(chosen), certify, prover, threat, data)
    path, commit = folder / "record.json", provenance.commit()
    with Ledger(folder / "ledger.sqlite", identity, fresh=fresh) as ledger:
        _same_answers(ledger, health, name)
        ledger.remember("shape", list(data.shape))
        origin = Origin(suite, weights, content, dict(arguments or {}), notes,
                        _first_start(ledger), commit)  # fmt: skip
        keep = _keep(save_adversarial, data, len(chosen), watcher)
        engine = Engine(tuned.model, threat, batch_size or tuned.slots, stride(target), tuned.half)
        run = Run(name, private, data, threat, line, chosen, seed, engine, target, ledger,
                  health, keep, watcher, prover, attack_certified, examples)  # fmt: skip
        finished = [int(point) for point in chosen]
        if not ledger.costs().get(len(line.specs) - 1, Cost()).finished:
            path.unlink(missing_ok=True)  # of fewer points, or of an earlier configuration
            finished = run.all(pace)
        if len(finished) < len(chosen):
            origin = origin._replace(content=digest(data, finished))
        record = settle_record(make_record(run, origin, finished), path, watcher)
    _tell_flags(record, watcher)
    return record


def _tell_flags(record: Record, watcher: Watcher) -> None:
    for flag in record.flags:
        watcher.note(f"{record.defense}: {flag.name}: {flag.message}")


def _identity(
    name: str, weights: WeightsInfo, content: str, n: int, threat: Threat, seed: int
) -> dict[str, Any]:
    """Return what every verdict depends on, beside what is done to the points."""
    return {
        "robustkit": provenance.versions()["robustkit"],
        "defense": name,
        "weights": weights.digest,
        "data": content,
        "n": n,
        "threat": asdict(threat),
        "seed": seed,
    }


def _program(
    line: LineUp, prover: Certifier | None, attack_certified: bool, examples: Examples | None
) -> dict[str, Any]:
    """Describe what is done to the points, as far as verdicts depend on it."""
    program: dict[str, Any] = {"attacks": [str(spec) for spec in line.specs]}
    if line.audit:
        program["audit"] = asdict(line.audit)
    if prover:
        program |= {"certify": prover.name, "attack_certified": attack_certified}
    if examples:
        program["replay"] = examples.digest
    return program


def _choose(
    data: Dataset, n: int | None, points: Sequence[int] | None, seed: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the points to evaluate, ascending."""
    if points is None:
        return select(data, n, seed)
    chosen = np.unique(np.asarray(points, dtype=np.int64))
    if n is not None or not len(chosen):
        raise UsageError("expected n, or a list of at least one point, got both or an empty list.")
    if chosen[0] < 0 or chosen[-1] >= len(data):
        raise UsageError(
            f"expected points from 0 to {len(data) - 1} (of {data.name}), got {chosen[0]} to "
            f"{chosen[-1]}."
        )
    return chosen


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


def preflight(
    model: Model | nn.Module,
    name: str,
    data: Dataset,
    points: np.ndarray[Any, np.dtype[np.int64]],
    device: torch.device,
) -> tuple[Model, Health, Images]:
    """Return the private copy that will be evaluated, and a first look at it on a few points.

    Raises:
        UsageError: when model and data cannot be evaluated together. Nothing was written then.
    """
    if data.classes < 2:
        raise UsageError(f"{data.name} has one class: a classifier has nothing to tell apart.")
    private = private_copy(model, device, name)
    sample = data.fetch(points[:: max(1, len(points) // 16)][:16])[0].to(device)
    return private, examine(private, sample, data.classes, name), sample


def _announce(
    watcher: Watcher,
    name: str,
    n: int,
    asked: str | None,
    prover: Certifier | None,
    threat: Threat,
    data: Dataset,
) -> None:
    """Begin; say if nothing can be certified, and if the ball reaches from black to gray.

    The usual slip behind the latter is a lost /255.
    """
    watcher.model(name, n)
    if asked and prover is None:
        watcher.note(f"{name}: no certificate is known for a model of this kind.")
    half = (threat.upper - threat.lower) / 2
    gray = torch.full((1, *data.shape), half)
    if threat.eps >= float(threat.distance(gray, torch.zeros_like(gray))):
        watcher.note(
            f"{threat} reaches from any image to plain gray: no classifier can stand. eps is in "
            "units of inputs in [0, 1]; was 8/255 meant, not 8?"
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
