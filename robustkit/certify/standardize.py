"""Layer, group and instance normalization: bounds of (x − mean) / sqrt(variance + ε)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit.certify.affine import UNIT
from robustkit.certify.nonlinear import Nonlinear, Range, middle, summed


@dataclass(frozen=True)
class Standardize(Nonlinear):
    """(x − mean) / sqrt(variance + eps) over the last axis, with the biased variance."""

    eps: float

    def function(self, *x: Tensor) -> Tensor:
        center = self._centered(x[0])
        return center * (center.square().mean(-1, keepdim=True) + self.eps).rsqrt()

    @staticmethod
    def _centered(x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True)

    @classmethod
    def _ranges(cls, box: Range) -> tuple[Range, Range, Tensor]:
        """Return ranges of x − mean, of its square, and |center| + radius of x."""
        (center, radius), n = middle(box), box[0].shape[-1]
        # |I − 1 1ᵀ / n|: 1 − 1/n for the value itself and 1/n for each other one.
        reach = (radius * (1 - 2 / n) + radius.mean(-1, keepdim=True)) * (1 + 1e-12)
        low, high = cls._centered(center) - reach, cls._centered(center) + reach
        least = torch.maximum(low, -high).clamp_min(0).square()
        return (low, high), (least, torch.maximum(-low, high).square()), center.abs() + radius

    def interval(self, *boxes: Range) -> Range:
        """With c = x − mean and R the other squares: c / sqrt((c² + R) / n + eps), rising in c.

        Falling in R where c > 0, rising where c < 0; R ≥ c² / (n − 1), as all c add up to 0.
        """
        (low, high), (least, most), _ = self._ranges(boxes[0])
        few, many = (ends.sum(-1, keepdim=True) - ends for ends in (least, most))
        return -self._greatest(-low, few, many), self._greatest(high, few, many)

    def _greatest(self, c: Tensor, few: Tensor, many: Tensor) -> Tensor:
        n = c.shape[-1]
        others = torch.maximum(few.clamp_min(0), c.square() / max(1, n - 1))
        rest = torch.where(c > 0, others * (1 - 1e-12), torch.maximum(many, few) * (1 + 1e-12))
        value = c / ((c.square() + rest) / n + self.eps).sqrt()
        return value + 1e-12 * value.abs()

    def _variance(self, squares: Range) -> Range:
        n = squares[0].shape[-1]
        low, high = (ends.sum(-1, keepdim=True) / n for ends in squares)
        return low * (1 - 1e-12) + self.eps, high * (1 + 1e-12) + self.eps

    def slack(self, boxes: list[Range], result: Range) -> Tensor:
        """Whatever the algorithm: a variance from E[x²] − mean² may lose n u max x²."""
        _, squares, size = self._ranges(boxes[0])
        low, high = self._variance(squares)
        n, most = size.shape[-1], size.amax(-1, keepdim=True)
        center = (n + 8) * UNIT * 2 * most
        variance = (2 * n + 16) * UNIT * most.square()
        # A variance below 0 counts as 0: 1 / sqrt is at most 1 / sqrt(eps).
        share = torch.minimum(1 - variance / low, torch.ones_like(low))
        factor = torch.where(share > 0, share.clamp_min(1e-30).rsqrt(), math.inf)
        factor = torch.minimum(factor, (high / self.eps).sqrt())
        value = torch.maximum(result[0].abs(), result[1].abs())
        scale = torch.minimum(factor * low.rsqrt(), torch.full_like(low, self.eps**-0.5))
        return center * scale + value * (factor - 1 + 8 * UNIT)

    def backward(self, a: Tensor, boxes: list[Range]) -> tuple[list[Tensor], Tensor]:
        """Follow c · r, r = 1 / sqrt(v), v = mean(c²) + eps: one line for each factor.

        c · r by the planes of a product (`Bilinear`); r is convex in v and c² in c: tangents below
        and chords above.
        """
        inner, squares, _ = self._ranges(boxes[0])
        (c, c_off), (v_low, v_high) = middle(inner), self._variance(squares)
        root, root_off = middle((v_high.rsqrt(), v_low.rsqrt()))
        low, high = inner
        n, v = c.shape[-1], (v_low + v_high) / 2
        tangent, chord = -0.5 * v.pow(-1.5), -_chord(v_low, v_high)
        # Where the interval is closer at the center, it is the bound.
        under = v.rsqrt() + tangent * (
            (c.square() + c_off.square()).mean(-1, keepdim=True) + self.eps - v
        )
        over = v_low.rsqrt() + chord * (c.square().mean(-1, keepdim=True) + self.eps - v_low)
        least, most = self.interval(*boxes)
        off, positive = c_off * root_off, c > 0
        below = c * torch.where(positive, under, over) - off > least
        above = c * torch.where(positive, over, under) + off < most
        up, down = a.clamp_min(0), a.clamp_max(0)
        constant = summed(up, torch.where(below, 0.0, least))
        constant = constant + summed(down, torch.where(above, 0.0, most))
        a = up * below[:, None] + down * above[:, None]
        part = a * root[:, None]
        constant = constant - summed(a, c * root) - summed(a.abs(), off)
        # The coefficient of r, by its sign: tangent at the middle or chord.
        of_root = (a * c[:, None]).sum(-1, keepdim=True)
        rise = of_root.clamp_min(0) * tangent[:, None] + of_root.clamp_max(0) * chord[:, None]
        constant = constant + summed(of_root.clamp_min(0), v.rsqrt() - tangent * v)
        constant = constant + summed(of_root.clamp_max(0), v_low.rsqrt() - chord * v_low)
        # v = Σ c² / n + eps; the coefficient of each square is rise / n.
        share = (rise / n).expand_as(a)
        constant = constant + (rise * self.eps).flatten(2).sum(2)
        part = part + share.clamp_min(0) * (2 * c)[:, None]
        part = part + share.clamp_max(0) * (low + high)[:, None]
        constant = constant - summed(share.clamp_min(0), c.square())
        constant = constant - summed(share.clamp_max(0), low * high)
        return [self._centered(part)], constant


def _chord(low: Tensor, high: Tensor) -> Tensor:
    """Return −(slope of 1 / sqrt between low and high): 1 / (√l √h (√l + √h))."""
    one, two = low.sqrt(), high.sqrt()
    return 1 / (one * two * (one + two))
