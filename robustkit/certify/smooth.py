"""Lines below and above functions that are neither convex nor concave: sigmoid, tanh, SiLU, GELU.

Any slope s gives a line, once its shift is known: below, the least of f − s x on the interval. On
a piece where f is convex it lies where f' = s, at worst at the piece's ends; elsewhere at an end of
the interval. Where f' = s is looked up in a table, and what the table's error may cost is taken
off, so that tables decide how tight a line is and never whether it holds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_REACH, _STEP = 16.0, 2.0**-9  # of the tables: f is a line or a constant beyond
_COARSE = 2.0**-6
_TIE = 1e-9
_KNOWN: WeakIdKeyDictionary = WeakIdKeyDictionary()


class Lines(NamedTuple):
    """low_slope · x + low_shift ≤ f(x) ≤ high_slope · x + high_shift on the interval."""

    low_slope: Tensor
    low_shift: Tensor
    high_slope: Tensor
    high_shift: Tensor

    def around(self, center: Tensor, value: Tensor) -> Lines:
        """Return the lines with gaps to f(center) = `value` as their shifts.

        f(x) − value ≥ slope · (x − center) + gap with gap ≤ 0; above likewise with gap ≥ 0.
        """
        return self._replace(
            low_shift=(self.low_slope * center + self.low_shift - value).clamp_max(0),
            high_shift=(self.high_slope * center + self.high_shift - value).clamp_min(0),
        )


class Smooth(NamedTuple):
    """A function, its derivative, and where it turns from convex to concave or back.

    Its derivative is greatest and least at these points or at infinity.
    """

    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    bends: tuple[float, ...]
    convex_first: bool

    def pieces(self, convex: bool) -> list[tuple[float, float]]:
        """Return where the function is convex, or where it is concave."""
        ends = [-float("inf"), *self.bends, float("inf")]
        pairs = list(pairwise(ends))
        return pairs[0 if convex is self.convex_first else 1 :: 2]

    def steepness(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least and the greatest derivative on [low, high]."""
        values = [self.derivative(low), self.derivative(high)]
        for bend in self.bends:
            values.append(self.derivative(torch.clamp(torch.full_like(low, bend), low, high)))
        stacked = torch.stack(values)
        return stacked.amin(0), stacked.amax(0)


def shift(f: Smooth, low: Tensor, high: Tensor, slope: Tensor, *, below: bool) -> Tensor:
    """Return the least of f(x) − slope · x over [low, high], or with `below` False the greatest.

    The tensors broadcast. Its derivative by the slope is −x at that point.
    """
    closer = torch.minimum if below else torch.maximum
    sign = 1.0 if below else -1.0
    best = closer(f.function(low) - slope * low, f.function(high) - slope * high)
    for start, end in f.pieces(convex=below):
        first, last = low.clamp_min(start).detach(), high.clamp_max(end).detach()
        with torch.no_grad():
            at = torch.clamp(_turning_point(f, start, end, slope.detach()), first, last)
            # A convex g lies above its tangent: g(x) ≥ g(p) + g'(p) (x − p).
            rise = sign * (f.derivative(at) - slope)
            loss = rise.clamp_min(0) * (at - first) + (-rise).clamp_min(0) * (last - at)
            value, usable = f.function(at), first < last
        found = value - slope * at - sign * loss
        best = torch.where(usable, closer(best, found), best)
    if low.dtype != torch.float64:
        return best
    return best - sign * 1e-13 * (1 + low.abs() + high.abs())  # rounding of the above


def smooth_lines(f: Smooth, low: Tensor, high: Tensor) -> Lines:
    """Return the lines that are closest at the middle of the interval: the least area between them.

    The convex hull is there a tangent, a chord, or a tangent through an end.
    """
    if low.requires_grad or high.requires_grad or low.is_inference() or high.is_inference():
        return _closest(f, low, high)
    # One backward pass asks twice, and all blocks of rows ask again.
    key = f, low._version, high._version
    known = _KNOWN.get(low)
    if known is None or known[0] != key or known[1] is not high:
        known = key, high, _closest(f, low, high)
        _KNOWN[low] = known
    lines: Lines = known[2]
    return lines


def _closest(f: Smooth, low: Tensor, high: Tensor) -> Lines:
    with torch.no_grad():
        middle, width = (low + high) / 2, high - low
        chord = (f.function(high) - f.function(low)) / width.clamp_min(1e-9)
        common = [f.derivative(middle), torch.where(width > 1e-9, chord, f.derivative(middle))]
        slopes = []
        for below in (True, False):
            best, chosen = None, common[0]
            for slope in (*common, *_through_ends(f, low, high, below)):
                value = shift(f, low, high, slope, below=below) + slope * middle
                if best is None:
                    best = value
                    continue
                # Lines that touch at the middle tie: rounding, and so the batch, must not decide.
                better = value > best + _TIE if below else value < best - _TIE
                best = torch.where(better, value, best)
                chosen = torch.where(better, slope, chosen)
            slopes.append(chosen)
    shifts = [
        shift(f, low, high, slope, below=below)
        for slope, below in zip(slopes, (True, False), strict=True)
    ]
    return Lines(slopes[0], shifts[0], slopes[1], shifts[1])


def place_of(f: Smooth, low: Tensor, high: Tensor, lines: Lines) -> Tensor:
    """Return where the slopes of lines lie between the least and greatest: [b, 2, *f] in [0, 1]."""
    least, most = f.steepness(low, high)
    both = torch.stack([lines.low_slope, lines.high_slope], 1)
    span = (most - least).clamp_min(1e-12)[:, None]
    return ((both - least[:, None]) / span).clamp(0, 1)


def placed_lines(f: Smooth, low: Tensor, high: Tensor, place: Tensor) -> Lines:
    """Return lines of the slopes at `place` [b, s, 2, *f], with gradient: each [b, s, *f]."""
    least, most = f.steepness(low, high)
    slopes = least[:, None, None] + place.to(low.dtype) * (most - least)[:, None, None]
    below, above = slopes.unbind(2)
    low, high = low[:, None], high[:, None]
    return Lines(
        below,
        shift(f, low, high, below, below=True),
        above,
        shift(f, low, high, above, below=False),
    )


def through_placed_lines(
    f: Smooth, a: Tensor, box: tuple[Tensor, Tensor], center: Tensor, place: Tensor
) -> tuple[Tensor, Tensor]:
    """Return coefficients of x − center for a [b, s, *f], and what f − f(center) leaves [b, s]."""
    low, high, center = (part.to(a.dtype) for part in (*box, center))
    lines = placed_lines(f, low, high, place)
    lines = lines.around(center[:, None], f.function(center)[:, None])
    up, down = a.clamp_min(0), a.clamp_max(0)
    left = (up * lines.low_shift + down * lines.high_shift).flatten(2).sum(2)
    return up * lines.low_slope + down * lines.high_slope, left


def _turning_point(f: Smooth, start: float, end: float, slope: Tensor) -> Tensor:
    """Return where f' = slope on a piece, from a table: within step² of it, in terms of f'."""
    x, rates = (part.to(slope) for part in _rates(f, start, end))
    after = torch.searchsorted(rates, slope.contiguous()).clamp(1, len(rates) - 1)
    before = after - 1
    rise = (rates[after] - rates[before]).clamp_min(1e-30)
    share = ((slope - rates[before]) / rise).clamp(0, 1)
    found: Tensor = x[before] + share * (x[after] - x[before])
    return found


@cache
def _rates(f: Smooth, start: float, end: float) -> tuple[Tensor, Tensor]:
    """Return points of a piece and f' there, by rising f'."""
    x = torch.arange(-_REACH, _REACH + _STEP, _STEP, dtype=torch.float64)
    ends = [torch.tensor([end_], dtype=x.dtype) for end_ in (start, end) if abs(end_) < _REACH]
    x = torch.cat([x[(x > start) & (x < end)], *ends]).sort().values
    rates = f.derivative(x)
    if rates[-1] < rates[0]:
        x, rates = x.flip(0), rates.flip(0)
    return x, rates.cummax(0).values


def _through_ends(f: Smooth, low: Tensor, high: Tensor, below: bool) -> list[Tensor]:
    """Return slopes of tangents to a piece through the ends, and of one that touches two pieces."""
    pieces, found = f.pieces(convex=below), []
    for start, end in pieces:
        if start > -_REACH:
            found.append(_tangent(f, start, end, low))
        if end < _REACH:
            found.append(_tangent(f, start, end, high))
    if len(pieces) == 2:
        found.append(torch.full_like(low, _bitangent(f, below)))
    return found


def _tangent(f: Smooth, start: float, end: float, through: Tensor) -> Tensor:
    """Return the slope of the tangent to a piece that passes through the graph at `through`."""
    slopes = _tangents(f, start, end).to(through)
    place = ((through + _REACH) / _COARSE).clamp(0, len(slopes) - 1.001)
    before = place.floor().long()
    return torch.lerp(slopes[before], slopes[before + 1], place - before)


@cache
def _tangents(f: Smooth, start: float, end: float) -> Tensor:
    """Return those slopes at points from −reach to reach, by bisection on where they touch."""
    x = torch.arange(-_REACH, _REACH + _COARSE, _COARSE, dtype=torch.float64)
    low = torch.full_like(x, max(start, -_REACH))
    high = torch.full_like(x, min(end, _REACH))
    value = f.function(x)

    def above(at: Tensor) -> Tensor:  # the tangent at `at`, at x, less f(x)
        return f.function(at) + f.derivative(at) * (x - at) - value

    side = above(low).sign()
    for _ in range(50):
        at = (low + high) / 2
        same = above(at).sign() == side
        low, high = torch.where(same, at, low), torch.where(same, high, at)
    return f.derivative((low + high) / 2)


@cache
def _bitangent(f: Smooth, below: bool) -> float:
    """Return the slope at which both pieces have the same line."""
    least, most = -1.0, 2.0
    ends = torch.tensor([[-_REACH], [_REACH]], dtype=torch.float64)

    def difference(slope: float) -> float:
        asked = torch.tensor([slope], dtype=torch.float64)
        values = []
        for start, end in f.pieces(convex=below):
            at = torch.clamp(_turning_point(f, start, end, asked), *ends)
            values.append(float(f.function(at) - slope * at))
        return values[1] - values[0]

    positive = difference(least) > 0
    for _ in range(60):
        slope = (least + most) / 2
        if (difference(slope) > 0) is positive:
            least = slope
        else:
            most = slope
    return (least + most) / 2
