"""What a record of a finite threat model says beside the verdicts: accuracy under each variant."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from robustkit.core.stats.intervals import Interval, clopper_pearson

if TYPE_CHECKING:
    from robustkit.record.record import Record

HARDEST = 5  # severity


@dataclass(frozen=True)
class VariantAccuracies:
    """Accuracies of one record under every variant; all are fractions of its n points.

    Attributes:
        variants: kind and severity of each column.
        right: whether each point is classified rightly under each variant [n, v].
        points: position of each row in the data.
    """

    variants: list[tuple[str, int]]
    right: NDArray[np.bool_]
    points: list[int]

    @classmethod
    def of(cls, record: Record) -> VariantAccuracies | None:
        """Read them from a record; None where its threat model lists no variants."""
        names, signs = record.threat.variants, record.points.variants
        if not names or signs is None:
            return None
        parts = [name.rpartition("@") for name in names]
        right = np.array([[sign == "1" for sign in row] for row in signs])
        return cls([(kind, int(k)) for kind, _, k in parts], right, record.points.index)

    @property
    def cells(self) -> dict[str, float]:
        """Accuracy under each variant, such as `fog@3`."""
        means = self.right.mean(0).tolist()
        return {f"{k}@{s}": mean for (k, s), mean in zip(self.variants, means, strict=True)}

    @property
    def cell_intervals(self) -> dict[str, Interval]:
        """95% interval of each cell (Clopper and Pearson)."""
        counts = self.right.sum(0).tolist()
        return {cell: clopper_pearson(count, len(self.right))
                for cell, count in zip(self.cells, counts, strict=True)}  # fmt: skip

    @property
    def kinds(self) -> dict[str, float]:
        """Accuracy under each corruption, the mean over its severities."""
        return {kind: float(self._of(kind).mean()) for kind in self._names}

    @property
    def mean(self) -> float:
        """Mean over corruptions of the mean over severities (mCA)."""
        return float(self.per_point.mean())

    @cached_property
    def per_point(self) -> NDArray[np.float64]:
        """Each point's share of the mean [n]: the unit that intervals are computed from.

        The answers to the variants of one point are not independent of each other.
        """
        shares = [self._of(kind).mean(1) for kind in self._names]
        found: NDArray[np.float64] = np.mean(shares, axis=0)
        return found

    @property
    def hardest(self) -> float | None:
        """Mean accuracy over the variants of severity 5; None where there is none."""
        columns = [number for number, (_, k) in enumerate(self.variants) if k == HARDEST]
        return float(self.right[:, columns].mean()) if columns else None

    @property
    def worst(self) -> tuple[str, float]:
        """The corruption with the lowest accuracy, and that; of equals the first."""
        return min(self.kinds.items(), key=lambda item: item[1])

    @cached_property
    def _names(self) -> list[str]:
        return list(dict.fromkeys(kind for kind, _ in self.variants))

    def _of(self, kind: str) -> NDArray[np.bool_]:
        return self.right[:, [k for k, (name, _) in enumerate(self.variants) if name == kind]]
