"""The points of a training: without those held out, and joined with unlabeled ones."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from robustkit.data.dataset import Dataset, select, subset
from robustkit.data.open import open_dataset
from robustkit.data.unlabeled import open_pool, with_unlabeled
from robustkit.errors import UsageError
from robustkit.registry import datasets


@runtime_checkable
class TakesUnlabeled(Protocol):
    """Tells a defense that learns from a few labels and a pool of unlabeled images."""

    @property
    def labels(self) -> int: ...
    @property
    def pool(self) -> str: ...


def split(data: Dataset, n: int | None) -> tuple[Dataset, Dataset | None]:
    """Return the points to train on, and those that are left out: the same for every training."""
    if n is None:
        return data, None
    if n >= len(data):
        raise UsageError(
            f"--validation: expected fewer than the {len(data)} points of {data.name}, got {n}."
        )
    chosen = select(data, n, 0, "balanced")
    rest = np.setdiff1d(np.arange(len(data)), chosen)
    return subset(data, rest), subset(data, chosen)


def joined(defense: TakesUnlabeled, data: Dataset, name: str, root: Path | None) -> Dataset:
    """Return the labeled points and the pool, which may hold no test image of the data `name`."""
    pool = test = None
    if defense.pool:
        pool = open_pool(defense.pool, classes=data.classes, root=root)
    if name.partition("(")[0].strip() in datasets:
        test = open_dataset(name, root=root, split="test")
    return with_unlabeled(data, defense.labels, pool=pool, test=test)
