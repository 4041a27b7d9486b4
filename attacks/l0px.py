"""Few pixels as a threat model: all channels of a pixel count once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Self

import torch

from robustkit.core.named import NamedThreat
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Scalars
from robustkit.errors import UsageError
from robustkit.registry import suites, threats


@threats.register("l0px", cites="arXiv:1909.05040", examples=("10",))
@dataclass(frozen=True)
class PixelCount(NamedThreat):
    """Every x' that differs from x in at most so many pixels: all channels of one count once.

    Croce & Hein 2019, section 2: the l0 norm of images. `l0px:10` lets 10 pixels take any color in
    [0, 1]; on gray images it is `l0:10`, where every number counts by itself. The distance is the
    number of pixels that changed, infinite outside of the box.
    """

    suite, searched_by = "pixelwise", "pixelwise"

    @classmethod
    def read(cls, text: str) -> Self:
        """Read what follows `l0px:`."""
        if not (text.isdecimal() and text.isascii() and int(text) > 0):
            raise UsageError(f"expected l0px:10, a number of pixels from 1 on, got l0px:{text}")
        return cls(f"l0px:{int(text)}", float(int(text)))  # type: ignore[arg-type]

    def check(self, shape: Sequence[int], labels: Any) -> None:
        """Refuse what is no image, and one of fewer pixels."""
        if len(shape) != 3:
            raise UsageError(
                f"{self} counts pixels of images [c, h, w], got inputs {list(shape)}: "
                f"l0:{self.eps:g} counts numbers."
            )
        if self.eps > prod(shape[1:]):
            raise UsageError(
                f"{self}: expected at most the {prod(shape[1:])} pixels of an image "
                f"(inputs {list(shape)}), got {self.eps:g}."
            )

    @property
    def instead(self) -> str:
        """Pixels, whose channels move together."""
        return (
            "counts pixels, which no bound is known for: leave out --attack, --suite and "
            "--certify, or name --suite pixelwise or --attack sigma_zero."
        )

    def distance(self, z: Images, x: Images, points: Sequence[int] | None = None) -> Scalars:
        """Pixels that changed; infinite outside of the box."""
        boxed = ((z >= 0) & (z <= 1)).flatten(1).all(1)
        count: Scalars = (z != x).any(1).flatten(1).sum(1).double()
        return count.masked_fill(~boxed, torch.inf)


@suites.register("pixelwise", cites="arXiv:2402.01879")
@dataclass(frozen=True)
class Pixelwise:
    """sigma-zero, untargeted and at five classes, then `pixels` at nine: for `l0px:10`."""

    pixelwise = True

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """On the model itself, and through each surrogate that it declares.

        Raises:
            UsageError: for a norm.
        """
        if not isinstance(threat, PixelCount):
            raise UsageError(f"the suite pixelwise supports l0px:10, got {threat.norm}. Use quick.")
        through = [f"sigma_zero(steps=150, surrogate={name})" for name in surrogates]
        aimed = "sigma_zero(steps=150, targets=5)"
        return ["sigma_zero(steps=150)", aimed, "pixels(targets=9)", *through]
