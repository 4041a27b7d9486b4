"""The first look at model and data: what is refused, and what every later stage works with."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from robustkit.core.arguments import refused
from robustkit.core.device import pick_devices
from robustkit.core.named import NamedThreat
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Model
from robustkit.data.dataset import Dataset, Indices
from robustkit.data.pinned import PinnedData
from robustkit.errors import UsageError
from robustkit.evaluation.criterion import draw, refuse_unasked
from robustkit.evaluation.settings import Settings
from robustkit.evaluation.watcher import Watcher
from robustkit.models.guard import guard_of, habits
from robustkit.models.readiness import private_copy
from robustkit.models.tuning import Tuned, tune
from robustkit.record.provenance import weights_digest
from robustkit.record.schema import WeightsInfo
from robustkit.verify.diagnostics.probe import Diagnosis, examine

SAMPLE = 16  # points that are looked at


class Prepared(NamedTuple):
    """A model and the points it is evaluated on, after the first look.

    Attributes:
        model: the private copy that verdicts come from.
        tuned: the copy that searches use.
        points: positions in the data set, ascending.
        data: where every later stage reads them: they must stay as they were at first.
    """

    model: Model
    tuned: Tuned
    diagnosis: Diagnosis
    weights: WeightsInfo
    points: np.ndarray[Any, np.dtype[np.int64]]
    data: PinnedData

    @property
    def content(self) -> str:
        """Digest of the points."""
        return self.data.content

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.diagnosis.sample.device

    def sample(self, most: int = SAMPLE) -> Images:
        """Read up to so many of the points [b, *f], evenly spaced."""
        return _sample(self.data, self.points, most).to(self.device)


def prepare(settings: Settings, diagnosis: Diagnosis | None = None) -> Prepared:
    """Look at model and data once, whatever they are evaluated for.

    Args:
        diagnosis: of the same model, when `first_look` has already been called.

    Raises:
        UsageError: when they cannot be evaluated together.
    """
    if settings.model is None:
        raise refused("model", "an nn.Module, a function of images, or a name", None)
    device, points = pick_devices(settings.device)[0], chosen_points(settings)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # the record states that of this model
    private = private_copy(settings.model, device, settings.name)
    data = PinnedData(settings.data, settings.threat.box)
    sample = _sample(data, points).to(device)
    diagnosis = diagnosis or _look(settings, private, sample)
    habits(private, diagnosis.habits)
    tuned = tune(private, sample, settings.tuning, randomized=diagnosis.randomized)
    if (guard := guard_of(private)) is not None:
        tuned = tuned._replace(notes=(*guard.notes, *tuned.notes))
    data.pin(points)
    content, parameters = weights_digest(
        private if isinstance(private, nn.Module) else nn.Identity()
    )
    return Prepared(
        private,
        tuned,
        diagnosis.after(tuned.forwards, tuned.backwards),
        WeightsInfo(digest=content, parameters=parameters),
        points,
        data,
    )


def first_look(settings: Settings) -> Diagnosis:
    """Probe the model on a few of the points; nothing is written, and `settings.model` stays.

    Raises:
        UsageError: when model and data cannot be evaluated together.
    """
    device = pick_devices(settings.device)[0]
    private = private_copy(settings.model, device, settings.name)
    return _look(settings, private, looked_at(settings, device))


def looked_at(settings: Settings, device: torch.device) -> Images:
    """Read the points that the first look takes."""
    points, data = chosen_points(settings), PinnedData(settings.data, settings.threat.box)
    return _sample(data, points).to(device)


def _look(settings: Settings, private: Model, sample: Images) -> Diagnosis:
    data = settings.data
    if data.classes < 2:
        raise UsageError(f"{data.name} has one class: a classifier has nothing to tell apart.")
    threat = settings.threat
    coded = isinstance(threat, NamedThreat) and threat.discrete
    found = examine(private, sample, data.classes, settings.name, box=threat.box, probing=not coded)
    threat.criterion.check(found.classes)
    return found


def chosen_points(settings: Settings) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the points to evaluate, ascending.

    Raises:
        UsageError: for points that the data set does not have.
    """
    n, data = settings.n, settings.data
    if settings.points is None:
        chosen = draw(data, settings.threat.criterion, n, settings.seed, settings.sample)
        counts = np.unique(data.labels[chosen], return_counts=True)[1]
        if settings.balanced and counts.max() > counts.min() + 1:
            fewest = int(np.unique(data.labels, return_counts=True)[1].min())
            raise UsageError(
                f"{data.name} has no {n} points as many of every class: its smallest class has "
                f"{fewest}. Ask for at most {fewest * len(counts)} points, or for a proportional "
                "sample."
            )
        return chosen
    chosen = np.unique(np.asarray(settings.points, dtype=np.int64))
    if n is not None or not len(chosen):
        raise UsageError("expected n, or a list of at least one point, got both or an empty list.")
    if chosen[0] < 0 or chosen[-1] >= len(data):
        raise UsageError(
            f"expected points from 0 to {len(data) - 1} (of {data.name}), got {chosen[0]} to "
            f"{chosen[-1]}."
        )
    refuse_unasked(data, settings.threat.criterion, chosen)
    return chosen


def _sample(data: PinnedData, points: Indices, most: int = SAMPLE) -> Images:
    chosen = np.asarray(points)
    if most < len(chosen) < 2 * most:  # every second would be too few, every one the first of them
        return data.fetch(chosen[np.arange(most) * len(chosen) // most])[0]
    return first_sample(data, chosen, most)


def first_sample(data: PinnedData, points: Indices, most: int = SAMPLE) -> Images:
    """Read the points that early ledgers were begun with: of fewer than 32 the first 16."""
    chosen = np.asarray(points)
    return data.fetch(chosen[:: max(1, len(chosen) // most)][:most])[0]


def warn_of_eps(threat: Threat, data: Dataset, watcher: Watcher) -> None:
    """Say so when the ball reaches from black to gray: the usual slip is a lost /255."""
    if isinstance(threat, NamedThreat):
        return
    half = (threat.upper - threat.lower) / 2
    gray = torch.full((1, *data.shape), half)
    if threat.eps >= float(threat.distance(gray, torch.zeros_like(gray))):
        watcher.note(
            f"{threat} reaches from any image to plain gray: no classifier can be robust. eps is "
            "in units of inputs in [0, 1]; was 8/255 meant, not 8?"
        )
