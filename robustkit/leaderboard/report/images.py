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


def data_uri(shown: Pixels) -> str:
    """Return a PNG as a `data:` address."""
    picture = Image.fromarray(shown)
    if max(picture.size) > LARGEST:
        picture.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
