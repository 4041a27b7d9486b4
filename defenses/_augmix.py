"""AugMix images: several chains of simple operations, mixed with the image that they began with.

Hendrycks et al. 2020 (arXiv:1912.02781), algorithm 1, with the operations and constants of the
authors' code. What the corruptions of the benchmark do (colour, contrast, brightness, sharpness) is
not among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.random import MT19937, RandomState, SeedSequence
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor

from robustkit.core.types import Images

_CHAINS, _DEEPEST = 3, 3
_SEVERITY = 3.0
Bytes: TypeAlias = NDArray[np.uint8]
"""[c, h, w]."""
Operation: TypeAlias = Callable[[Bytes, RandomState], Bytes]


def _level(draw: RandomState) -> float:
    return float(draw.uniform(0.1, _SEVERITY))


def _signed(draw: RandomState) -> float:
    level = _level(draw)
    return level if draw.uniform() < 0.5 else -level


def _autocontrast(image: Bytes, draw: RandomState) -> Bytes:
    low, high = image.min((1, 2), keepdims=True), image.max((1, 2), keepdims=True)
    scale = 255 / np.maximum(high.astype(np.float64) - low, 1)
    return np.where(high > low, (image - low) * scale, image).astype(np.uint8)


def _equalize(image: Bytes, draw: RandomState) -> Bytes:
    return np.stack([_equalized(channel) for channel in image])


def _equalized(channel: Bytes) -> Bytes:
    counts = np.bincount(channel.ravel(), minlength=256)
    step = (channel.size - counts[channel.max()]) // 255
    if not step:
        return channel
    below = np.cumsum(counts) - counts
    levels: Bytes = ((step // 2 + below) // step).clip(0, 255).astype(np.uint8)
    return levels[channel]


def _posterize(image: Bytes, draw: RandomState) -> Bytes:
    return image & np.uint8(256 - 2 ** (4 + int(_level(draw) * 0.4)))


def _solarize(image: Bytes, draw: RandomState) -> Bytes:
    return np.where(image < 256 - int(25.6 * _level(draw)), image, 255 - image)


def _rotate(image: Bytes, draw: RandomState) -> Bytes:
    degrees = int(3 * _signed(draw))
    return _picture(image, lambda p: p.rotate(degrees, resample=Image.Resampling.BILINEAR))


def _shear_x(image: Bytes, draw: RandomState) -> Bytes:
    return _moved(image, (1, 0.03 * _signed(draw), 0, 0, 1, 0))


def _shear_y(image: Bytes, draw: RandomState) -> Bytes:
    return _moved(image, (1, 0, 0, 0.03 * _signed(draw), 1, 0))


def _translate_x(image: Bytes, draw: RandomState) -> Bytes:
    return _moved(image, (1, 0, int(_signed(draw) * image.shape[2] / 30), 0, 1, 0))


def _translate_y(image: Bytes, draw: RandomState) -> Bytes:
    return _moved(image, (1, 0, 0, 0, 1, int(_signed(draw) * image.shape[1] / 30)))


def _moved(image: Bytes, rows: Sequence[float]) -> Bytes:
    affine, smooth = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return _picture(image, lambda p: p.transform(p.size, affine, tuple(rows), resample=smooth))


def _picture(image: Bytes, change: Callable[[Image.Image], Image.Image]) -> Bytes:
    """Let Pillow change an image. Its operations on single pixels take longer than NumPy's."""
    gray = len(image) == 1
    made = np.asarray(change(Image.fromarray(image[0] if gray else image.transpose(1, 2, 0))))
    return made[None] if gray else made.transpose(2, 0, 1)


OPERATIONS: dict[str, Operation] = {
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "posterize": _posterize,
    "rotate": _rotate,
    "solarize": _solarize,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
_LISTED = tuple(OPERATIONS.values())


def mixed(image: NDArray[np.float32], draw: RandomState) -> NDArray[np.float32]:
    """(1 − m) x + m Σ w_i chain_i(x), w ~ Dirichlet(1, 1, 1), m ~ Beta(1, 1); [c, h, w] in [0, 1].

    A chain is one to three operations in a row. They work on 8 bits, the mixture does not.
    """
    weights = draw.dirichlet([1.0] * _CHAINS)
    share = draw.beta(1.0, 1.0)
    start = np.round(image * 255).astype(np.uint8)
    total = np.zeros(image.shape)
    for weight in weights:
        made = start
        for _ in range(draw.randint(1, _DEEPEST + 1)):
            made = _LISTED[draw.randint(len(_LISTED))](made, draw)
        total += weight / 255 * made
    done: NDArray[np.float32] = ((1 - share) * image + share * total).astype(np.float32)
    return done.clip(0, 1)


def augmented(x: Images, points: Tensor | None, generator: Generator, copies: int) -> list[Images]:
    """Return `copies` mixed versions of every image of `x` [b, c, h, w].

    The draws of an image are keyed by one number of `generator`, its point and the copy: they do
    not depend on what else is in the batch.

    Args:
        points: identity of each image [b]; its place in the batch where none is known.
    """
    word = int(torch.randint(2**31, (1,), generator=generator))
    places = range(len(x)) if points is None else points.tolist()
    images = x.detach().cpu().numpy()
    return [
        torch.from_numpy(
            np.stack(
                [
                    mixed(image, RandomState(MT19937(SeedSequence([word, int(place), copy]))))
                    for image, place in zip(images, places, strict=True)
                ]
            )
        ).to(x)
        for copy in range(copies)
    ]
