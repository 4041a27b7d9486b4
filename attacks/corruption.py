"""Common corruptions as a threat model: every image, corrupted in every way, at every severity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from robustkit.core.finite import FiniteThreat, Variant
from robustkit.core.named import ANY_SHAPE
from robustkit.core.types import Images
from robustkit.errors import UsageError
from robustkit.registry import threats

from ._corruptions import corrupt, grouped
from ._selection import selected

_SMALLEST = 28  # pixels a side


@threats.register("corruption", cites="arXiv:1903.12261", examples=("all", "fog@3", "extra"))
@dataclass(frozen=True)
class Corruption(FiniteThreat):
    """Noise, blur, weather and digital corruptions, each at severity 1 to 5.

    Hendrycks & Dietterich 2019. `corruption:all` is the benchmark's fifteen, `corruption:noise` (or
    blur, weather, digital, extra) one group, `corruption:fog` one of them; `@3` or `@2-4` picks
    severities, and `+` joins: `corruption:fog@3+noise@5`. Images up to 100 pixels a side take the
    constants of CIFAR-10-C, larger ones those of ImageNet-C. Draws depend on (position of the
    point, corruption, severity) alone, not on the seed of a run: all models meet the same images.
    Differs from the paper: frost is drawn, not cut from photographs, and motion blur is not
    ImageMagick's.
    """

    @staticmethod
    def groups() -> dict[str, list[str]]:
        """Name the corruptions of each group."""
        return grouped()

    @classmethod
    def read(cls, text: str) -> Corruption:
        """Read what follows `corruption:`."""
        chosen = selected(text, grouped())
        return cls(f"corruption:{text.lower()}", float(max(v.severity for v in chosen)))  # type: ignore[arg-type]

    @property
    def variants(self) -> Sequence[Variant]:
        """In the order of the list."""
        return _variants(self.norm.partition(":")[2])

    def images(self, x: Images, points: Sequence[int], variant: Variant) -> Images:
        """Corrupt a batch, image by image."""
        made = [
            corrupt(image, variant.kind, variant.severity, point)
            for image, point in zip(x.detach().cpu().numpy(), points, strict=True)
        ]
        return torch.from_numpy(np.stack(made)).float() / 255

    def check(self, shape: Sequence[int], labels: Any) -> None:
        """Refuse what is no image."""
        if len(shape) != 3 or shape[0] not in (1, 3) or min(shape[1:]) < _SMALLEST:
            raise UsageError(
                f"{self} needs gray or colour images [1 or 3, h, w] of at least {_SMALLEST} pixels "
                f"a side, got inputs {list(shape)}. {ANY_SHAPE}"
            )


@lru_cache
def _variants(text: str) -> tuple[Variant, ...]:
    return selected(text, grouped())
