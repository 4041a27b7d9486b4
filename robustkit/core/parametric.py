"""Threat models of few parameters: an image moves along directions of its own, then is clipped."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustkit.core.named import NamedThreat
from robustkit.core.types import Images, Mask, Scalars

STEPS = 1000  # of a parameter, from 0 to its end on either side
Parameters = Float[Tensor, "b p"]
Positions = Int[Tensor, "b p"]


@dataclass(frozen=True)
class ParametricThreat(NamedThreat, ABC):
    """Every x' = clip(x + Σ_i θ_i B_i(x), 0, 1) with θ in a box that holds 0.

    An adversarial input is stored as what it is, and counts if some θ makes it, bit by bit: on each
    side a parameter takes `STEPS` values from 0 to its end. Certificates hold for all real values
    between the ends. `eps` is 1: distance is the largest share of its range that a parameter takes.
    """

    suite, searched_by = "parametric", "parametric"

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """The parameters of one channel, or of the image."""

    @abstractmethod
    def size(self, shape: Sequence[int]) -> int:
        """How many parameters p an input [*shape] has."""

    @abstractmethod
    def values(self, positions: Positions) -> Parameters:
        """Return θ at positions from −STEPS to STEPS, float64; position 0 is exactly 0.

        It increases with the position, one parameter at a time.
        """

    @abstractmethod
    def directions(self, x: Images) -> Float[Tensor, "b p *f"]:
        """Return B(x) in float64: the same bits whatever the batch and the device."""

    @abstractmethod
    def positions(self, z: Images, x: Images) -> tuple[Positions, Mask]:
        """Return the positions nearest to 0 that make `z` of `x`, and where there are any."""

    def images(self, x: Images, theta: Parameters) -> Images:
        """Return x' of x [b, *f], in its dtype; differentiable in θ.

        Sums run in float64 in a fixed order and are rounded once: the same bits on every device.
        """
        moved = x.double()
        for number, direction in enumerate(self.directions(x).unbind(1)):
            share = theta[:, number].view(-1, *[1] * (x.ndim - 1))
            moved = moved + share * direction
        return moved.clamp(0, 1).to(x.dtype)

    def made(self, x: Images, positions: Positions) -> Images:
        """Return x' of x [b, *f] at some positions."""
        return self.images(x, self.values(positions))

    def distance(self, z: Images, x: Images, points: Sequence[int] | None = None) -> Scalars:
        """Least share of the ranges with which `z` is made of `x`; infinite: it cannot be."""
        found, there = self.positions(z, x)
        share: Scalars = found.abs().amax(1).double() / STEPS
        return share.masked_fill(~there, torch.inf)

    @property
    def instead(self) -> str:
        """A few parameters."""
        return (
            "moves an image along a few parameters: leave out --attack, --suite and --certify, or "
            "name --suite parametric and --certify auto."
        )
