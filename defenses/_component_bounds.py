"""Certificates of a network of components: radii in l2 by formula, and bounds for every norm.

Saralajew et al. 2025 (arXiv:2412.15499), theorem 1, and two tighter forms of ours. Of a concept i
of the label and a concept j of another class, p_i − p_j = P − N + b with P, N ≥ 0 and constant b:
"published": P_ij = Σ_k d_k (R⁺_ki + R⁻_kj), N_ij = P_ji, b = Σ_k R⁻_ki − R⁻_kj;
"net": alpha_k = (R⁺ − R⁻)_ki − (R⁺ − R⁻)_kj; P sums the positive alpha_k d_k, N the others.
Where x moves by e, every d_k changes by a factor in [1/t, t], and p_i > p_j holds while P/t − N t +
b > 0: the radius is where that ends. "bisect" and "curved" bound p_i − p_j itself over the ball of
any norm (`_component_proofs`); in linf with the exact extremes of δ_k over the ball in the box.
A label is proved where each j is beaten by some i.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustkit.certify.declared import Proof
from robustkit.certify.smoothing import reach
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels, Mask, Scalars

from ._component_proofs import (
    TINY,
    Ball,
    Distances,
    around,
    ball_of,
    bisect,
    curved,
    exact,
    scaled,
)

if TYPE_CHECKING:
    from ._components import Components, Reasoning

Kind: TypeAlias = Literal["published", "net", "bisect", "curved"]
KINDS: tuple[Kind, ...] = ("curved", "bisect", "net", "published")

_HALVINGS = 60


def certificates(net: Components) -> dict[str, Proof]:
    """Return "components", which is "bisect" or "curved", whichever holds; then the looser ones."""
    return {
        "components": partial(_holds, net),
        "components-bisect": partial(_holds, net, bend=False),
        "components-net": partial(_within, net, "net"),
        "components-published": partial(_within, net, "published"),
    }


def radius(net: Components, x: Images, y: Labels, kind: Kind = "curved") -> Scalars:
    """Return the l2 radius in which the label is proved, float64 [b].

    "published" and "net" are differentiable, negative where x is misclassified, and do not mind the
    rounding; "bisect" and "curved" (or "bisect", where that is longer) do, and are 0 there.
    """
    if kind in ("bisect", "curved"):
        return _largest(net, x, y, bend=kind == "curved")
    delta, weights = net.distances(x), net.columns()
    log_p, log_n = _logs(net, delta, weights, y, kind)
    b = weights.offset[_own(net, y)][:, :, None] - weights.offset
    # N t² − b t − P = 0 in logarithms, as p may underflow: t = (b + root) / 2 N = 2 P / (root − b),
    # of which that is taken in which nothing cancels.
    log_b = b.abs().clamp_min(TINY).log().masked_fill(b == 0, -1e6)
    log_root = torch.logaddexp(2 * log_b, math.log(4) + log_n + log_p) / 2
    log_sum = torch.logaddexp(log_b, log_root) - math.log(2)
    log_t = torch.where(b > 0, log_sum - log_n, log_p - log_sum)
    best = _length(net, delta, log_t, kind).amax(1)
    own = torch.zeros_like(best, dtype=torch.bool).scatter(1, _own(net, y), value=True)
    return best.masked_fill(own, torch.inf).amin(1)


def logmatmul(a: Float[Tensor, "b n"], weights: Float[Tensor, "n m"]) -> Float[Tensor, "b m"]:
    """Return log(exp(a) @ weights) for weights ≥ 0; what decides does not underflow."""
    top = a.amax(1, keepdim=True).detach()
    return top + ((a - top).exp() @ weights).clamp_min(TINY).log()


def _logs(
    net: Components, delta: Distances, weights: Reasoning, y: Labels, kind: Kind
) -> tuple[Tensor, Tensor]:
    """Return log P and log N of the label's concepts beside all [b, c, i]."""
    a, (present, absent), own = net.exponents(delta), weights, _own(net, y)
    if kind == "net":
        alpha = present if absent is None else present - absent
        gain = (alpha[:, :, None] - alpha[:, None]).clamp_min(0)
        pairs = logmatmul(a, gain.flatten(1)).view(-1, *gain.shape[1:])
        rows = own[:, :, None].expand(-1, -1, pairs.shape[2])
        return pairs.gather(1, rows), pairs.mT.gather(1, rows)
    here = logmatmul(a, present)
    log_p, log_n = here.gather(1, own)[:, :, None], here[:, None]
    if absent is None:
        return log_p, log_n
    gone = logmatmul(a, absent)
    log_p = torch.logaddexp(log_p, gone[:, None])
    return log_p, torch.logaddexp(log_n, gone.gather(1, own)[:, :, None])


def _length(net: Components, delta: Distances, log_t: Tensor, kind: Kind) -> Tensor:
    """Turn the logarithm of a factor that every d_k may change by into a radius."""
    room = net.sigma.min() * log_t
    if not net.squared:
        return room
    # |(δ ± e)² − δ²| ≤ 2 D e + e²; published: 2 D e + 3 e². Odd below 0, where it is but a loss.
    c = 3 if kind == "published" else 1
    largest = delta.amax(1)[:, None, None] / c
    found = room.abs() / c
    return room.sign() * found / (largest + (largest.square() + found).sqrt()).clamp_min(TINY)


def _own(net: Components, y: Labels) -> Int[Tensor, "b c"]:
    """Return the concepts of the labels [b, c], which stand side by side."""
    each = net.reasoning.shape[1] // net.classes
    return y[:, None] * each + torch.arange(each, device=y.device)


def _largest(net: Components, x: Images, y: Labels, *, bend: bool) -> Scalars:
    """Return the radius up to which a bound holds, by bisection; bounds fall with the radius."""
    delta = exact(net, x)
    low, high = torch.zeros_like(delta[:, 0]), 2 * delta.amax(1) + x[0].numel() ** 0.5
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        holds = _proved(net, x, around(net, delta, middle), y, bend=bend)
        low, high = torch.where(holds, middle, low), torch.where(holds, high, middle)
    return low


def _proved(net: Components, x: Images, ball: Ball, y: Labels, *, bend: bool) -> Mask:
    """Return where each wrong concept is beaten by a right one all over the ball [b]."""
    at = scaled(net, ball)
    better = bisect(net, ball, at)
    if bend:
        better = better | curved(net, x, ball, at)
    own = torch.zeros_like(better[:, 0]).scatter(1, _own(net, y), value=True)
    beaten = (better & own[:, :, None]).any(1)
    return (beaten | own).all(1)


def _holds(net: Components, x: Images, y: Labels, threat: Threat, *, bend: bool = True) -> Mask:
    """Bound over the threat model, in any norm."""
    return _proved(net, x, ball_of(net, x, threat), y, bend=bend)


def _within(net: Components, kind: Kind, x: Images, y: Labels, threat: Threat) -> Mask:
    """Certificate by radius. It implies "bisect", which minds the rounding and so is asked too."""
    needed = reach(threat, x[0].numel())
    return (radius(net, x, y, kind) > needed) & _holds(net, x, y, threat, bend=False)
