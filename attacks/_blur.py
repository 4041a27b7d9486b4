"""Blur: defocus, glass, motion, zoom, and Gaussian as an extra."""

from __future__ import annotations

import math

import numpy as np
from numpy.random import RandomState
from scipy import ndimage

from ._corruptions import EXTRA, Pixels, corruption


def blurred(x: Pixels, sigma: float) -> Pixels:
    """Blur each channel of [c, h, w]; the edge goes on outside."""
    done: Pixels = ndimage.gaussian_filter(x, (0, sigma, sigma), mode="nearest")
    return done


@corruption(EXTRA, (0.4, 0.6, 0.7, 0.8, 1.0), (1.0, 2.0, 3.0, 4.0, 6.0))
def gaussian_blur(x: Pixels, draw: RandomState, sigma: float) -> Pixels:
    """Blur by a Gaussian of `sigma` pixels."""
    return blurred(x, sigma)


@corruption(
    "blur",
    ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),
    ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
)
def defocus_blur(x: Pixels, draw: RandomState, radius: float, alias: float) -> Pixels:
    """Blur by a disk, whose edge is softened by a small Gaussian."""
    half = 8 if radius <= 8 else int(radius)
    line = np.arange(-half, half + 1)
    disk = (line[:, None] ** 2 + line**2 <= radius**2).astype(np.float64)
    disk /= disk.sum()
    reach = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    soft = np.exp(-(reach**2) / (2 * alias**2))
    soft /= soft.sum()
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk, soft, axis=axis, mode="mirror")
    done: Pixels = ndimage.correlate(x, disk[None], mode="mirror")
    return done


@corruption(
    "blur",
    ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
)
def glass_blur(x: Pixels, draw: RandomState, sigma: float, reach: int, passes: int) -> Pixels:
    """Blur, let each pixel take the value of one nearby, and blur again.

    The published code reads as if two pixels changed places; on views of an array the first takes
    the value of the second, which stays. CIFAR-10-C and ImageNet-C have that copy, and so has this.
    """
    first = np.floor(np.clip(blurred(x, sigma), 0, 1) * 255) / 255
    height, width = x.shape[1:]
    rows, columns = range(height - reach, reach, -1), range(width - reach, reach, -1)
    moves = draw.randint(-reach, reach, size=(passes, len(rows), len(columns), 2))
    steps = iter((moves[..., 1] * width + moves[..., 0]).ravel().tolist())
    source = list(range(height * width))
    for _ in range(passes):
        for row in rows:
            for place in range(row * width + columns[0], row * width + columns[-1] - 1, -1):
                source[place] = source[place + next(steps)]
    moved = first.reshape(len(x), -1)[:, source].reshape(x.shape)
    return blurred(moved, sigma)


def streaked(x: Pixels, radius: int, sigma: float, angle: float) -> Pixels:
    """Blur [c, h, w] along a line of 2 · radius + 1 pixels, to one side, at an angle in degrees."""
    count = 2 * radius + 1
    weights = np.exp(-(np.arange(count) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    down, right = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    height, width = x.shape[1:]
    done = np.zeros_like(x)
    for step, weight in enumerate(weights):
        dy, dx = -math.ceil(step * down - 0.5), -math.ceil(step * right - 0.5)
        if abs(dy) >= height or abs(dx) >= width:
            break  # beyond the image, as in the reference: what is left of the line is dark
        rows = np.clip(np.arange(height) - dy, 0, height - 1)
        columns = np.clip(np.arange(width) - dx, 0, width - 1)
        done += weight * x[:, rows[:, None], columns]
    return done


@corruption(
    "blur",
    ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)),
    ((10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0)),
)
def motion_blur(x: Pixels, draw: RandomState, radius: int, sigma: float) -> Pixels:
    """Blur along a line within 45 degrees of the horizontal.

    Differs from the paper: it calls ImageMagick; this is the line of the package imagecorruptions.
    """
    return streaked(x, radius, sigma, draw.uniform(-45, 45))


def zoomed(x: Pixels, factor: float) -> Pixels:
    """Enlarge the middle of [c, h, w] to the whole."""
    height, width = x.shape[1:]
    inner = math.ceil(height / factor), math.ceil(width / factor)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    part = x[:, top : top + inner[0], left : left + inner[1]]
    grown: Pixels = ndimage.zoom(part, (1, factor, factor), order=1)
    top, left = (grown.shape[1] - height) // 2, (grown.shape[2] - width) // 2
    return grown[:, top : top + height, left : left + width]


@corruption(
    "blur",
    ((0.06, 0.01), (0.11, 0.01), (0.16, 0.01), (0.21, 0.01), (0.26, 0.01)),
    ((0.11, 0.01), (0.16, 0.01), (0.21, 0.02), (0.26, 0.02), (0.31, 0.03)),
)
def zoom_blur(x: Pixels, draw: RandomState, most: float, step: float) -> Pixels:
    """Average the image with itself enlarged more and more."""
    factors = np.arange(1, 1 + most, step)
    return (x + sum(zoomed(x, float(factor)) for factor in factors)) / (len(factors) + 1)
