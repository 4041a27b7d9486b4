"""Operations of several values that are not affine: products, softmax, standardization.

Each says what it computes, its range over boxes of its inputs, and how coefficients of its value
become coefficients of its inputs: by planes below and above it on these boxes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit.certify.affine import UNIT

Range = tuple[Tensor, Tensor]  # low and high [b, *f]


class Nonlinear(ABC):
    """An operation on values [b, *f] that no point of a batch shares with another."""

    @abstractmethod
    def function(self, *x: Tensor) -> Tensor:
        """Return the value."""

    @abstractmethod
    def interval(self, *boxes: Range) -> Range:
        """Return a range that holds every value over the boxes of the inputs."""

    @abstractmethod
    def slack(self, boxes: list[Range], result: Range) -> Tensor:
        """Bound what a float32 evaluation may differ by, for results in `result`."""

    @abstractmethod
    def backward(self, a: Tensor, boxes: list[Range]) -> tuple[list[Tensor], Tensor]:
        """Return c and d with Σ c · x + d ≤ a · value over the boxes, for a [b, s, *out].

        c: coefficients of every input [b, s, *in]; d: [b, s].
        """


def summed(a: Tensor, v: Tensor) -> Tensor:
    """Return Σ a · v over the features [b, s], for a [b, s, *f] and v [b, *f]."""
    return torch.matmul(a.flatten(2), v.expand(len(v), *a.shape[2:]).flatten(1)[..., None])[..., 0]


def middle(box: Range) -> Range:
    """Return center and radius."""
    return (box[0] + box[1]) / 2, (box[1] - box[0]) / 2


class Bilinear(Nonlinear):
    """f(x, y) linear in each of both.

    Around the centers f(x, y) = f(x, y_c) + f(x_c, y) − f(x_c, y_c) + f(x − x_c, y − y_c), and the
    last term is at most f(r_x, r_y): the mean of the two planes of McCormick (1976), equal to both
    at the center.
    """

    @abstractmethod
    def pull(self, a: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return a · f(·, y) and a · f(x, ·) as coefficients."""

    def backward(self, a: Tensor, boxes: list[Range]) -> tuple[list[Tensor], Tensor]:
        (x, x_off), (y, y_off) = (middle(box) for box in boxes)
        constant = -summed(a, self.function(x, y)) - summed(a.abs(), self.function(x_off, y_off))
        return list(self.pull(a, x, y)), constant


@dataclass(frozen=True)
class Product(Bilinear):
    """x · y, elementwise; `square`: y is x itself."""

    square: bool = False

    def function(self, *x: Tensor) -> Tensor:
        return x[0] * x[1]

    def interval(self, *boxes: Range) -> Range:
        ends = torch.stack([a * b for a in boxes[0] for b in boxes[1]])
        low, high = ends.amin(0), ends.amax(0)
        if self.square:
            least = torch.maximum(boxes[0][0], -boxes[0][1]).clamp_min(0)
            low = least.square()
        return low, high

    def slack(self, boxes: list[Range], result: Range) -> Tensor:
        return 2 * UNIT * torch.maximum(result[0].abs(), result[1].abs()) + 1e-37

    def pull(self, a: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return a * y[:, None], a * x[:, None]


@dataclass(frozen=True)
class MatMul(Bilinear):
    """x @ y for x [b, ..., n, k] and y [b, ..., k, m].

    `mixes`: the rows of x are weights that add up to 1, so that a result lies between the least and
    the greatest of the rows of y.
    """

    mixes: bool = False

    def function(self, *x: Tensor) -> Tensor:
        return x[0] @ x[1]

    def interval(self, *boxes: Range) -> Range:
        (x_low, x_high), (y_low, y_high) = boxes
        low = high = torch.zeros_like(x_low @ y_low)
        for k in range(x_low.shape[-1]):  # the ends of every product, summand by summand
            rows, columns = (x[..., k, None] for x in (x_low, x_high)), (y_low, y_high)
            ends = [row * column[..., k, None, :] for row in rows for column in columns]
            low = low + torch.minimum(torch.minimum(*ends[:2]), torch.minimum(*ends[2:]))
            high = high + torch.maximum(torch.maximum(*ends[:2]), torch.maximum(*ends[2:]))
        if self.mixes:
            low = torch.maximum(low, y_low.amin(-2, keepdim=True))
            high = torch.minimum(high, y_high.amax(-2, keepdim=True))
        return low, high

    def slack(self, boxes: list[Range], result: Range) -> Tensor:
        x, y = (torch.maximum(low.abs(), high.abs()) for low, high in boxes)
        n = x.shape[-1] + 2
        off = n * UNIT / (1 - n * UNIT) * (x @ y)
        # Weights in float32 add up to 1 but for their own rounding.
        return 2 * off if self.mixes else off

    def pull(self, a: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return a @ y[:, None].mT, x[:, None].mT @ a


@dataclass(frozen=True)
class Softmax(Nonlinear):
    """exp(x_i) / Σ exp(x_j) along one axis, counted with the batch axis."""

    axis: int

    def function(self, *x: Tensor) -> Tensor:
        return x[0].softmax(self.axis)

    def interval(self, *boxes: Range) -> Range:
        """Increasing in x_i, decreasing in the others: exact."""
        low, high = (end.movedim(self.axis, -1) for end in boxes[0])
        ends = (self._at(low, high), self._at(high, low))
        return ends[0].movedim(-1, self.axis), ends[1].movedim(-1, self.axis)

    @staticmethod
    def _at(own: Tensor, others: Tensor) -> Tensor:
        # 1 / (1 + Σ_{j ≠ i} exp(others_j − own_i)), without overflow; 1e-12 covers float64.
        n = own.shape[-1]
        gaps = others[..., None, :] - own[..., :, None]
        gaps = gaps.masked_fill(torch.eye(n, dtype=torch.bool, device=own.device), 0.0)
        return (-gaps.logsumexp(-1)).exp()

    def slack(self, boxes: list[Range], result: Range) -> Tensor:
        low, high = boxes[0]
        n = low.shape[self.axis]
        # exp(x − max): the difference rounds, and exp turns that into a relative error.
        span = high.amax(self.axis, keepdim=True) - low.amin(self.axis, keepdim=True)
        # Whatever is lost, a quotient of positive numbers by their sum is at most 1.
        return ((2 * span + n + 16) * UNIT * result[1] + 1e-37).clamp_max(1.0)

    def backward(self, a: Tensor, boxes: list[Range]) -> tuple[list[Tensor], Tensor]:
        """Tangent planes of the convex and concave bounds of Wei et al. 2023 (section 4, "ER").

        exp(x_j − x_i) lies between tangent and chord; 1 / Σ is below by its tangent, above by its
        chord. Where a constant is closer at the center, it is taken.
        """
        low, high = (end.movedim(self.axis, -1) for end in boxes[0])
        least, most = self._at(low, high), self._at(high, low)
        a = a.movedim(self.axis + 1, -1)
        bottom, top = _softmax_planes(low, high, least, most)
        part = torch.zeros_like(a)
        constant = a.new_zeros(a.shape[:2])
        for half, (plane, shift) in ((a.clamp_min(0), bottom), (a.clamp_max(0), top)):
            part = part + (half.movedim(1, -2) @ plane).movedim(-2, 1)
            constant = constant + summed(half, shift)
        return [part.movedim(-1, self.axis + 1)], constant

    def margins(self, logits: Tensor, box: Range, rounding: bool) -> Tensor:
        """Return lower bounds of p_y − p_j [b, k] from those of the logits, of the same sign."""
        if rounding:  # what the logits' float32 difference must exceed for the probabilities
            span = box[1].amax(1, keepdim=True) - box[0].amin(1, keepdim=True)
            logits = logits - (4 * span + 64) * UNIT
        # With t = z_j − z_y: p_y − p_j = (1 − e^t) p_y, and 1 / p_y = Σ exp(z_j − z_y).
        rest = (-logits).exp().sum(1, keepdim=True).clamp_max(1e300)
        return torch.where(logits > 0, -torch.expm1(-logits) / rest, (logits / 2).tanh())


def _softmax_planes(
    low: Tensor, high: Tensor, least: Tensor, most: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return planes [b, ..., i, j] and shifts [b, ..., i] below and above softmax."""
    n, center = low.shape[-1], (low + high) / 2
    same = torch.eye(n, dtype=torch.bool, device=low.device)
    gap_low = (low[..., None, :] - high[..., :, None]).masked_fill(same, 0.0)
    gap_high = (high[..., None, :] - low[..., :, None]).masked_fill(same, 0.0)
    gap = center[..., None, :] - center[..., :, None]

    def plane(weights: Tensor, at_center: Tensor, constant: Tensor, sign: int) -> Range:
        # Σ_j weights_ij (x_j − x_i), as coefficients of x; the diagonal takes what is subtracted.
        weights = weights.masked_fill(same, 0.0)
        found = weights - torch.diag_embed(weights.sum(-1))
        shift = at_center - (weights * gap).sum(-1)
        usable = found.isfinite().all(-1) & (sign * (at_center - constant) > 0)
        return (
            torch.where(usable[..., None], found, 0.0),
            torch.where(usable, shift, constant),
        )

    # Below: 1 / Q, Q = Σ chords. exp of large gaps overflows to inf: then the constant holds.
    width = (gap_high - gap_low).clamp_min(1e-9)
    slope = torch.where(
        gap_high - gap_low > 1e-9, (gap_high.exp() - gap_low.exp()) / width, gap_high.exp()
    )
    chord = gap_high.exp() - slope * (gap_high - gap)
    total = chord.masked_fill(same, 1.0).sum(-1) * (1 + 1e-12)
    bottom = plane(-slope / total.square()[..., None], 1 / total, least, 1)
    # Above: p_l + p_u − p_l p_u Q, Q ≥ Σ tangents at the center.
    scale = least * most
    touch = gap.masked_fill(same, 0.0).exp()
    at_center = least + most - scale * touch.sum(-1) * (1 - 1e-12)
    top = plane(-scale[..., None] * touch, at_center, most, -1)
    return bottom, top


@dataclass(frozen=True)
class LogSoftmax(Nonlinear):
    """x_i − log Σ exp(x_j) along one axis: a network's last operation."""

    axis: int

    def function(self, *x: Tensor) -> Tensor:
        return x[0].log_softmax(self.axis)

    def interval(self, *boxes: Range) -> Range:
        low, high = Softmax(self.axis).interval(*boxes)
        return low.clamp_min(1e-300).log(), high.log()

    def slack(self, boxes: list[Range], result: Range) -> Tensor:
        size = torch.maximum(boxes[0][0].abs(), boxes[0][1].abs()).amax(self.axis, keepdim=True)
        n = result[0].shape[self.axis]
        return (8 * size + 2 * n + 16) * UNIT + torch.zeros_like(result[0])

    def backward(self, a: Tensor, boxes: list[Range]) -> tuple[list[Tensor], Tensor]:
        """Tangent plane of log Σ exp, which is convex, and log's tangent at Σ chords above it."""
        low, high = (end.movedim(self.axis, -1) for end in boxes[0])
        center, top = (low + high) / 2, high.amax(-1, keepdim=True)
        a = a.movedim(self.axis + 1, -1)
        wide = (high - low).clamp_min(1e-9)
        ends = (low - top).exp(), (high - top).exp()
        slope = torch.where(high - low > 1e-9, (ends[1] - ends[0]) / wide, ends[1])
        chords = (ends[1] - slope * (high - center)).sum(-1, keepdim=True) * (1 + 1e-12)
        # −log Σ exp ≥ −(log of the chords' sum at the center + its tangent), ≤ −(its tangent).
        planes = (
            (slope / chords, chords.log() + top),
            (center.softmax(-1), center.logsumexp(-1, keepdim=True) - 1e-12),
        )
        part, constant = a, a.new_zeros(a.shape[:2])
        for half, (plane, value) in zip((a.clamp_min(0), a.clamp_max(0)), planes, strict=True):
            total = half.sum(-1, keepdim=True)
            part = part - total * plane[:, None]
            shift = value - (plane * center).sum(-1, keepdim=True)
            constant = constant - summed(total, shift)
        return [part.movedim(-1, self.axis + 1)], constant

    def margins(self, logits: Tensor, box: Range, rounding: bool) -> Tensor:
        """Return lower bounds of the margins [b, k]: those of the logits, but for rounding."""
        if not rounding:
            return logits
        return logits - 2 * self.slack([box], box).amax(1, keepdim=True)
