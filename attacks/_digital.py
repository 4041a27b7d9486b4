"""Digital: brightness and contrast, elastic deformation, coarse pixels, JPEG; saturation."""

from __future__ import annotations

import io

import numpy as np
from numpy.random import RandomState
from PIL import Image
from scipy import ndimage

from ._corruptions import EXTRA, Pixels, corruption


@corruption("weather", (0.05, 0.10, 0.15, 0.20, 0.30), (0.1, 0.2, 0.3, 0.4, 0.5))
def brightness(x: Pixels, draw: RandomState, shift: float) -> Pixels:
    """Raise the value of HSV; hue and saturation stay."""
    value = x.max(0, keepdims=True)
    lit = np.clip(value + shift, 0, 1)
    # In HSV a pixel is its value times numbers that depend on hue and saturation alone.
    done: Pixels = np.where(value > 0, x * (lit / np.where(value > 0, value, 1)), lit)
    return done


@corruption("digital", (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05))
def contrast(x: Pixels, draw: RandomState, factor: float) -> Pixels:
    """Draw every channel toward its mean."""
    mean = x.mean((1, 2), keepdims=True)
    done: Pixels = (x - mean) * factor + mean
    return done


_SIDE = 250 * 0.005  # of the large images: displacement by side, before its blur


@corruption(
    "digital",
    ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    tuple((_SIDE * share, 0.01, 0) for share in (0.05, 0.065, 0.085, 0.1, 0.12)),
)
def elastic_transform(
    x: Pixels, draw: RandomState, strength: float, width: float, affine: float
) -> Pixels:
    """Shear the image at random, then move every pixel by a smooth random field.

    All three constants are in sides of the image. Those of large images are the package
    imagecorruptions', which does not shear.
    """
    height = x.shape[1]
    sheared = _sheared(x, draw, affine * height) if affine else x
    if not strength:
        return sheared
    moves = [
        strength * height * ndimage.gaussian_filter(
            draw.uniform(-1, 1, size=x.shape[1:]), width * height, mode="reflect", truncate=3
        )
        for _ in range(2)
    ]  # fmt: skip
    rows, columns = np.meshgrid(*map(np.arange, x.shape[1:]), indexing="ij")
    places = rows + moves[1], columns + moves[0]
    return np.stack(
        [ndimage.map_coordinates(channel, places, order=1, mode="reflect") for channel in sheared]
    )


def _sheared(x: Pixels, draw: RandomState, most: float) -> Pixels:
    """Move three points around the middle by up to `most` pixels, and the image with them."""
    size = np.array(x.shape[1:])
    middle, reach = size // 2, int(size.min()) // 3
    corners = middle + reach * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + draw.uniform(-most, most, size=(3, 2))
    # From the new place to the old one: [row, column, 1] times this.
    back = np.linalg.solve(np.c_[moved, np.ones(3)], corners)
    return np.stack(
        [
            ndimage.affine_transform(channel, back[:2].T, back[2], order=1, mode="mirror")
            for channel in x
        ]
    )


def _picture(x: Pixels) -> Image.Image:
    levels = np.round(x * 255).astype(np.uint8)
    return Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0))


def _pixels(picture: Image.Image) -> Pixels:
    levels = np.asarray(picture, dtype=np.float64) / 255
    return levels[None] if levels.ndim == 2 else levels.transpose(2, 0, 1)


@corruption("digital", (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25))
def pixelate(x: Pixels, draw: RandomState, share: float) -> Pixels:
    """Shrink the image to a share of its sides, and blow it up again."""
    height, width = x.shape[1:]
    small = _picture(x).resize((int(width * share), int(height * share)), Image.Resampling.BOX)
    return _pixels(small.resize((width, height), Image.Resampling.BOX))


@corruption("digital", (80, 65, 58, 50, 40), (25, 18, 15, 10, 7))
def jpeg_compression(x: Pixels, draw: RandomState, quality: int) -> Pixels:
    """Store the image as JPEG of a quality, and read it again."""
    file = io.BytesIO()
    _picture(x).save(file, "JPEG", quality=quality)
    return _pixels(Image.open(file))


@corruption(
    EXTRA,
    ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
)
def saturate(x: Pixels, draw: RandomState, factor: float, shift: float) -> Pixels:
    """Stretch and shift the saturation of HSV. A gray image is one whose channels are equal."""
    colors = np.repeat(x, 3, axis=0) if len(x) == 1 else x
    value, low = colors.max(0, keepdims=True), colors.min(0, keepdims=True)
    range_ = value - low
    colored = range_ > 0
    # Hue tells which share of its saturation each channel loses; without a hue it is that of red.
    loss = np.where(colored, (value - colors) / np.where(colored, range_, 1), _RED)
    saturation = np.clip(range_ / np.where(value > 0, value, 1) * factor + shift, 0, 1)
    done: Pixels = value * (1 - saturation * loss)
    return done[: len(x)]


_RED = np.array([0.0, 1.0, 1.0])[:, None, None]
