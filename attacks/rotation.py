"""Rotations and translations as a threat model: every one of a declared grid is tried."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustkit.core.finite import FiniteThreat, Variant
from robustkit.core.named import ANY_SHAPE
from robustkit.core.text import number
from robustkit.core.types import Images
from robustkit.errors import UsageError
from robustkit.registry import threats

_GRAIN = 2**20  # sines are multiples of 1 / 2^20: coarser than what two libraries may differ by
_MOST = 4096  # variants of a point


class _Move(NamedTuple):
    """Degrees counterclockwise about the centre, then pixels down and to the right."""

    angle: float
    down: int
    right: int

    def __str__(self) -> str:
        parts = [f"rotate{self.angle:+g}"] if self.angle else []
        parts += [f"shift{self.down:+d}{self.right:+d}"] if self.down or self.right else []
        return "_".join(parts)


@dataclass(frozen=True)
class _Spatial(FiniteThreat):
    """Moves of an image on a grid. Severity counts steps: the most that one parameter takes."""

    def check(self, shape: Sequence[int], labels: Any) -> None:
        """Refuse what is no image, and one that a translation moves out of its frame."""
        if len(shape) != 3:
            raise UsageError(
                f"{self} needs images [c, h, w], got inputs {list(shape)}. {ANY_SHAPE}"
            )
        most = max(move.down for move in _moves(self.norm).values())
        if most >= min(shape[1:]):
            raise UsageError(
                f"{self}: expected a translation by fewer pixels than the images have a side, "
                f"{min(shape[1:])} (inputs {list(shape)}), got {most}: nothing would be left."
            )

    @property
    def variants(self) -> Sequence[Variant]:
        """The least severe first."""
        return tuple(_moves(self.norm))

    def images(self, x: Images, points: Sequence[int], variant: Variant) -> Images:
        """Move a batch: bilinear, black where nothing was; whole pixels are moved exactly."""
        height, width = x.shape[2:]
        taps, weights = _taps(_moves(self.norm)[variant], height, width)
        pixels, moved = x.detach().cpu().double().flatten(2), torch.zeros(())
        for tap, weight in zip(taps, weights, strict=True):
            moved = moved + weight * pixels[:, :, tap]
        # Sums in float64 and in a fixed order, rounded once: the same bits on every machine.
        return moved.clamp(0, 1).float().view_as(x)


@threats.register("rotation", cites="arXiv:1712.02779", examples=("15@5", "30@10,translation=3@3"))
@dataclass(frozen=True)
class Rotation(_Spatial):
    """Rotations about the centre, with translations if asked for: all of a grid, hence exact.

    Engstrom et al. 2019, section 3. `rotation:15@1` turns an image by up to 15 degrees either way,
    in steps of 1 (the default); `rotation:30@2,translation=3@1` turns it and then moves it by up to
    3 pixels along both axes. A point is robust if the model is right under every combination: exact
    for the grid, and no claim about what lies between. Bilinear interpolation, black outside.
    Severity, the distance, counts steps: the most that any one parameter takes. Differs from the
    paper: grid and bounds are named, not 31 angles up to 30 degrees and 5 offsets up to a tenth.
    """

    @classmethod
    def read(cls, text: str) -> Rotation:
        """Read what follows `rotation:`."""
        name = f"rotation:{text.lower()}"
        return cls(name, _largest(name))  # type: ignore[arg-type]


@threats.register("translation", cites="arXiv:1712.02779", examples=("2", "4@2"))
@dataclass(frozen=True)
class Translation(_Spatial):
    """Translations by whole pixels along both axes: all of a grid, hence exact.

    Engstrom et al. 2019, section 3. `translation:3@1` moves an image by up to 3 pixels up or down
    and up to 3 to the left or right, in steps of 1 (the default): 48 variants. What comes in at the
    edges is black. Severity, the distance, counts steps. Beside rotations: see `rotation`.
    """

    @classmethod
    def read(cls, text: str) -> Translation:
        """Read what follows `translation:`."""
        name = f"translation:{text.lower()}"
        return cls(name, _largest(name))  # type: ignore[arg-type]


def _largest(name: str) -> float:
    return float(max(variant.severity for variant in _moves(name)))


@lru_cache(maxsize=64)
def _moves(name: str) -> Mapping[Variant, _Move]:
    """Return the moves of a grid but for standing still, the least severe first.

    Raises:
        UsageError: for another form, or a grid of too many points.
    """
    kind, _, text = name.partition(":")
    parts = {kind: text}
    if kind == "rotation" and "," in text:
        parts["rotation"], _, rest = text.partition(",")
        word, equals, parts["translation"] = (piece.strip() for piece in rest.partition("="))
        if word != "translation" or not equals:
            raise _refused(name)
    angle, turn = _bound(name, parts.get("rotation"), 180)
    pixels, stride = _bound(name, parts.get("translation"), 10_000)
    turns, strides = round(angle / turn), round(pixels / stride)
    whole = float(stride).is_integer() and abs(strides * stride - pixels) < 1e-6
    if abs(turns * turn - angle) > 1e-6 * turn or not whole:
        raise _refused(name)
    count = (2 * turns + 1) * (2 * strides + 1) ** 2 - 1
    if count > _MOST:
        raise UsageError(
            f"{name} lists {count:,} variants of a point, and at most {_MOST:,} are tried: "
            "name wider steps behind the @, or smaller bounds."
        )
    grid = product(range(-turns, turns + 1), *[range(-strides, strides + 1)] * 2)
    steps = sorted(grid, key=lambda step: (max(map(abs, step)), step))
    moves = [_Move(a * turn, d * int(stride), r * int(stride)) for a, d, r in steps[1:]]
    rings = [max(map(abs, step)) for step in steps[1:]]
    return {Variant(str(m), ring): m for m, ring in zip(moves, rings, strict=True)}


def _bound(name: str, text: str | None, most: float) -> tuple[float, float]:
    """Read `15@5`: a bound and the step to it; nothing stands for a bound of 0."""
    if text is None:
        return 0.0, 1.0
    bound, at, step = text.partition("@")
    try:
        found = number(bound), number(step) if at else 1.0
    except ValueError:
        raise _refused(name) from None
    if not (0 < found[1] <= found[0] <= most):
        raise _refused(name)
    return found


def _refused(name: str) -> UsageError:
    return UsageError(
        "expected rotation:15@5 (degrees, at most 180), rotation:15@5,translation=4@2 or "
        "translation:4@2 (whole pixels), where the bound is a multiple of the step behind the @, "
        f"got {name}"
    )


@lru_cache(maxsize=64)
def _taps(
    move: _Move, height: int, width: int
) -> tuple[Int[Tensor, "4 hw"], Float[Tensor, "4 hw"]]:
    """Return from which four pixels each pixel comes, and their weights; 0 outside of the image."""
    turn = math.radians(move.angle)
    cosine, sine = (round(part * _GRAIN) / _GRAIN for part in (math.cos(turn), math.sin(turn)))
    middle = (height - 1) / 2, (width - 1) / 2
    row = torch.arange(height, dtype=torch.float64)[:, None] - middle[0] - move.down
    column = torch.arange(width, dtype=torch.float64) - middle[1] - move.right
    # Exact: multiples of 1 / 2^21 below 2^30.
    source = (
        cosine * row + sine * column + middle[0],
        cosine * column - sine * row + middle[1],
    )
    first = [part.floor() for part in source]
    ahead = [part - floor for part, floor in zip(source, first, strict=True)]
    taps, weights = [], []
    for down, right in product((0, 1), repeat=2):
        place = first[0] + down, first[1] + right
        share = (ahead[0] if down else 1 - ahead[0]) * (ahead[1] if right else 1 - ahead[1])
        inside = (place[0] >= 0) & (place[0] < height) & (place[1] >= 0) & (place[1] < width)
        taps.append(torch.where(inside, place[0] * width + place[1], 0).long().flatten())
        weights.append(torch.where(inside, share, 0).flatten())
    return torch.stack(taps), torch.stack(weights)
