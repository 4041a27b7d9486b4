"""SIA: momentum, with gradients at pictures of which each block is transformed in its own way."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from robustkit.core.rng import uniform
from robustkit.core.types import Images, Integers
from robustkit.registry import attacks

from ._transfer import MomentumAttack, State
from ._views import Strips, gathered, strips

_DOWN, _RIGHT, _FLIP, _MIRROR, _HALF_TURN, _SCALE, _NOISE, _RESIZE, _LOW, _DROP = KINDS = range(10)
_NOISY, _DROPPED = 16 / 255, 0.1


@attacks.register("sia", white_box=True, cites="arXiv:2309.14700")
@dataclass(frozen=True)
class Sia(MomentumAttack):
    """Momentum with block transformations (SIA) for linf and l2, on pictures, made to transfer.

    Wang et al. 2023, section 3.3: the picture is cut at random rows and columns, and each block is
    shifted down or to the right around its edge, flipped, mirrored, turned by 180 degrees, scaled,
    made noisy, shrunk to 0.8 and enlarged again, freed of the highest 0.4 of its frequencies (DCT)
    or loses channels at random. The gradient is the mean over `eot` such pictures. Differs from the
    paper: noise is not clipped to the box; l2 as well; any query on the way may be the success, not
    only the last.

    Attributes:
        steps, step_size, decay, gamma, surrogate: as in mi.
        eot: N of the paper, pictures averaged at every query.
        blocks: s of the paper, along each axis.
    """

    eot: Annotated[int, Field(ge=1)] = 20
    blocks: Annotated[int, Field(ge=1)] = 3

    name: ClassVar[str] = "sia"
    pictures: ClassVar[bool] = True

    def check(self, shape: Sequence[int]) -> None:
        """Refuse what is no picture, and more blocks than pixels (a UsageError)."""
        super().check(shape)
        self.least_side(shape, self.blocks, f"blocks={self.blocks}")

    def view(self, query: Images, state: State, stream: Integers) -> Images:
        """Return the pictures [s, c, h, w] with their blocks transformed."""
        n, (channels, height, width) = self.blocks, query.shape[1:]
        counts = [height - 1, width - 1, n * n, n * n, channels * n * n, query[0].numel()]
        draw = uniform(state.keys, sum(counts), stream).split(counts, 1)
        rows, columns = (
            _cut(part, n, size) for part, size in zip(draw, (height, width), strict=False)
        )
        block = rows.number[:, :, None] * n + columns.number[:, None, :]
        chosen = (len(KINDS) * draw[2]).long()
        kind, amount = (_spread(part, block) for part in (chosen, draw[3]))
        kept = (draw[4] >= _DROPPED).view(len(query), channels, -1) / (1 - _DROPPED)
        kept = torch.stack([_spread(part, block) for part in kept.unbind(1)], 1)
        kind, amount = kind[:, None], amount[:, None]
        moved = _moved(query, rows, columns, kind[:, 0], amount[:, 0])
        noise = _NOISY * (2 * draw[5].view_as(query) - 1)
        others = {
            _SCALE: query * amount,
            _NOISE: query + noise,
            _RESIZE: _mixed(query, rows, columns, shrunk),
            _LOW: _mixed(query, rows, columns, low_frequencies),
            _DROP: query * kept,
        }
        for number, changed in others.items():
            moved = torch.where(kind == number, changed, moved)
        return moved


def _cut(draw: Tensor, n: int, length: int) -> Strips:
    """Cut an axis at n − 1 different places; draws [s, length − 1]."""
    cuts = draw.argsort(1)[:, : n - 1].sort(1).values + 1
    edge = torch.zeros(len(draw), 1, dtype=torch.long, device=draw.device)
    bounds = torch.cat([edge, cuts, edge + length], 1)
    lengths = bounds.diff(dim=1)
    order = torch.arange(n, device=draw.device).expand(len(draw), -1)
    return strips(lengths, order, length)


def _spread(values: Tensor, block: Tensor) -> Tensor:
    """Return the values [s, n²] of the blocks that the pixels [s, h, w] belong to."""
    return values.gather(1, block.flatten(1)).view(block.shape)


def _moved(x: Tensor, rows: Strips, columns: Strips, kind: Tensor, amount: Tensor) -> Tensor:
    """Shift, flip or turn the blocks whose `kind` [s, h, w] says so."""
    down = _along(Strips(*(part[:, :, None] for part in rows)), amount, kind, _DOWN, _FLIP)
    right = _along(Strips(*(part[:, None, :] for part in columns)), amount, kind, _RIGHT, _MIRROR)
    return gathered(x, down, right)


def _along(axis: Strips, amount: Tensor, kind: Tensor, shift: int, flip: int) -> Tensor:
    size = axis.high - axis.low + 1
    rolled = axis.low + (axis.source - axis.low - (amount * size).long()) % size
    place = torch.where(kind == shift, rolled, axis.source)
    mirrored = axis.low + axis.high - axis.source
    return torch.where((kind == flip) | (kind == _HALF_TURN), mirrored, place)


def _mixed(x: Tensor, rows: Strips, columns: Strips, matrix: Callable[[int], Tensor]) -> Tensor:
    """Multiply every block by matrices of its sides, as if it were a picture of its own."""
    down, right = (_blockwise(axis, matrix).to(x) for axis in (rows, columns))
    return down[:, None] @ x @ right.transpose(1, 2)[:, None]


def _blockwise(axis: Strips, matrix: Callable[[int], Tensor]) -> Tensor:
    """Lay the matrices of the strips along the diagonal [s, length, length]."""
    length = axis.source.shape[1]
    table = _table(matrix, length).to(axis.low.device)
    place = torch.arange(length, device=axis.low.device)
    low, high = axis.low[:, :, None], axis.high[:, :, None]
    inside = (place >= low) & (place <= high)
    column = (place - low).clamp(0, length - 1)
    found = table[high - low + 1, axis.source[:, :, None] - low, column]
    return found * inside


@functools.cache
def _table(matrix: Callable[[int], Tensor], length: int) -> Tensor:
    """Return the matrices of 1 to `length`, each in the corner of its own [length, length]."""
    table = torch.zeros(length + 1, length, length)
    for size in range(1, length + 1):
        table[size, :size, :size] = matrix(size)
    return table


def shrunk(size: int) -> Tensor:
    """Return what shrinks an axis to int(0.8 size) + 1 and enlarges it again, bilinearly."""
    identity = torch.eye(size)[None]
    small = F.interpolate(identity, int(0.8 * size) + 1, mode="linear")
    return F.interpolate(small, size, mode="linear")[0].T


def low_frequencies(size: int) -> Tensor:
    """Return what leaves out the highest int(0.4 size) frequencies of the DCT of an axis."""
    place = torch.arange(size, dtype=torch.float64)
    cosines = torch.cos(math.pi / size * (place + 0.5) * place[:, None])
    cosines /= cosines.norm(dim=1, keepdim=True)
    kept = cosines[: size - int(0.4 * size)]
    return (kept.T @ kept).float()
