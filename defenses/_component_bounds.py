"""Certificates of a network of components: radii in l2 by formula, and bounds for every norm.

Saralajew et al. 2025 (arXiv:2412.15499), theorem 1, and two tighter forms of ours. Of a concept i
of the label and a concept j of another class, p_i − p_j = P − N + b with P, N ≥ 0 and constant b:
"published": P_ij = Σ_k d_k (R⁺_ki + R⁻_kj), N_ij = P_ji, b = Σ_k R⁻_ki − R⁻_kj;
"net": alpha_k = (R⁺ − R⁻)_ki − (R⁺ − R⁻)_kj; P sums the positive alpha_k d_k, N the others.
Where x moves by e, every d_k changes by a factor in [1/t, t], so that p_i > p_j while P/t − N t + b
> 0: the radius is where that ends. "bisect" bounds each d_k by itself, with δ_k ± e; in linf with
the exact extremes of δ_k over the ball in the box, not those of the l2 ball around it.
A label is proved where each j is beaten by some i.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustkit.certify.declared import Proof
from robustkit.certify.ibp import input_box
from robustkit.certify.smoothing import reach
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels, Mask, Scalars

if TYPE_CHECKING:
    from ._components import Components, Reasoning

Kind: TypeAlias = Literal["published", "net", "bisect"]
Pairs: TypeAlias = Float[Tensor, "b i i"]
Distances: TypeAlias = Float[Tensor, "b n"]
KINDS: tuple[Kind, ...] = ("bisect", "net", "published")

_HALVINGS = 60
_ULP = 2.0**-22  # two roundings of a logit to float32, relative
_LOST = 1e-9  # of a probability, far more than float64 sums of its terms lose
TINY = 1e-300  # below every sum of detections, the greatest divided out


class Extremes(NamedTuple):
    """The least and the greatest distance to each component, rounded outward."""

    near: Distances
    far: Distances


def certificates(net: Components) -> dict[str, Proof]:
    """Return "components", then the two that hold where a radius exceeds eps and it holds too."""
    found: dict[str, Proof] = {"components": partial(_holds, net)}
    return found | {f"components-{kind}": partial(_within, net, kind) for kind in KINDS[1:]}


def radius(net: Components, x: Images, y: Labels, kind: Kind = "bisect") -> Scalars:
    """Return the l2 radius in which the label is proved, float64 [b], differentiable but "bisect".

    Negative where x is misclassified ("bisect": 0). Without regard to rounding: certificates are
    the functions of `certificates`.
    """
    if kind == "bisect":
        return _bisected(net, x, y)
    delta, weights = net.distances(x), net.columns()
    b = weights.offset[:, None] - weights.offset
    log_p = _logs(net, delta, weights, kind)
    log_n = log_p.mT
    # N t² − b t − P = 0 in logarithms, as p may underflow: t = (b + root) / 2 N = 2 P / (root − b),
    # of which that is taken in which nothing cancels.
    log_b = b.abs().clamp_min(TINY).log().masked_fill(b == 0, -1e6)
    log_root = torch.logaddexp(2 * log_b, math.log(4) + log_n + log_p) / 2
    log_sum = torch.logaddexp(log_b, log_root) - math.log(2)
    log_t = torch.where(b > 0, log_sum - log_n, log_p - log_sum)
    return _over_pairs(_length(net, delta, log_t, kind), y, net.classes)


def logmatmul(a: Float[Tensor, "b n"], weights: Float[Tensor, "n m"]) -> Float[Tensor, "b m"]:
    """Return log(exp(a) @ weights) for weights ≥ 0; what decides does not underflow."""
    top = a.amax(1, keepdim=True).detach()
    return top + ((a - top).exp() @ weights).clamp_min(TINY).log()


def _logs(net: Components, delta: Distances, weights: Reasoning, kind: Kind) -> Pairs:
    """Return log P for every pair of concepts."""
    a, present, absent = net.exponents(delta), weights.present, weights.absent
    if kind == "net":
        alpha = present if absent is None else present - absent
        gain = (alpha[:, :, None] - alpha[:, None]).clamp_min(0)
        return logmatmul(a, gain.flatten(1)).view(-1, *gain.shape[1:])
    own = logmatmul(a, present)[:, :, None].expand(-1, -1, present.shape[1])
    return own if absent is None else torch.logaddexp(own, logmatmul(a, absent)[:, None])


def _length(net: Components, delta: Distances, log_t: Pairs, kind: Kind) -> Pairs:
    """Turn the logarithm of a factor that every d_k may change by into a radius."""
    room = net.sigma.min() * log_t
    if not net.squared:
        return room
    # |(δ ± e)² − δ²| ≤ 2 D e + e²; published: 2 D e + 3 e². Odd below 0, where it is but a loss.
    c = 3 if kind == "published" else 1
    largest = delta.amax(1)[:, None, None] / c
    found = room.abs() / c
    return room.sign() * found / (largest + (largest.square() + found).sqrt()).clamp_min(TINY)


def _over_pairs(values: Pairs, y: Labels, classes: int) -> Scalars:
    """Least over wrong concepts of the greatest over right ones."""
    own = _owner(values.shape[1], classes, y)
    best = values.masked_fill(~own[:, :, None], -torch.inf).amax(1)
    return best.masked_fill(own, torch.inf).amin(1)


def _owner(concepts: int, classes: int, y: Labels) -> Bool[Tensor, "b i"]:
    """Whether a concept is of the label's class."""
    classes_of = torch.arange(concepts, device=y.device) // (concepts // classes)
    return classes_of == y[:, None]


def _bisected(net: Components, x: Images, y: Labels) -> Scalars:
    delta = _exact(net, x)
    low, high = torch.zeros_like(delta[:, 0]), 2 * delta.amax(1) + x[0].numel() ** 0.5
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        holds = _proved(net, _around(net, delta, middle), y)
        low, high = torch.where(holds, middle, low), torch.where(holds, high, middle)
    return low


def _holds(net: Components, x: Images, y: Labels, threat: Threat) -> Mask:
    """Certificate "bisect" at the eps of the threat model, in any norm."""
    return _proved(net, _extremes(net, x, threat), y)


def _within(net: Components, kind: Kind, x: Images, y: Labels, threat: Threat) -> Mask:
    """Certificate by radius. It implies "bisect", which minds the rounding and so is asked too."""
    needed = reach(threat, x[0].numel())
    return (radius(net, x, y, kind) > needed) & _holds(net, x, y, threat)


def _extremes(net: Components, x: Images, threat: Threat) -> Extremes:
    """Bound the distances over the threat model."""
    box = input_box(x.double(), threat)
    if threat.norm != "linf":
        length = box.low.new_full((len(x),), reach(threat, x[0].numel()))
        return _around(net, _exact(net, x), length)
    low, high = box.low.flatten(1), box.high.flatten(1)
    near, far = [], []
    for w in net.w.double():  # one after the other: all at once would be [b, n, f]
        near.append((w.clamp(low, high) - w).norm(dim=1))
        far.append(torch.maximum(w - low, high - w).norm(dim=1))
    return _widened(net, torch.stack(near, 1), torch.stack(far, 1))


def _exact(net: Components, x: Images) -> Distances:
    """Sum the squares of differences: good to a relative 1e-13 where `Components.distances` is not.

    One component after the other: [b, n, f] would be large.
    """
    z = x.flatten(1).double()
    return torch.stack([(z - w).norm(dim=1) for w in net.w.double()], 1)


def _around(net: Components, delta: Distances, length: Scalars) -> Extremes:
    """Bound the distances by the triangle inequality."""
    return _widened(net, delta - length[:, None], delta + length[:, None])


def _widened(net: Components, near: Distances, far: Distances) -> Extremes:
    """Round outward, by what `Components.distances` and the sums here may lose.

    ‖z‖² + ‖w‖² − 2 z·w in float64 is off by at most (f + 4) 2⁻⁵³ (‖z‖ + ‖w‖)², and ‖z‖ + ‖w‖ is at
    most δ + 2 ‖w‖.
    """
    w = net.w.double()
    size = far + 2 * w.norm(dim=1)
    lost = (w.shape[1] + 4) * 2.0**-50 * size.square()
    near = (near.clamp_min(0).square() - lost).clamp_min(0).sqrt()
    return Extremes(near, (far.square() + lost).sqrt())


def _proved(net: Components, distances: Extremes, y: Labels) -> Mask:
    """Return where p of the label exceeds every other, also after rounding to float32 [b].

    The sums lose a tiny share of their terms. Terms of i that cancel in alpha or b are no greater
    than what stands in p_j or in P, so that a share of those covers them.
    """
    present, absent = (weights := net.columns())
    most, least = net.exponents(distances.near), net.exponents(distances.far)  # of log d
    top = most.amax(1, keepdim=True)  # divided out: what decides does not underflow
    up, down, back = (most - top).exp(), (least - top).exp(), (-top).clamp_max(600).exp()
    alpha = present if absent is None else present - absent
    alpha = alpha[:, :, None] - alpha[:, None]
    b = (weights.offset[:, None] - weights.offset) * back[:, :, None]  # not shrunk as d is
    plus = (down @ alpha.clamp_min(0).flatten(1)).view_as(b) + b.clamp_min(0)
    minus = (up @ (-alpha).clamp_min(0).flatten(1)).view_as(b) - b.clamp_max(0)
    other = (up @ present + weights.offset * back)[:, None]  # at least p_j
    sure = top + (down @ present).clamp_min(TINY).log()  # at most log p_i
    if absent is not None:
        gone = (-torch.expm1(most)) @ absent
        sure = torch.logaddexp(sure, gone.clamp_min(TINY).log())
    lost = _LOST * (1 + 1e-4 * least.abs().amax(1)[:, None, None])
    rounding = lost + _ULP * (1 + sure.abs())[:, :, None]
    better = plus * (1 - lost) > minus * (1 + lost) + rounding * other + TINY
    own = _owner(alpha.shape[1], net.classes, y)
    beaten = (better & own[:, :, None]).any(1)
    return (beaten | own).all(1)
