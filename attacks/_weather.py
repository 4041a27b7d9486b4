"""Weather: snow, frost, fog (brightness, the fourth, stands with contrast in digital.py)."""

from __future__ import annotations

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from ._blur import streaked, zoomed
from ._corruptions import Pixels, corruption

_GRAY = np.array([0.299, 0.587, 0.114])[:, None, None]
# Of each of the six photographs of the published code, cut as the small images have it: mean
# brightness, its deviation between cuts, and the deviation within one.
_PANES = (
    (0.508, 0.049, 0.041),
    (0.793, 0.037, 0.049),
    (0.803, 0.038, 0.048),
    (0.607, 0.044, 0.058),
    (0.451, 0.069, 0.099),
    (0.326, 0.064, 0.105),
)
_TINT = np.array([-0.063, 0.019, 0.063])[:, None, None]  # frost is bluish
_DETAIL = 1.5  # of large images, cut from larger photographs: more contrast within a cut
_ROUGH = 1.15  # the spectrum of frost falls with this power of the frequency


@corruption(
    "weather",
    (
        *((0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9)),
        *((0.15, 0.3, 1.75, 0.55, 10, 4, 0.9), (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85)),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    (
        *((0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7)),
        *((0.55, 0.3, 4, 0.9, 12, 8, 0.7), (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65)),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
)
def snow(x: Pixels, draw: RandomState, *constants: float) -> Pixels:
    """Whiten the image, and let flakes fall in two directions.

    Args:
        constants: mean, deviation, size and threshold of the flakes; length and falloff of their
            streaks; what is kept of the image.
    """
    mean, deviation, size, threshold, radius, sigma, keep = constants
    flakes = zoomed(draw.normal(mean, deviation, size=x.shape[1:])[None], size)
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    fall = streaked(flakes, int(radius), sigma, draw.uniform(-135, -45))
    fall = np.round(fall * 255) / 255
    gray = (x * _GRAY).sum(0, keepdims=True) if len(x) == 3 else x
    white = keep * x + (1 - keep) * np.maximum(x, 1.5 * gray + 0.5)
    return white + fall + fall[:, ::-1, ::-1]


@corruption(
    "weather",
    ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
)
def frost(x: Pixels, draw: RandomState, keep: float, add: float) -> Pixels:
    """Lay frost over the image.

    Differs from the paper: it cuts the frost from six photographs. Here it is drawn: a random field
    whose brightness, contrast, roughness and tint are those measured on cuts of these photographs,
    one of the six at random.
    """
    mean, between, within = _PANES[draw.randint(len(_PANES))]
    size = x.shape[1:]
    if max(size) > 100:
        between, within = 0.75 * between, _DETAIL * within
    field = _rough(draw, size)
    ice = mean + between * draw.normal() + within * field
    tint = _TINT if len(x) == 3 else 0.0
    done: Pixels = keep * x + add * np.clip(ice + tint, 0, 1)
    return done


def _rough(draw: RandomState, size: tuple[int, ...]) -> Pixels:
    """Draw a field [1, h, w] of mean 0 and deviation 1, rough at all scales."""
    whole = draw.normal(size=tuple(2 * side for side in size))  # cut below: no edge meets another
    rows, columns = np.fft.fftfreq(whole.shape[0])[:, None], np.fft.fftfreq(whole.shape[1])
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    field = np.fft.ifft2(np.fft.fft2(whole) * frequency**-_ROUGH).real[: size[0], : size[1]]
    scaled: Pixels = ((field - field.mean()) / field.std())[None]
    return scaled


@corruption(
    "weather",
    ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
)
def fog(x: Pixels, draw: RandomState, thick: float, decay: float) -> Pixels:
    """Add a cloud that is rough at all scales, and dim the sum to the image's own maximum."""
    height, width = x.shape[1:]
    side = 1 << (max(height, width) - 1).bit_length()
    cloud = _plasma(draw, side, decay)[:height, :width]
    most = x.max()
    done: Pixels = (x + thick * cloud) * most / (most + thick)
    return done


def _plasma(draw: RandomState, side: int, decay: float) -> NDArray[np.float64]:
    """Draw a cloud [side, side] in [0, 1] by diamonds and squares; `side` is a power of two."""
    cloud = np.zeros((side, side))
    step, wild = side, 100.0

    def near(total: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean of four neighbours, and a random amount."""
        return total / 4 + wild * draw.uniform(-wild, wild, size=total.shape)

    while step >= 2:
        half = step // 2
        corners = cloud[::step, ::step]
        pairs = corners + np.roll(corners, -1, 0)
        cloud[half::step, half::step] = near(pairs + np.roll(pairs, -1, 1))
        middles = cloud[half::step, half::step]
        above = middles + np.roll(middles, 1, 0)
        cloud[::step, half::step] = near(above + corners + np.roll(corners, -1, 1))
        beside = middles + np.roll(middles, 1, 1)
        cloud[half::step, ::step] = near(beside + corners + np.roll(corners, -1, 0))
        step, wild = half, wild / decay
    cloud -= cloud.min()
    cloud /= cloud.max()
    return cloud
