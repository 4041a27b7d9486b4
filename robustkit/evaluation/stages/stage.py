"""What the stages of a run work on: an attack of the line-up, points, and a model on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch

from robustkit.core.spec import Spec
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels, Model
from robustkit.data.dataset import Indices
from robustkit.models.tuning import Tuned
from robustkit.record.ledger_schema import BrokenPoint, Cost, RefusedCandidate
from robustkit.registry import attacks
from robustkit.search.protocol import Job
from robustkit.verify.diagnostics.probe import Diagnosis

Report: TypeAlias = Callable[[int, int], None]
"""Hears two counts after every batch; what they count is said where one is passed."""


@dataclass(frozen=True)
class AttackStage:
    """One attack of a line-up, as far as it is the same for all points.

    Attributes:
        number: its place in the line-up.
        attack: built from `spec`.
        threat: where verdicts are read, and where certificates hold.
        within: where to search: the same, or all of the box.
        nearest: it uses up its budget and keeps the closest success.
        keep: whether to store adversarial inputs.
    """

    number: int
    spec: Spec
    attack: Any
    threat: Threat
    within: Threat
    nearest: bool
    keep: bool

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker builds the attack again: its class may lie in a pack that only a registry finds.
        facts = (self.number, self.spec, self.threat, self.within, self.nearest, self.keep)
        return _received, facts

    def jobs(self, classes: int) -> Sequence[Job]:
        """List the runs of the attack that every point gets."""
        matter = self.threat.criterion.classes(classes)
        listed: Sequence[Job] = self.attack.jobs(self.threat, matter)
        return listed


def _received(number: int, spec: Spec, *others: Any) -> AttackStage:
    return AttackStage(number, spec, attacks.build(spec), *others)


class PointsToAttack(NamedTuple):
    """Points that an attack is to run on.

    Attributes:
        ranked: of each point, the classes by falling clean logit.
        spent: (point, job) pairs that are done already.
        proved: points with a certificate.
    """

    ranked: dict[int, list[int]]
    spent: set[tuple[int, int]]
    proved: set[int]

    def some(self, points: Sequence[int], spent: set[tuple[int, int]]) -> PointsToAttack:
        """Return what concerns some of the points, of which `spent` is done by now."""
        chosen = set(points)
        return PointsToAttack(
            {point: self.ranked[point] for point in points},
            {item for item in spent if item[0] in chosen},
            self.proved & chosen,
        )


@dataclass
class DeviceWorker:
    """A model on one device, in the process of the run or in a worker's.

    Attributes:
        model: the private copy that verdicts come from; searches use `tuned`.
        seed: of the run.
        slots: how many points to run at once; halved when memory runs out.
        pulse: told how many inputs an attack has put through the model, again and again.
    """

    name: str
    model: Model
    tuned: Tuned
    diagnosis: Diagnosis
    seed: int
    slots: int
    pulse: Callable[[int], None] = lambda _: None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.diagnosis.sample.device


class PointSource(Protocol):
    """Where the points come from: a data set, or those that were sent to a worker."""

    def fetch(self, indices: Indices) -> tuple[Images, Labels]:
        """Read the points `indices` [b]: float32 images in [0, 1] and int64 labels."""
        ...


class VerdictWriter(Protocol):
    """What writes verdicts down: the ledger, or what sends them to where the ledger is."""

    def write_clean(
        self,
        rows: Iterable[tuple[int, int, int, list[int]]],
        forwards: int,
        seconds: float,
        errors: Mapping[int, float] | None = None,
    ) -> None:
        """Store (point, label, predicted, classes by falling logit) of a clean batch."""
        ...

    def write_certified(self, rows: Iterable[tuple[int, bool]], seconds: float) -> None:
        """Store for some points whether the certificate holds."""
        ...

    def write(
        self,
        stage: int,
        spent: Iterable[tuple[int, int]],
        broken: Iterable[BrokenPoint],
        cost: Cost,
        closest: Mapping[int, float] | None = None,
        refused: Mapping[int, RefusedCandidate] | None = None,
    ) -> None:
        """Store what a harvest of an attack brought."""
        ...
