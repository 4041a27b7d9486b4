"""The one function that walks the line: data → defense → search → verify → record."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from robustkit.core.attribution import blaming
from robustkit.core.device import pick_devices
from robustkit.core.spec import Spec
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Model
from robustkit.data.dataset import Dataset, digest, select
from robustkit.errors import UsageError
from robustkit.evaluation.adapt import adapt_line_up
from robustkit.evaluation.budget import StoppingRule
from robustkit.evaluation.distributed.messages import Named
from robustkit.evaluation.distributed.setup import set_up, staff
from robustkit.evaluation.execute import Wish, conduct, default_folder_of
from robustkit.evaluation.prepare import Prepared
from robustkit.evaluation.progress import listening
from robustkit.evaluation.request import GivenData, GivenModel, ask
from robustkit.evaluation.watcher import Watcher
from robustkit.models.load import refuse_training_mode
from robustkit.models.tuning import AUTOMATIC, Tuning, tune
from robustkit.record import provenance
from robustkit.record.record import Record
from robustkit.record.schema import WeightsInfo
from robustkit.search.suites import LineUp, acts_on_findings, line_up, refuse_fixed
from robustkit.verify.diagnostics.probe import Diagnosis, examine


def evaluate(
    model: GivenModel,
    *,
    name: str | None = None,
    data: GivenData,
    threat: Threat | str,
    folder: Path | str | None = None,
    suite: str | None = None,
    attacks: Sequence[str | Spec] = (),
    certify: str | None = None,
    attack_certified: bool = False,
    n: int | None = None,
    points: Sequence[int] | None = None,
    replay: Path | str | None = None,
    pace: StoppingRule | None = None,
    seed: int = 0,
    device: str = "auto",
    distributed: str | None = None,
    workers: int | None = None,
    named: Named | None = None,
    batch_size: int | None = None,
    tuning: Tuning = AUTOMATIC,
    fresh: bool = False,
    save_adversarial: bool | None = None,
    minimum_norm: bool = False,
    arguments: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    watcher: Watcher | None = None,
    progress: bool | None = None,
) -> Record:
    """Evaluate one model and leave `ledger.sqlite` and `record.json` in `folder`.

    A folder that holds part of the same evaluation is resumed; the verdicts are those of an
    uninterrupted run. The model itself is never touched: all passes go through a private copy.

    Args:
        model: maps [b, c, h, w] in [0, 1] to logits [b, k], each row by itself; or a name.
        name: in records and tables; by default that of the model's class or function.
        data, threat: also by name ("npz:PATH", "linf:8/255"); data also as (x, y), two tensors.
        folder: by default one in robustkit-runs, always the same for the same evaluation.
        suite, attacks: a named line-up, or specs such as "apgd(steps=50)"; exactly one of them.
        certify: a certificate to try first: "ibp", "crown", "alpha-crown", "smoothing" or "auto".
            Points that are proved robust get no attack, unless `attack_certified` is set.
        n: evaluate a fixed, seeded, class-balanced subset of this size.
        points: or exactly these, by their position in the data set.
        replay: folder of an earlier run on the same data, whose adversarial inputs come first.
        pace: may end the run early; the record then speaks of the points that are finished.
        device: "auto", "cpu", "cuda", "cuda:1", or several: "cuda:0,cuda:1", a process on each.
        distributed: "ray" or "ray:ADDRESS": on a Ray cluster, a worker per GPU, or else per CPU.
        workers: how many; several may share a device.
        named: how workers load the model; by default it is pickled for them, by this process.
        batch_size: points in flight at once; chosen by device when not given.
        tuning: how the model is made fast for searches; verdicts are always float32.
        save_adversarial: store what was found; by default up to 1 GiB.
        minimum_norm: seek the closest adversarial input of every point, out to the edge of the box
            (`record.points.nearest`); the verdicts are those at the eps of `threat`.
        arguments: what the user typed, for the record.
        progress: show bars; by default only in a notebook, and never beside a `watcher`.

    Raises:
        UsageError: for arguments, data or a model that cannot be evaluated, and for a folder that
            is in use or holds another evaluation.
        RobustkitError: when the run cannot finish; what was found so far is kept. Also when an
            attack takes a point with a certificate.
    """
    asked = ask(model, name, data, threat, arguments, notes)
    line = line_up(suite, attacks, asked.threat, asked.model)
    setup = set_up(device, distributed, workers)
    _refuse_beside_distances(minimum_norm, line, replay, pace)
    ground = prepare(asked.model, asked.name, asked.data, n, seed, device,
                    points=points, tuning=tuning, box=asked.threat.box)  # fmt: skip
    wish = Wish(suite, certify, attack_certified, batch_size, fresh, save_adversarial,
                asked.arguments, asked.notes, replay, pace)  # fmt: skip
    ground, line, place = _act(ground, line, asked.threat, folder, wish)
    crewed = (setup, ground, named, batch_size, tuning)
    with listening(watcher, progress) as heard, staff(*crewed, heard) as crew:
        if not minimum_norm:
            warn_of_eps(asked.threat, asked.data, heard)
        return conduct(ground, line, asked.threat, place, wish, heard, crew=crew,
                       minimum_norm=minimum_norm)  # fmt: skip


def _refuse_beside_distances(asked: bool, line: LineUp, replay: object, pace: object) -> None:
    """Refuse what a search for the nearest inputs cannot be combined with (a UsageError)."""
    if not asked:
        return
    refuse_fixed(line.specs)
    if replay is not None or pace is not None:
        raise UsageError("a minimum-norm run takes no replay and no budget.")


def _act(
    ground: Prepared,
    line: LineUp,
    threat: Threat,
    folder: Path | str | None,
    wish: Wish,
) -> tuple[Prepared, LineUp, Path | None]:
    """Let the suite act on what is found about the model; see `adapt_line_up`.

    Nothing changes where it does not.
    """
    suite, place = wish.suite, None if folder is None else Path(folder)
    if suite is None or not acts_on_findings(suite):
        return ground, line, place
    place = place or default_folder_of(ground, [threat], line, wish)
    with blaming(ground.name):
        return *adapt_line_up(ground, suite, threat, place, fresh=wish.fresh), place


def prepare(
    model: Model | nn.Module,
    name: str,
    data: Dataset,
    n: int | None,
    seed: int,
    device: str,
    *,
    points: Sequence[int] | None = None,
    tuning: Tuning = AUTOMATIC,
    box: tuple[float, float] = (0.0, 1.0),
) -> Prepared:
    """Look at model and data once, whatever they are evaluated for.

    Raises:
        UsageError: when they cannot be evaluated together.
    """
    target, chosen = pick_devices(device)[0], _choose(data, n, points, seed)
    private, health, sample = preflight(model, name, data, chosen, target, box=box)
    tuned = tune(private, sample, tuning, randomized=health.randomized)
    health, content = health.after(tuned.forwards, tuned.backwards), digest(data, chosen)
    weights = _weights(private)
    return Prepared(
        name, private, tuned, health, weights, data, chosen, content, seed, target, sample
    )


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


def preflight(
    model: Model | nn.Module,
    name: str,
    data: Dataset,
    points: np.ndarray[Any, np.dtype[np.int64]],
    device: torch.device,
    *,
    box: tuple[float, float] = (0.0, 1.0),
    probing: bool = True,
) -> tuple[Model, Diagnosis, Images]:
    """Return the private copy that will be evaluated, and a first look at it on a few points.

    Args:
        box: the range of the inputs.
        probing: whether to look for more than what makes an evaluation impossible.

    Raises:
        UsageError: when model and data cannot be evaluated together. Nothing was written then.
    """
    if data.classes < 2:
        raise UsageError(f"{data.name} has one class: a classifier has nothing to tell apart.")
    private = private_copy(model, device, name)
    sample = data.fetch(points[:: max(1, len(points) // 16)][:16])[0].to(device)
    health = examine(private, sample, data.classes, name, box=box, probing=probing)
    return private, health, sample


def warn_of_eps(threat: Threat, data: Dataset, watcher: Watcher) -> None:
    """Say so when the ball reaches from black to gray: the usual slip is a lost /255."""
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
