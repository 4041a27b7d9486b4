"""Threat models that are a union of boxes, such as a patch that may lie anywhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from robustkit.core.named import NamedThreat
from robustkit.core.types import Images


@dataclass(frozen=True)
class BoxedThreat(NamedThreat, ABC):
    """Inputs of finitely many boxes: what holds on each of them holds for the threat model."""

    @abstractmethod
    def boxes(self, x: Images) -> Iterator[tuple[Images, Images]]:
        """Yield the low and the high ends [m, *f] of some boxes around one input [1, *f] at a time.

        Together they hold every input that the adversary can make of it, in float32 exactly.
        """
