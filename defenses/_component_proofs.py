"""For which pairs of concepts p_i > p_j holds all over a ball, in float64, rounded outward.

Two bounds of ours on p_i − p_j = b + Σ_k alpha_k d_k over the ball, alpha_k = (R⁺ − R⁻)_ki − (R⁺ −
R⁻)_kj:
"bisect" bounds each d_k by itself, from its extreme distances;
"curved" is linear at the center, where components that pull apart cancel, less what the second
derivatives may add: of exp(−δ / σ) they are d / σ² along the way to w and −d / (σ δ) across it, of
exp(−δ² / σ) d (4 δ² / σ² − 2 / σ) and −2 d / σ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustkit.certify.ibp import input_box
from robustkit.certify.smoothing import reach
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Scalars

if TYPE_CHECKING:
    from ._components import Components

Distances: TypeAlias = Float[Tensor, "b n"]
Pairs: TypeAlias = Float[Tensor, "b i i"]
PairMask: TypeAlias = Bool[Tensor, "b i i"]
Gradients: TypeAlias = Float[Tensor, "b i f"]

TINY = 1e-300  # below every sum of detections, the greatest divided out
_ULP = 2.0**-22  # two roundings of a logit to float32, relative
_LOST = 1e-9  # of a probability, far more than float64 sums of its terms lose
_SMOOTH = 1e-3  # distance from which on exp(−δ / σ) is taken to have second derivatives


class Ball(NamedTuple):
    """What a threat model allows around points x.

    Attributes:
        center: distances of x.
        near, far: the least and the greatest distance to each component, rounded outward.
        length: the greatest l2 distance from x.
        fall: how much linear functions of these gradients fall at most [b, i].
    """

    center: Distances
    near: Distances
    far: Distances
    length: Scalars
    fall: Callable[[Gradients], Float[Tensor, "b i"]]


def ball_of(net: Components, x: Images, threat: Threat) -> Ball:
    """Return the ball of a threat model, in linf that in its box."""
    box, delta = input_box(x.double(), threat), exact(net, x)
    if threat.norm != "linf":
        length = box.low.new_full((len(x),), reach(threat, x[0].numel()))
        ball = around(net, delta, length)
        if threat.norm != "l1":
            return ball
        return ball._replace(fall=lambda g: length[:, None] * g.abs().amax(2))
    z, low, high = (value.flatten(1) for value in (x.double(), box.low, box.high))
    near, far = [], []
    for w in net.w.double():  # one after the other: all at once would be [b, n, f]
        near.append((w.clamp(low, high) - w).norm(dim=1))
        far.append(torch.maximum(w - low, high - w).norm(dim=1))
    down, up = z - low, high - z

    def fall(g: Gradients) -> Tensor:
        return (torch.maximum(g * down[:, None], -g * up[:, None])).sum(2)

    extremes = _widened(net, torch.stack(near, 1), torch.stack(far, 1))
    return Ball(delta, *extremes, torch.maximum(down, up).norm(dim=1), fall)


def around(net: Components, delta: Distances, length: Scalars) -> Ball:
    """Return the l2 ball, by the triangle inequality."""
    extremes = _widened(net, delta - length[:, None], delta + length[:, None])
    return Ball(delta, *extremes, length, lambda g: length[:, None] * g.norm(dim=2))


def exact(net: Components, x: Images) -> Distances:
    """Sum the squares of differences: good to a relative 1e-13 where `Components.distances` is not.

    One component after the other: [b, n, f] would be large.
    """
    z = x.flatten(1).double()
    return torch.stack([(z - w).norm(dim=1) for w in net.w.double()], 1)


def _widened(net: Components, near: Distances, far: Distances) -> tuple[Distances, Distances]:
    """Round outward, by what `Components.distances` and the sums here may lose.

    ‖z‖² + ‖w‖² − 2 z·w in float64 is off by at most (f + 4) 2⁻⁵³ (‖z‖ + ‖w‖)², and ‖z‖ + ‖w‖ is at
    most δ + 2 ‖w‖.
    """
    lost = _miscounted(net, far)
    near = (near.clamp_min(0).square() - lost).clamp_min(0).sqrt()
    return near, (far.square() + lost).sqrt()


def _miscounted(net: Components, far: Distances) -> Distances:
    """Return what a squared distance of up to `far` may be off by; see `_widened`."""
    w = net.w.double()
    size = far + 2 * w.norm(dim=1)
    lost: Distances = (w.shape[1] + 4) * 2.0**-50 * size.square()
    return lost


def _blurred(net: Components, ball: Ball) -> Distances:
    """Return what the exponent of a detection may be off by in the model's own pass."""
    lost = _miscounted(net, ball.far)
    if not net.squared:
        lost = torch.minimum(lost.sqrt(), lost / ball.near.clamp_min(TINY))
    return lost / net.sigma


class Scaled(NamedTuple):
    """Detections over the greatest one of the ball, so that what decides does not underflow.

    Attributes:
        up, down: bounds of every d.
        back: what constants are multiplied by.
        lost: share of a sum that may be lost.
        needed: what p_i − p_j must exceed, so that the logits differ in float32.
    """

    top: Float[Tensor, "b 1"]
    up: Distances
    down: Distances
    back: Float[Tensor, "b 1"]
    lost: Float[Tensor, "b 1 1"]
    needed: Pairs


def scaled(net: Components, ball: Ball) -> Scaled:
    """Prepare the bounds over a ball."""
    present, absent = (weights := net.columns())
    most, least = net.exponents(ball.near), net.exponents(ball.far)  # of log d
    top = most.amax(1, keepdim=True)
    up, down, back = (most - top).exp(), (least - top).exp(), (-top).clamp_max(600).exp()
    other = (up @ present + weights.offset * back)[:, None]  # at least p_j
    sure = top + (down @ present).clamp_min(TINY).log()  # at most log p_i
    if absent is not None:
        gone = (-torch.expm1(most)) @ absent
        sure = torch.logaddexp(sure, gone.clamp_min(TINY).log())
    lost = _LOST * (1 + 1e-4 * least.abs().amax(1)[:, None, None])
    needed = (lost + _ULP * (1 + sure.abs())[:, :, None]) * other + TINY
    return Scaled(top, up, down, back, lost, needed)


def bisect(net: Components, ball: Ball, at: Scaled) -> PairMask:
    """Return the pairs for which the first bound holds.

    The sums lose a tiny share of their terms. Terms of i that cancel in alpha or b are no greater
    than what stands in p_j or in the positive part, so that a share of those covers them.
    """
    (present, absent), offset = (weights := net.columns()), weights.offset
    alpha = present if absent is None else present - absent
    alpha = alpha[:, :, None] - alpha[:, None]
    b = (offset[:, None] - offset) * at.back[:, :, None]  # not shrunk as d is
    plus = (at.down @ alpha.clamp_min(0).flatten(1)).view_as(b) + b.clamp_min(0)
    minus = (at.up @ (-alpha).clamp_min(0).flatten(1)).view_as(b) - b.clamp_max(0)
    holds: Tensor = plus * (1 - at.lost) > minus * (1 + at.lost) + at.needed
    return holds


def curved(net: Components, x: Images, ball: Ball, at: Scaled) -> PairMask:
    """Return the pairs for which the second bound holds."""
    (present, absent), offset = (weights := net.columns()), weights.offset
    alpha = present if absent is None else present - absent
    d, sigma = (net.exponents(ball.center) - at.top).exp(), net.sigma
    if net.squared:
        rate, across = 2 * d / sigma, 2 * at.up / sigma
        along = at.up * (4 * ball.far.square() / sigma.square() - 2 / sigma).clamp_min(0)
    else:
        rate, along = d / (sigma * ball.center.clamp_min(_SMOOTH)), at.up / sigma.square()
        across = at.up / (sigma * ball.near.clamp_min(_SMOOTH))
    pulls = rate[:, :, None] * alpha
    z, w = x.flatten(1).double(), net.w.double()
    gradients = pulls.mT @ w - pulls.sum(1)[:, :, None] * z[:, None]
    fall = torch.stack([ball.fall(g[:, None] - gradients) for g in gradients.unbind(1)], 1)
    apart = alpha[:, :, None] - alpha[:, None]
    bend = across @ apart.clamp_min(0).flatten(1) + along @ (-apart).clamp_min(0).flatten(1)
    bend = ball.length.square()[:, None, None] / 2 * bend.view_as(fall)
    # `p` is that of the true distances, and the model's pass computes them less exactly.
    blur = (at.up * _blurred(net, ball).expm1()) @ apart.abs().flatten(1)
    p = d @ alpha + offset * at.back
    size = d @ (present if absent is None else present + absent) + offset * at.back
    # What cancels in the gradients, a relative 1e-13.
    reached = ball.length[:, None] * (z.norm(dim=1, keepdim=True) + w.norm(dim=1).max())
    size = size + 1e-4 * reached * pulls.abs().sum(1)
    lost = at.lost * (size[:, :, None] + size[:, None] + fall + bend)
    smooth = net.squared or (ball.near > _SMOOTH).all(1)[:, None, None]
    least = p[:, :, None] - p[:, None] - fall - bend - blur.view_as(fall)
    holds: Tensor = least > lost + at.needed
    return holds & smooth
