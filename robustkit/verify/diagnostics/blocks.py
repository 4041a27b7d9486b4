"""Parts of an input that may be exchanged between points: coordinates, regions, colours, bands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustkit.core.types import Images
from robustkit.errors import UsageError

_GRID, _TABLE = 4, 64  # cells a side; most features of a table that are listed one by one
_CUT = 0.25  # of the sampling rate: half of what an image can hold is low
_SMALL = 1e-6


class Block(NamedTuple):
    """A part of an input: `swap(x, donor)` returns x [b, *f] with the part of `donor` [b, *f]."""

    name: str
    swap: Callable[[Images, Images], Images]

    @property
    def others(self) -> Block:
        """All but the part: `swap` with the roles exchanged."""
        return Block(f"all but {self.name}", lambda x, donor: self.swap(donor, x))


def masked(name: str, mask: NDArray[np.bool_] | Tensor, shape: Sequence[int]) -> Block:
    """Return the block of the coordinates where `mask` [*f] is true; axes of size 1 broadcast.

    Raises:
        UsageError: for a mask of another type or shape.
    """
    found = torch.as_tensor(mask)
    try:
        fits = found.dtype == torch.bool and torch.broadcast_shapes(found.shape, tuple(shape))
    except RuntimeError:
        fits = False
    if not fits or tuple(fits) != tuple(shape):
        raise UsageError(
            f"block {name}: expected a mask of bool {list(shape)}, got {found.dtype} "
            f"{list(found.shape)}."
        )

    def swap(x: Images, donor: Images) -> Images:
        return torch.where(found.to(x.device), donor, x)

    return Block(name, swap)


def named_block(text: str, shape: Sequence[int]) -> Block:
    """Read `name=0-3,7`: coordinates of the flattened input, counted from 0.

    Raises:
        UsageError: for another form, or a coordinate that the input does not have.
    """
    name, equals, listed = text.partition("=")
    mask, size = torch.zeros(prod(shape), dtype=torch.bool), prod(shape)
    try:
        for piece in listed.split(","):
            first, dash, last = piece.partition("-")
            low, high = int(first), int(last if dash else first)
            if not 0 <= low <= high < size:
                raise ValueError
            mask[low : high + 1] = True
    except ValueError:
        equals = ""
    if not equals or not name.strip():
        raise UsageError(
            f"expected a block such as 'edge=0-27,756-783', coordinates from 0 to {size - 1}, got "
            f"{text!r}."
        )
    return masked(name.strip(), mask.view(*shape), shape)


def given_masks(masks: Mapping[str, NDArray[np.bool_]], shape: Sequence[int]) -> list[Block]:
    """Return a block for each mask, by name."""
    return [masked(name, mask, shape) for name, mask in masks.items()]


def ready_blocks(shape: Sequence[int]) -> list[Block]:
    """List the blocks that need no labels.

    Images: halves, 4 x 4 cells, every channel where there are several, colour statistics, low and
    high frequencies. Vectors, and images one row high: every feature.

    Raises:
        UsageError: for signals and volumes, which have none.
    """
    if len(shape) == 1 or (len(shape) == 3 and 1 in shape[1:]):
        return _features(shape)
    if len(shape) != 3:
        raise UsageError(
            f"inputs {list(shape)} have no ready blocks, which images and vectors have: name some, "
            "such as --block first=0-9."
        )
    channels = shape[0]
    blocks = _halves(shape) + _cells(shape)
    if channels > 1:
        blocks += [_box(f"channel {c}", shape, channel=slice(c, c + 1)) for c in range(channels)]
    blocks += [Block("colour statistics" if channels > 1 else "mean and contrast", _statistics)]
    low = Block("low frequencies", _low_frequencies)
    return [*blocks, low, low.others._replace(name="high frequencies")]


def _box(
    name: str,
    shape: Sequence[int],
    rows: slice = slice(None),
    columns: slice = slice(None),
    channel: slice = slice(None),
) -> Block:
    mask = torch.zeros(*shape, dtype=torch.bool)
    mask[channel, rows, columns] = True
    return masked(name, mask, shape)


def _halves(shape: Sequence[int]) -> list[Block]:
    h, w = shape[1] // 2, shape[2] // 2
    return [
        _box("top half", shape, rows=slice(0, h)),
        _box("bottom half", shape, rows=slice(h, None)),
        _box("left half", shape, columns=slice(0, w)),
        _box("right half", shape, columns=slice(w, None)),
    ]


def _cells(shape: Sequence[int]) -> list[Block]:
    rows, columns = (np.linspace(0, side, _GRID + 1).astype(int).tolist() for side in shape[1:])
    return [
        _box(f"cell {r + 1},{c + 1}", shape, slice(*rows[r : r + 2]), slice(*columns[c : c + 2]))
        for r in range(_GRID)
        for c in range(_GRID)
    ]


def _features(shape: Sequence[int]) -> list[Block]:
    size = prod(shape)
    if size > _TABLE:
        raise UsageError(
            f"a table of {size} features has no ready blocks (at most {_TABLE} are listed): name "
            "some, such as --block first=0-9."
        )
    eye = torch.eye(size, dtype=torch.bool).view(size, *shape)
    return [masked(f"feature {number}", eye[number], shape) for number in range(size)]


def _statistics(x: Images, donor: Images) -> Images:
    """Give each channel the mean and the deviation that it has in the donor, and clip."""
    mean, theirs = (part.mean((2, 3), keepdim=True) for part in (x, donor))
    spread, wanted = (part.std((2, 3), keepdim=True) for part in (x, donor))
    return ((x - mean) / spread.clamp_min(_SMALL) * wanted + theirs).clamp(0, 1)


def _low_frequencies(x: Images, donor: Images) -> Images:
    """Take all within a quarter of the sampling rate from the donor (a radial cut), and clip."""
    rows, columns = (torch.fft.fftfreq(side, device=x.device) for side in x.shape[2:])
    low = rows[:, None].square() + columns.square() <= _CUT**2
    mixed = torch.where(low, torch.fft.fft2(donor.double()), torch.fft.fft2(x.double()))
    back: Tensor = torch.fft.ifft2(mixed).real
    return back.clamp(0, 1).to(x.dtype)
