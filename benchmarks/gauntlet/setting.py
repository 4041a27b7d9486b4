"""One gauntlet: the bare model, its points, and where its evaluations lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from robustkit.core import json_files
from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset, select
from robustkit.errors import UsageError
from robustkit.evaluation.evaluate import evaluate
from robustkit.evaluation.watcher import Watcher
from robustkit.record.record import Record, load
from robustkit.registry import suites


@dataclass(frozen=True)
class Setting:
    """What is evaluated, and where; `folder` belongs to these settings alone."""

    name: str
    bare: nn.Module
    data: Dataset
    threat: Threat
    n: int
    seed: int
    device: str
    folder: Path
    watcher: Watcher

    def evaluate(self, model: nn.Module, place: str, points: Sequence[int], **asked: Any) -> Record:
        """Evaluate `model` in `folder`/`place`, or finish that; what is finished is read back."""
        folder = self.folder / place
        if (done := folder / "record.json").exists():
            record = load(done)
            if record.points.index == sorted(points):
                return record
        return evaluate(model, name=place, data=self.data, threat=self.threat, folder=folder,
                        points=points, seed=self.seed, device=self.device, watcher=self.watcher,
                        save_adversarial=True, **asked)  # fmt: skip


@dataclass(frozen=True)
class Points:
    """How the n points are dealt.

    Attributes:
        contested: the bare model decides them rightly, and loses them under attack: where a masked
            gradient shows.
        controls: a sample of those that it keeps; attacked as well.
        kept: how many it keeps in all; those that are no controls count as robust everywhere.
    """

    contested: list[int]
    controls: list[int]
    kept: int

    @property
    def chosen(self) -> list[int]:
        return sorted(self.contested + self.controls)


def bare_suites() -> list[str]:
    """Name the suites that find the truth of the bare model."""
    return [name for name in ("parity", "fast", "adaptive") if name in suites]


def prepare(setting: Setting, controls: int | None) -> Points:
    """Evaluate the bare model on all n points and choose those of the wrappers, once.

    Args:
        controls: how many; None: all that the bare model keeps.

    Raises:
        UsageError: when the folder holds another choice.
    """
    everything = select(setting.data, setting.n, setting.seed).tolist()
    records = [
        setting.evaluate(setting.bare, f"bare/{suite}", everything, suite=suite)
        for suite in bare_suites()
    ]
    standing = [p for p in everything if all(r.outcomes[p] for r in records)]
    return deal(setting.folder / "points.json", records[0], standing, controls)


def deal(path: Path, record: Record, standing: Sequence[int], controls: int | None) -> Points:
    """Choose the points that are attacked: all that are lost, and a sample of those that stand.

    Args:
        path: where the choice is stored; one that is there stays.
        record: says which points are misclassified from the start: those are never attacked.
        standing: the points that are kept.
        controls: how many of these; None: all.

    Raises:
        UsageError: when `path` holds another choice.
    """
    if not path.exists():
        status = dict(zip(record.points.index, record.points.status, strict=True))
        fallen = [p for p in status if p not in standing and status[p] != "misclassified"]
        count = len(standing) if controls is None else min(controls, len(standing))
        places = np.linspace(0, len(standing), count, endpoint=False).astype(int)
        chosen = {"contested": fallen, "controls": [standing[i] for i in places],
                  "kept": len(standing), "asked": controls}  # fmt: skip
        json_files.write(chosen, path)
    raw = json_files.read(path)
    if raw["asked"] != controls:
        raise UsageError(
            f"{path} was chosen with --controls {'all' if raw['asked'] is None else raw['asked']}; "
            "ask for the same, or for another --out."
        )
    return read_points(path)


def read_points(path: Path) -> Points:
    """Return the choice that `deal` has stored."""
    raw = json_files.read(path)
    return Points(raw["contested"], raw["controls"], raw["kept"])
