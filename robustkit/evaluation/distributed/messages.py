"""What the driver and its workers say to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from robustkit.core.criterion import Criterion
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels, Model, Shape
from robustkit.data.dataset import Indices
from robustkit.data.ranges import Ranges
from robustkit.evaluation.stages.stage import AttackStage, PointsToAttack
from robustkit.evaluation.watcher import Watcher
from robustkit.models.tuning import Tuning
from robustkit.record.ledger_schema import BrokenPoint, Cost, RefusedCandidate
from robustkit.verify.diagnostics.probe import Diagnosis


class Named(NamedTuple):
    """A model that each worker loads itself, as `robustkit.models.load.load_model` does."""

    text: str
    weights: Path | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    trust_code: tuple[Path, ...] = ()


class Facts(NamedTuple):
    """What a model's construction may depend on of its data set."""

    name: str
    family: str
    shape: Shape
    classes: int
    ranges: Ranges | None = None


class ModelSetup(NamedTuple):
    """What a worker must know before it begins.

    Attributes:
        model: a copy on the CPU, or how to load it.
        digest: of its weights, as the driver sees them.
        diagnosis: the driver's, on the CPU: the inputs it looked at, and the logits for them.
        version: of robustkit.
        surrogates: those that the driver added to the model's own, on the CPU, by name.
    """

    name: str
    model: Model | Named
    digest: str
    data: Facts
    diagnosis: Diagnosis
    seed: int
    batch_size: int | None
    tuning: Tuning
    version: str
    surrogates: dict[str, Model]


class PointData(NamedTuple):
    """Some points with their images, for a worker: it needs no data set."""

    points: list[int]
    x: NDArray[np.float32]
    y: NDArray[np.int64]

    def fetch(self, indices: Indices) -> tuple[Images, Labels]:
        """Read the points `indices` [b]: float32 images in [0, 1] and int64 labels."""
        places = {point: place for place, point in enumerate(self.points)}
        rows = [places[int(point)] for point in indices]
        return torch.from_numpy(self.x[rows]), torch.from_numpy(self.y[rows])


class Classify(NamedTuple):
    """The clean pass over some points; of each, the `ranked` classes of largest logit."""

    points: list[int]
    ranked: int
    criterion: Criterion


class Prove(NamedTuple):
    """A certificate on some points, of which `broken` were broken at a larger eps."""

    points: list[int]
    broken: set[int]
    method: str
    threat: Threat


class Attack(NamedTuple):
    """An attack on some points."""

    stage: AttackStage
    open: PointsToAttack

    @property
    def points(self) -> list[int]:
        """Those to attack."""
        return list(self.open.ranked)


Work: TypeAlias = "Classify | Prove | Attack"


class Order(NamedTuple):
    """A piece of work with its images."""

    work: Work
    points: PointData


class NoModel(NamedTuple):
    """The worker gets whole evaluations, each with a model of its own; `name` is for messages."""

    name: str


class Evaluation(NamedTuple):
    """A whole evaluation: one worker carries it out, and holds its ledger.

    Attributes:
        run: called with the watcher that hears what it does; it is pickled.
    """

    name: str
    run: Callable[[Watcher], Any]


class Ready(NamedTuple):
    """A worker is ready; `slots` is how many points its device runs at once."""

    device: str
    slots: int
    torch: str


class Classified(NamedTuple):
    """Rows for `Ledger.write_clean`."""

    rows: list[tuple[int, int, int, list[int]]]
    forwards: int
    errors: dict[int, float]


class Proved(NamedTuple):
    """Rows for `Ledger.write_certified`."""

    rows: list[tuple[int, bool]]


class AttackResults(NamedTuple):
    """What `Ledger.write` is told of an attack."""

    spent: list[tuple[int, int]]
    broken: list[BrokenPoint]
    cost: Cost
    closest: dict[int, float]
    refused: dict[int, RefusedCandidate]


class Ended(NamedTuple):
    """So many more tasks of the part have ended."""

    tasks: int


class Told(NamedTuple):
    """What the watcher of a whole evaluation hears."""

    event: str
    arguments: tuple[Any, ...]


class Result(NamedTuple):
    """What a whole evaluation came to.

    Attributes:
        value: what `Evaluation.run` returned.
        failed: why it returned nothing.
        written: the digests of the files that were written, by path.
    """

    value: Any
    failed: Failed | None
    written: Mapping[Path, str]


class Done(NamedTuple):
    """The order is carried out."""


class Failed(NamedTuple):
    """The worker cannot go on; `code` is the exit code of the error, None if it is not ours."""

    code: int | None
    message: str
    trace: str


class Lost(NamedTuple):
    """A worker has died; another is being started in its place."""

    reason: str


Note: TypeAlias = (
    "Ready | Classified | Proved | AttackResults | Ended | Told | Result | Done | Failed | Lost"
)
Briefing: TypeAlias = "ModelSetup | NoModel"
Task: TypeAlias = "Order | Evaluation"
Message: TypeAlias = "Briefing | Task"
