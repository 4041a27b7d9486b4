"""Adversarial inputs that earlier runs stored, tried again on another model: one pass each.

What a ledger holds is only a proposal here: it counts if it lies inside the threat model of
its point and the model of this run is fooled by it, as `verify` says.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from robustkit.core.threat import Threat
from robustkit.core.types import Images
from robustkit.data.dataset import Points
from robustkit.errors import UsageError
from robustkit.evaluation.stages.judge import broken_points, refuse_refuted_certificates
from robustkit.evaluation.stages.stage import DeviceWorker, Report
from robustkit.record.evidence import refuse_altered_ledger
from robustkit.record.ledger import Ledger
from robustkit.record.ledger_reader import digest_of_stored, open_readonly
from robustkit.record.ledger_schema import REPLAYED, BrokenPoint, Cost
from robustkit.record.record import REPLAY
from robustkit.verify.candidates import verify

_MOST = 500  # points in a batch


@dataclass(frozen=True)
class Examples:
    """The stored adversarial inputs of one or more runs; they are read when they are needed."""

    ledgers: tuple[Path, ...]

    def digest(self) -> str:
        """SHA-256 of all of them: what is replayed decides verdicts."""
        return digest_of_stored(self.ledgers)


def find_examples(folder: Path, shape: tuple[int, ...]) -> Examples:
    """Find the ledgers in a run's folder, or in that of one model's run.

    Raises:
        UsageError: when there is none, it holds no adversarial inputs or those of images of
            another shape, or a run is using it.
        EvidenceAltered: when one is not as its run left it.
    """
    found = [path for path in (folder / "ledger.sqlite", *sorted(folder.glob("*/ledger.sqlite")))
             if path.is_file()]  # fmt: skip
    if not found:
        raise UsageError(
            f"{folder} holds no ledger.sqlite: name the folder of a run of `robustkit evaluate`."
        )
    kept = []
    for path in found:
        refuse_altered_ledger(path)
        with open_readonly(path) as ledger:
            stored, theirs = ledger.stored(), ledger.shape()
        if stored and theirs != tuple(shape):
            raise UsageError(
                f"{path} holds adversarial inputs of shape "
                f"{'unknown' if theirs is None else list(theirs)}, but the data has {list(shape)}: "
                "replay a run on the same data."
            )
        kept += [path] if stored else []
    if not kept:
        raise UsageError(
            f"{folder} holds no adversarial inputs: that run broke nothing, or was told not to "
            "store them (--no-save-adversarial)."
        )
    return Examples(tuple(kept))


@dataclass(frozen=True)
class Replay:
    """The replay stage of one run.

    Attributes:
        keep: whether to store what breaks this model too.
    """

    examples: Examples
    worker: DeviceWorker
    data: Points
    threat: Threat
    ledger: Ledger
    keep: bool

    def run(self, robust: Sequence[int], proved: set[int], report: Report) -> None:
        """Try what is stored on the points that are robust so far; write down those it breaks.

        Args:
            report: called after every batch with (tried, points still robust).

        Raises:
            RobustkitError: when a point with a certificate (one of `proved`) is broken.
        """
        tried, left, done = self.ledger.spent(REPLAYED, robust), set(robust), 0
        batch = min(self.worker.slots, _MOST)
        for number, path in enumerate(self.examples.ledgers):
            with open_readonly(path) as source:
                stored = source.stored()
                todo = [p for p in robust if p in left and p in stored and (p, number) not in tried]
                for start in range(0, len(todo), batch):
                    points = todo[start : start + batch]
                    examples = source.examples(self.data.shape, points)
                    z = torch.stack([examples[point] for point in points])
                    broken = self._judge(number, points, z, proved)
                    left -= {found.point for found in broken}
                    done += len(points)
                    report(done, len(left))

    def _judge(
        self, number: int, batch: Sequence[int], z: Images, proved: set[int]
    ) -> list[BrokenPoint]:
        clock = time.monotonic()
        z = z.to(self.worker.device)
        x, y = (part.to(self.worker.device) for part in self.data.fetch(batch))
        inside = self.threat.contains(z, x, points=batch) & z.isfinite().flatten(1).all(1)
        rows = inside.nonzero().flatten()
        points = [batch[row] for row in rows.tolist()]
        broken: list[BrokenPoint] = []
        passes = 0
        if points:
            verdict = verify(
                self.worker.model, z[rows], x[rows], y[rows], self.threat, attack=REPLAY,
                points=points, randomized=self.worker.diagnosis.randomized,
            )  # fmt: skip
            broken = broken_points(verdict, REPLAYED, points, z[rows] if self.keep else None)
            passes = verdict.passes
        there = {found.point for found in broken}
        refuse_refuted_certificates(REPLAY, [p for p in points if p in there & proved], self.threat)
        cost = Cost(forwards=passes, seconds=time.monotonic() - clock)
        spent = [(point, number) for point in batch if point not in there]
        self.ledger.write(REPLAYED, spent, broken, cost)
        return broken


def none_fitted(name: str, tried: int, threat: Threat) -> str:
    """Say that no input to replay lies within the threat model of its point."""
    return (
        f"{name}: none of the {tried} inputs to replay lies within {threat} of its point. Are they "
        "of a run on the same data, and at no larger eps?"
    )
