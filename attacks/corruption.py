"""Common corruptions as a threat model: every image, corrupted in every way, at every severity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from robustkit.core.finite import FiniteThreat, Variant
from robustkit.core.types import Images
from robustkit.errors import UsageError, unknown
from robustkit.registry import threats

from ._corruptions import SEVERITIES, corrupt, grouped

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
                f"a side, got inputs {list(shape)}."
            )


@lru_cache
def _variants(text: str) -> tuple[Variant, ...]:
    return selected(text, grouped())


def selected(text: str, groups: dict[str, list[str]]) -> tuple[Variant, ...]:
    """Return the variants that a selection such as `fog@3+noise` names, each once.

    Args:
        groups: the corruptions of each group, of which all but the extra ones are in `all`.

    Raises:
        UsageError: for a name or a severity that there is not.
    """
    names = dict.fromkeys(name for group in groups.values() for name in group)
    found: dict[Variant, None] = {}
    for part in text.lower().split("+"):
        name, at, severity = (piece.strip() for piece in part.partition("@"))
        if name not in names and name not in groups:
            raise unknown("corruption", name, [*groups, *names])
        for kind in groups.get(name, [name]):
            found.update(dict.fromkeys(Variant(kind, k) for k in _severities(severity, part, at)))
    return tuple(found)


def _severities(text: str, part: str, at: str) -> range:
    first, dash, last = text.partition("-")
    if not at:
        return SEVERITIES
    ends = (first, last if dash else first)
    if all(end.isdecimal() and int(end) in SEVERITIES for end in ends):
        chosen = range(int(ends[0]), int(ends[1]) + 1)
        if chosen:
            return chosen
    raise UsageError(f"expected a severity from 1 to 5 in {part!r}, such as @3 or @2-4.")
