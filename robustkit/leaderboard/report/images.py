"""Arrays as pictures: gray or color, as PNG inside a page."""

from __future__ import annotations

import base64
import io
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels: TypeAlias = NDArray[np.uint8]
LARGEST = 160  # pixels; larger images are shown scaled down
SHOWN = 112  # pixels on the screen that a small image is magnified to, at most


def pixels(image: NDArray[Any]) -> Pixels:
    """Turn [c, h, w] in [0, 1] into bytes: [h, w, 3] for three channels or more, else [h, w].

    Of four channels and more the first three are shown, of two the mean.
    """
    channels = image[:3].transpose(1, 2, 0) if len(image) >= 3 else image.mean(0)
    shown: Pixels = np.rint(np.clip(channels, 0, 1) * 255).astype(np.uint8)
    return shown


def magnified(clean: NDArray[Any], adversarial: NDArray[Any]) -> tuple[NDArray[Any], float]:
    """Return 1/2 + factor · (adversarial − clean), and the factor that makes it reach 0 or 1."""
    delta = adversarial - clean
    largest = float(np.abs(delta).max())
    factor = 0.5 / largest if largest > 0 else 1.0
    return 0.5 + factor * delta, factor


def fitted(image: NDArray[Any]) -> NDArray[Any]:
    """Shrink [c, h, w] to at most `LARGEST` pixels a side, each the mean of what it covers."""
    height, width = image.shape[1:]
    scale = LARGEST / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    channels = (Image.fromarray(channel.astype(np.float32)) for channel in image)
    return np.stack([np.asarray(c.resize(size, Image.Resampling.BOX)) for c in channels])


def data_uri(shown: Pixels) -> str:
    """Return a PNG as a `data:` address."""
    file = io.BytesIO()
    Image.fromarray(shown).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
