"""Projection onto a hyperplane inside a box, in linf, l2 and l1; batched, without a host sync.

The step of FAB (Croce & Hein 2020), whose code sorts the breakpoints and bisects.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from robustkit.core.threat import Threat

# Every round divides (what is missing) × (what can still be gained) by four or more, so that one of
# them ends below 2⁻²⁰ of where it began: the resolution of a float32 sum.
_ROUNDS = 20
_TINY = 1e-30


def displace(
    points: Float[Tensor, "s p d"],
    normal: Float[Tensor, "s d"],
    offset: Float[Tensor, "s p"],
    threat: Threat,
) -> Float[Tensor, "s p d"]:
    """Return the shortest displacements onto the plane {z : ⟨normal, z − point⟩ + offset = 0}.

    Shortest in the norm of `threat`, among those that stay in its box. Where the plane does not
    meet the box, the displacement goes to the corner of the box nearest to the plane.

    Args:
        points: p points per slot, in the box; they share the direction of the plane.
        normal: of the plane; zero displaces nothing.
        offset: the signed value of the affine function at each point.
        threat: its norm and box.
    """
    scale = normal.abs().amax(1, keepdim=True).clamp_min(torch.finfo(normal.dtype).tiny)
    normal = (normal / scale)[:, None]
    need, weight = offset.abs() / scale, normal.abs()
    direction = normal.sign() * torch.where(offset < 0, 1.0, -1.0)[..., None]
    # Room to the box in the direction of each coordinate, by arithmetic: torch.where took twenty
    # times as long on a CPU.
    middle, half = (threat.upper + threat.lower) / 2, (threat.upper - threat.lower) / 2
    room = (middle - points).mul_(direction).add_(half).clamp_min_(0)
    if threat.norm == "l1":
        return _greedy(room, weight, need).mul_(direction)
    if threat.norm == "linf":
        return _level(room, weight, need).mul_(direction)
    steep = weight.clamp_min(1e-12)
    # In l2 the displacement is min(t · weight, room): with d = weight · u, it is the linf problem
    # for u with room / weight and weight².
    return _level(room / steep, weight * steep, need).mul_(direction).mul_(weight)


def _level(cap: Tensor, weight: Tensor, need: Tensor) -> Tensor:
    """Return min(t, cap) [s, p, d], t the least with sum(weight · min(t, cap)) = need [s, p].

    The sum is concave and piecewise linear in t: Newton's method from 0 approaches the root from
    below and is exact on the last piece.
    """
    column = weight.mT
    missing, least = need[..., None], torch.full_like(need[..., None], _TINY)
    t, low = torch.zeros_like(missing), torch.empty_like(cap)
    looks, most = cap.device.type == "cpu", cap.amax(2, keepdim=True)
    for _ in range(_ROUNDS):
        torch.gt(cap, t, out=low)
        slope = torch.baddbmm(least, low, column)
        torch.minimum(cap, t, out=low)
        further = t + torch.baddbmm(missing, low, column, alpha=-1).relu_() / slope
        # A round that moves nothing is followed by others like it, and nothing moves where all of
        # the room is used up: five to seven rounds as a rule. On a GPU, looking costs more.
        if looks and bool(((further == t) | (t >= most)).all()):
            break
        t = further
    return torch.minimum(cap, t, out=low)


def _greedy(room: Tensor, weight: Tensor, need: Tensor) -> Tensor:
    """Return what 0 ≤ d ≤ room [s, p, d] meets sum(weight · d) = need [s, p] with the least sum(d).

    A fractional knapsack: the coordinates of largest weight are used up first.
    """
    heavy, order = weight.sort(dim=2, descending=True)
    order = order.expand_as(room)
    gain = room.gather(2, order).mul_(heavy)
    before = gain.cumsum(2).sub_(gain)
    used = torch.minimum((need[..., None] - before).clamp_min_(0), gain).div_(
        heavy.clamp_min(_TINY)
    )
    return torch.zeros_like(room).scatter_(2, order, used)
