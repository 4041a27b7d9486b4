"""Square in l2 and l1: a proposal moves the norm of one window into a bump in another.

Inputs are seen as images; those of one row have windows and bumps of one row.

Andriushchenko et al. 2020, algorithm 3: a displacement that uses up its norm can change only by
redistributing it.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm

from robustkit.core.threat import Threat
from robustkit.core.types import Images, Integers

from ._windows import corner, schedule, signs, sizes, span

_TINY = 1e-12


def grid(
    x: Float[Tensor, "s c h w"], draw: Float[Tensor, "s n"], threat: Threat
) -> Float[Tensor, "s c h w"]:
    """Tile `x` with bumps on a grid of 5 × 5, each with an orientation, and a sign per channel.

    `draw` holds `grid_draws` numbers in [0, 1).
    """
    slots, channels, height, width = x.shape
    (tall, wide), (top, left), (down, across) = _tiles(height, width)
    upright = bump(tall, wide, _power(threat)).to(x.device)
    draw = draw.view(slots, channels + 1, down, across, 1, 1)
    tiles = torch.where(draw[:, :1] < 0.5, upright, turned(upright)) * signs(draw[:, 1:])
    delta = torch.zeros_like(x)
    delta[:, :, top : top + down * tall, left : left + across * wide] = tiles.permute(
        0, 1, 2, 4, 3, 5
    ).reshape(slots, channels, down * tall, across * wide)
    return _fit(x, delta, threat)


def grid_draws(channels: int, height: int, width: int) -> int:
    """How many random numbers `grid` needs per slot."""
    _, _, (down, across) = _tiles(height, width)
    return (channels + 1) * down * across


def _tiles(height: int, width: int) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Height and width of a tile, the margin above and left, and how many fit down and across.

    5 × 5 tiles, as in the authors' code, in one row 5; of smaller inputs every pixel is one.
    """
    if height == 1:
        wide = max(width // 5, 1)
        left = max((width - 5 * wide) // 2, 0)
        return (1, wide), (0, left), (1, (width - left) // wide)
    side = max(min(height // 5, width), 1)
    margin = max((height - 5 * side) // 2, 0)
    return (side, side), (margin, margin), ((height - margin) // side, (width - margin) // side)


def move(
    x: Float[Tensor, "s c h w"],
    best: Float[Tensor, "s c h w"],
    level: Integers,
    draw: Float[Tensor, "s n"],
    share: float,
    threat: Threat,
) -> Float[Tensor, "s c h w"]:
    """Clear two windows of the displacement and put a bump, and the old content, into the first.

    The first gets the norm of both and what the ball still has room for, an equal part per channel.
    `draw` holds 5 + c numbers in [0, 1) per slot.
    """
    height, width = x.shape[2:]
    tall, wide = sizes(share, (height, width), 3, x.device)[level].split(1, 1)
    top, left = corner(draw[:, 0:2], tall, height), corner(draw[:, 2:4], wide, width)
    rows, columns = span(top, tall, height), span(left, wide, width)
    target, cleared = (rows[:, :, None, :, None] * columns[:, :, None, None]).unbind(1)

    delta = best - x
    held, budget = _norms(delta, rows, columns, threat)
    orientation = (draw[:, 4] >= 0.5).long()
    hill = _look_up(share, level, orientation, top[:, 0], left[:, 0], x.shape, threat) * target
    fresh = torch.addcmul(hill * signs(draw[:, 5:, None, None]), delta, target / (held + _TINY))
    gain = budget / (vector_norm(fresh, _power(threat), (2, 3), keepdim=True) + _TINY)
    # Outside both windows the displacement stays as it is.
    kept = delta.mul_((1 - target) * (1 - cleared))
    return _fit(x, kept.addcmul_(fresh, gain), threat)


def _norms(delta: Tensor, rows: Tensor, columns: Tensor, threat: Threat) -> tuple[Tensor, Tensor]:
    """Return, per channel, the norm in the first window and the norm that the bump may have."""
    square = threat.norm == "l2"
    energy = delta.square() if square else delta.abs()
    # Sums over both windows, their intersection and the image in one product: windows are outer
    # products of a row and a column indicator, and indexing each slot's window would be a loop.
    rows = torch.cat([rows, rows[:, :1] * rows[:, 1:], torch.ones_like(rows[:, :1])], 1)
    columns = torch.cat(
        [columns, columns[:, :1] * columns[:, 1:], torch.ones_like(columns[:, :1])], 1
    )
    sums = ((energy @ columns.mT[:, None]) * rows.mT[:, None]).sum(2)
    first, second, both, whole = sums[..., None, None].unbind(2)
    union = (first + second - both).clamp_min(0)  # rounding may leave less than nothing
    limit = threat.eps**2 if square else threat.eps
    spare = (limit - whole.sum(1, keepdim=True)).clamp_min(0)
    channels = delta.shape[1]
    if square:
        return first.sqrt(), (spare / channels + union).sqrt()
    return first, spare + union * channels


def _look_up(
    share: float,
    level: Tensor,
    orientation: Tensor,
    top: Tensor,
    left: Tensor,
    shape: torch.Size,
    threat: Threat,
) -> Tensor:
    """Return each slot's bump at its place [s, 1, h, w]; outside the window it is arbitrary."""
    # One gather from a table of all levels, as the slots of a batch are at different levels.
    height, width = shape[2:]
    table = _table(share, height, width, _power(threat), top.device)
    tall, wide = table.shape[-2:]
    down = (torch.arange(height, device=top.device) - top[:, None]).clamp_(0, tall - 1)
    across = (torch.arange(width, device=top.device) - left[:, None]).clamp_(0, wide - 1)
    start = (2 * level + orientation)[:, None] * tall + down
    place = (start * wide)[..., None] + across[:, None]
    return table.view(-1).index_select(0, place.view(-1)).view(-1, 1, height, width)


def _fit(x: Images, delta: Images, threat: Threat) -> Images:
    """L2: scale to the sphere and clip to the box. L1: project onto ball and box."""
    if threat.norm == "l1":
        return threat.project(x + delta, x)
    norm = vector_norm(delta, 2, (1, 2, 3), keepdim=True)
    return torch.addcmul(x, delta, threat.eps / (norm + _TINY)).clamp_(threat.lower, threat.upper)


def _power(threat: Threat) -> int:
    return 2 if threat.norm == "l2" else 1


def bump(height: int, width: int, power: int) -> Float[Tensor, "h w"]:
    """Return the pattern that is drawn into windows: a hill above a valley, of `power`-norm 1.

    Andriushchenko et al. 2020, l2-Square; in l1 as in the code of AutoAttack. In a window of one
    row, which they have not, the valley is to the right of the hill.
    """
    if height == 1:
        first = width // 2
        pattern = torch.cat([_hill(1, first, power), -_hill(1, width - first, power)], 1)
    else:
        first = height // 2
        pattern = torch.cat([_hill(first, width, power), -_hill(height - first, width, power)])
    unit: Tensor = pattern / vector_norm(pattern, power)
    return unit


def turned(pattern: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
    """Return the other orientation of a bump: transposed, in one row reversed."""
    return pattern.flip(1) if len(pattern) == 1 else pattern.T


def _hill(height: int, width: int, power: int) -> Tensor:
    """Pile squares: the k-th reaches k − 1 from the center and is 1 / k² high (1 / k⁴ in l1)."""
    rings = torch.arange(1, max(height, width) // 2 + 2)
    # Heights fall as 1 / k² (1 / k⁴): most of the norm lies in a few central pixels.
    heights = rings.float() ** (-2 if power == 2 else -4)
    piled = heights.flip(0).cumsum(0).flip(0)
    rows = (torch.arange(height) - height // 2).abs()
    columns = (torch.arange(width) - width // 2).abs()
    pile = piled[torch.maximum(rows[:, None], columns[None])]
    hill: Tensor = pile / vector_norm(pile, power).clamp_min(_TINY)
    return hill


@lru_cache(maxsize=4)
def _table(
    share: float, height: int, width: int, power: int, device: torch.device
) -> Float[Tensor, "levels 2 h w"]:
    """Return the bumps of all levels, in both orientations, in the corners of equal windows."""
    sides = schedule(share, (height, width), least=3)
    table = torch.zeros(len(sides), 2, *map(max, zip(*sides, strict=True)))
    for row, (tall, wide) in zip(table, sides, strict=True):
        row[0, :tall, :wide] = bump(tall, wide, power)
        row[1, :tall, :wide] = turned(bump(tall, wide, power))
    return table.to(device)
