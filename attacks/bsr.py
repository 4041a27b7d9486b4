"""BSR: momentum, with gradients at pictures whose blocks are shuffled and turned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustkit.core.rng import uniform
from robustkit.core.types import Images, Integers
from robustkit.registry import attacks

from ._transfer import MomentumAttack, State
from ._views import Strips, sampled, strips


@attacks.register("bsr", white_box=True, cites="arXiv:2308.10299")
@dataclass(frozen=True)
class Bsr(MomentumAttack):
    """Momentum with block shuffle and rotation (BSR) for linf and l2, on pictures, to transfer.

    Wang et al. 2024, section 3.3: the picture is cut into blocks of random sizes along one axis and
    then the other, which change places, and each is turned about its middle by up to `angle`
    degrees (bilinear, black beyond the block). The gradient is the mean over `eot` such pictures.
    Differs from the paper: l2 as well; any query on the way may be the success, not only the last.
    Its code turns whole strips, the paper blocks.

    Attributes:
        steps, step_size, decay, gamma, surrogate: as in mi.
        eot: N of the paper, pictures averaged at every query.
        blocks: n of the paper, along each axis.
        angle: τ of the paper, in degrees.
    """

    eot: Annotated[int, Field(ge=1)] = 20
    blocks: Annotated[int, Field(ge=1)] = 2
    angle: Annotated[float, Field(ge=0, le=180)] = 24.0

    name: ClassVar[str] = "bsr"
    pictures: ClassVar[bool] = True

    def check(self, shape: Sequence[int]) -> None:
        """Refuse what is no picture, and more blocks than pixels (a UsageError)."""
        super().check(shape)
        self.least_side(shape, self.blocks, f"blocks={self.blocks}")

    def view(self, query: Images, state: State, stream: Integers) -> Images:
        """Return the pictures [s, c, h, w] shuffled."""
        n, (height, width) = self.blocks, query.shape[2:]
        draw = uniform(state.keys, 1 + 2 * n + 3 * n * n, stream)
        first, outer, inner, turned = draw.split([1, 2 * n, 2 * n * n, n * n], 1)
        inner = inner.view(-1, n, 2 * n)
        rows = _grid(outer, inner, height, width)
        columns = [_flipped(axis) for axis in _grid(outer, inner, width, height)[::-1]]
        along = (first < 0.5)[:, :, None]
        down, right = (
            Strips(*(torch.where(along, a, b) for a, b in zip(*pair, strict=True)))
            for pair in zip(rows, columns, strict=True)
        )
        bend = math.radians(self.angle) * (2 * turned - 1)
        angle = bend.gather(1, (down.number * n + right.number).flatten(1)).view(down.low.shape)
        places = _turned(down, angle, right), _turned(right, -angle, down)
        return sampled(query, *places, (down.low, down.high, right.low, right.high))


def _grid(outer: Tensor, inner: Tensor, height: int, width: int) -> list[Strips]:
    """Cut and shuffle rows by `outer` [s, 2 n], columns in each strip by `inner` [s, n, 2 n].

    Returns:
        Where rows and columns come from, each [s, height, width].
    """
    rows = _cut(outer, height)
    down = Strips(*(part[:, :, None].expand(-1, -1, width) for part in rows))
    right = Strips(*(
        part.gather(1, rows.number[:, :, None].expand(-1, -1, width))
        for part in _cut(inner, width)
    ))  # fmt: skip
    return [down, right]


def _cut(draw: Tensor, length: int) -> Strips:
    """Cut an axis into strips as the paper's code does, and shuffle them; draws [..., 2 n]."""
    shares, places = draw.chunk(2, -1)
    sizes = (1 + shares) / (1 + shares).sum(-1, keepdim=True) * length
    lengths = sizes.round().long()
    rest = length - lengths.sum(-1, keepdim=True)
    lengths = lengths.scatter_add(-1, lengths.argmax(-1, keepdim=True), rest)
    return strips(lengths, places.argsort(-1), length)


def _flipped(strips: Strips) -> Strips:
    return Strips(*(part.transpose(1, 2) for part in strips))


def _turned(axis: Strips, angle: Tensor, other: Strips) -> Tensor:
    """Return the places along an axis after a turn about the middle of each block."""
    middle, across = ((strip.low + strip.high) / 2 for strip in (axis, other))
    return middle + angle.cos() * (axis.source - middle) - angle.sin() * (other.source - across)
