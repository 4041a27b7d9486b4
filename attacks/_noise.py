"""Noise: Gaussian, shot (Poisson), impulse (salt and pepper), and speckle as an extra."""

from __future__ import annotations

import numpy as np
from numpy.random import RandomState

from ._corruptions import EXTRA, Pixels, corruption


@corruption("noise", (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38))
def gaussian_noise(x: Pixels, draw: RandomState, deviation: float) -> Pixels:
    """Add normal noise."""
    return x + draw.normal(scale=deviation, size=x.shape)


@corruption("noise", (500, 250, 100, 75, 50), (60, 25, 12, 5, 3))
def shot_noise(x: Pixels, draw: RandomState, photons: float) -> Pixels:
    """Count photons: Poisson with `photons` for a white pixel."""
    return draw.poisson(x * photons) / photons


@corruption("noise", (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27))
def impulse_noise(x: Pixels, draw: RandomState, amount: float) -> Pixels:
    """Set a share of all numbers to black or white, half each."""
    hit, white = draw.uniform(size=x.shape) < amount, draw.uniform(size=x.shape) < 0.5
    return np.where(hit, white.astype(np.float64), x)


@corruption(EXTRA, (0.06, 0.10, 0.12, 0.16, 0.20), (0.15, 0.20, 0.35, 0.45, 0.60))
def speckle_noise(x: Pixels, draw: RandomState, deviation: float) -> Pixels:
    """Add normal noise in proportion to the pixel."""
    return x + x * draw.normal(scale=deviation, size=x.shape)
