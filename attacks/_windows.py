"""The windows of the Square attack: their size at each query, and where they lie."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustkit.core.types import Integers

# Proposals after which the share p of the image that a window covers is halved, as in the authors'
# code for a budget of 10,000; AutoAttack does not rescale it to its 5,000 queries.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def schedule(share: float, extents: tuple[int, ...], least: int = 1) -> list[tuple[int, ...]]:
    """List the sides of the window at each level; level i covers `share` / 2^i of the input.

    Windows are squares, in volumes cubes as far as they fit, at least `least` wide, and odd if
    `least` is 3, as the bumps of l2 and l1 need a center. In an input of one row they are segments.
    """
    areas = [share / 2**level * math.prod(extents) for level in range(len(_HALVINGS) + 1)]
    odd = int(least == 3)
    if extents[0] == 1 and len(extents) == 2:
        return [(1, min(max(round(area), least) | odd, extents[1])) for area in areas]
    if len(extents) > 2:
        sides = [max(round(area ** (1 / len(extents))), least) for area in areas]
        return [tuple(min(side | odd, extent) for extent in extents) for side in sides]
    sides = [max(round(math.sqrt(area)), least) for area in areas]
    return [(min(side | odd, *extents),) * 2 for side in sides]


@lru_cache(maxsize=16)
def sizes(
    share: float, extents: tuple[int, ...], least: int, device: torch.device
) -> Int[Tensor, "levels axes"]:
    """Return `schedule` as a tensor."""
    return torch.tensor(schedule(share, extents, least), device=device)


@lru_cache(maxsize=64)
def pixels(tall: int, wide: int, width: int, device: torch.device) -> Int[Tensor, " p"]:
    """Return where the pixels of a window lie, from its corner, in a flat image of this width."""
    rows = torch.arange(tall, device=device)[:, None] * width
    return (rows + torch.arange(wide, device=device)).flatten()


@lru_cache(maxsize=4)
def _halvings(device: torch.device) -> Tensor:
    return torch.tensor(_HALVINGS, device=device)


def level(proposal: Integers) -> Integers:
    """Say at which level of `schedule` a proposal (counted from 0) lies."""
    return (proposal[:, None] > _halvings(proposal.device)).sum(1)


def corner(draw: Float[Tensor, "*s"], size: Int[Tensor, "*s"], extent: int) -> Int[Tensor, "*s"]:
    """Place a window of `size` along an axis of `extent`, by a number in [0, 1)."""
    return (draw * (extent - size + 1)).long()  # the last row and column included


def span(
    first: Int[Tensor, "*s"], size: Int[Tensor, "*s"], extent: int
) -> Float[Tensor, "*s extent"]:
    """Return 1 on the `size` places of an axis from `first` on, and 0 elsewhere."""
    offset = torch.arange(extent, device=first.device) - first[..., None]
    return ((offset >= 0) & (offset < size[..., None])).float()


def signs(draw: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Turn numbers in [0, 1) into −1 or 1."""
    return (draw - 0.5).sign_().add_(0.5).sign_()  # 0 becomes 1; torch.where would cost more
