"""Inputs that are no images, drawn: bars of a vector, lines of a signal, a slice of a volume.

Values are in [0, 1], and drawn dark on white, 0 below and 1 above.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

HEIGHT, WIDTH = 112, 224
_BANDS = 4  # channels of a signal that are drawn
_LIGHT = 200

SAYS = {
    1: "Each row: the clean vector, the adversarial one, and their difference. A bar is a feature, "
    "from the least value that it can have to the greatest; of the difference it begins in the "
    "middle, magnified as it says below.",
    2: "Each row: the clean signal, the adversarial one, and their difference around the middle, "
    f"magnified as it says below. Of more than {_BANDS} channels the first {_BANDS} are drawn, one "
    "below the other.",
    4: "Each row: the slice of the volume in which most changes, clean and adversarial, and their "
    "difference around gray, magnified as it says below so that the largest change reaches black "
    "or white.",
}


def widest(clean: NDArray[Any], adversarial: NDArray[Any]) -> int:
    """Return the slice of volumes [c, d, h, w] in which most changes, by the sum of |change|."""
    return int(np.abs(adversarial - clean).sum((0, 2, 3)).argmax())


def drawn(x: NDArray[Any], base: float = 0.0) -> NDArray[Any]:
    """Draw a vector [d] or a signal [c, t] as an image [1, h, w] in [0, 1].

    Args:
        base: where the bars of a vector begin.
    """
    picture = Image.new("L", (WIDTH, HEIGHT), 255)
    pen = ImageDraw.Draw(picture)
    if x.ndim == 1:
        _bars(pen, x, base)
    else:
        bands = x[:_BANDS]
        tall = HEIGHT // len(bands)
        for place, values in enumerate(bands):
            _line(pen, values, place * tall, tall)
    return np.asarray(picture, dtype=np.float32)[None] / 255


def _bars(pen: ImageDraw.ImageDraw, values: NDArray[Any], base: float) -> None:
    ends = np.linspace(0, WIDTH, len(values) + 1)
    for left, right, value in zip(ends[:-1], ends[1:], values, strict=True):
        low, high = sorted((base, float(value)))
        gap = 1 if right - left >= 4 else 0
        corners = (left, _row(high, 0, HEIGHT), max(left, right - 1 - gap), _row(low, 0, HEIGHT))
        pen.rectangle(corners, fill=60)
    pen.line((0, _row(base, 0, HEIGHT), WIDTH, _row(base, 0, HEIGHT)), fill=_LIGHT)


def _line(pen: ImageDraw.ImageDraw, values: NDArray[Any], top: int, tall: int) -> None:
    pen.line((0, top + tall - 1, WIDTH, top + tall - 1), fill=_LIGHT)
    across = np.linspace(0, WIDTH - 1, len(values))
    points = [(float(x), _row(float(v), top, tall)) for x, v in zip(across, values, strict=True)]
    pen.line(points * (2 if len(points) == 1 else 1), fill=0)


def _row(value: float, top: int, tall: int) -> float:
    """Return the row of pixels of a value, 1 at the top of a band."""
    return top + (tall - 1) * (1 - min(max(value, 0.0), 1.0))
