"""Input diversity: pictures shrunk to a random size at a random place, each slot in its own way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustkit.core.rng import uniform
from robustkit.core.types import Images, Integers, per_point

from ._transfer import MomentumAttack, State
from ._views import sampled


@dataclass(frozen=True)
class DiverseAttack(MomentumAttack):
    """Momentum, with gradients at pictures of which some are shrunk (Xie et al. 2019)."""

    probability: Annotated[float, Field(ge=0, le=1)] = 0.5
    least: Annotated[float, Field(gt=0, le=1)] = 0.9

    pictures: ClassVar[bool] = True

    def view(self, query: Images, state: State, stream: Integers) -> Images:
        """Return some of the pictures [s, c, h, w] shrunk."""
        draw = uniform(state.keys, 4, stream)
        axes = [
            self._axis(draw[:, 1], draw[:, 2 + axis], size)
            for axis, size in enumerate(query.shape[2:])
        ]
        whole = [a[:, :, None].expand(-1, -1, query.shape[3]) for a in axes[0]]
        across = [a[:, None, :].expand(-1, query.shape[2], -1) for a in axes[1]]
        shrunk = sampled(query, whole[0], across[0], (*whole[1:], *across[1:]))
        return torch.where(per_point(draw[:, 0] < self.probability, query), shrunk, query)

    def _axis(self, share: Tensor, place: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return where the pixels of one axis come from, and the bounds; each [s, size].

        Args:
            share, place: draws in [0, 1) that choose the side and where it begins [s].
        """
        least = max(1, int(self.least * size))
        side = (least + (share * (size - least)).floor())[:, None]
        first = (place[:, None] * (size - side + 1)).floor()
        pixel = torch.arange(size, device=share.device) - first
        source = ((pixel + 0.5) * size / side - 0.5).clamp(0, size - 1)
        outside = (pixel < 0) | (pixel >= side)  # bounds that no pixel lies within
        return source, outside.float(), (size - 1.0) * ~outside
