"""Threat models that list their inputs: finitely many per point, each with a name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from robustkit.core.named import NamedThreat
from robustkit.core.types import Images, Scalars
from robustkit.errors import UsageError


class Variant(NamedTuple):
    """One input that the adversary may show in place of a point: what was done, how strongly."""

    kind: str
    severity: int

    def __str__(self) -> str:
        return f"{self.kind}@{self.severity}"


@dataclass(frozen=True)
class FiniteThreat(NamedThreat, ABC):
    """The point itself and its variants, which are made anew from (point, variant) alone.

    A point is robust exactly if all of them are classified rightly: the verdict comes from trying
    each, not from a search. `eps` holds the largest severity, and severity takes the place of
    distance.
    """

    suite, searched_by = "exhaustive", "enumerates"

    @property
    @abstractmethod
    def variants(self) -> Sequence[Variant]:
        """All variants of a point, in a fixed order."""

    @abstractmethod
    def images(self, x: Images, points: Sequence[int], variant: Variant) -> Images:
        """Return one variant of the points `x` [b, c, h, w], float32 on the CPU.

        The same bits for the same point, whatever the batch, the device or the model.

        Args:
            points: positions in the data set, which key what is drawn at random.
        """

    @property
    def instead(self) -> str:
        """A list of inputs."""
        return (
            "lists the inputs to try, one by one: leave out --attack, --suite and --certify, or "
            "name --suite exhaustive."
        )

    def distance(self, z: Images, x: Images, points: Sequence[int] | None = None) -> Scalars:
        """Least severity of a variant of each point that equals `z` bit by bit; infinite: none."""
        if points is None:
            raise UsageError(f"{self}: what a point's variants are depends on its position.")
        found = torch.full((len(x),), torch.inf, dtype=torch.float64)
        claimed, clean, left = z.cpu(), x.cpu(), list(range(len(x)))
        for variant in sorted(self.variants, key=lambda one: one.severity):
            if not left:
                break
            made = self.images(clean[left], [points[row] for row in left], variant)
            same = (made == claimed[left]).flatten(1).all(1).tolist()
            hits = [row for row, hit in zip(left, same, strict=True) if hit]
            found[hits] = float(variant.severity)
            left = [row for row, hit in zip(left, same, strict=True) if not hit]
        return found.to(z.device)
