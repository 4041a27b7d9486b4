"""AugMix images: several chains of simple operations, mixed with the image that they began with.

Hendrycks et al. 2020 (arXiv:1912.02781), algorithm 1, with the operations and constants of the
authors' code. What the corruptions of the benchmark do (colour, contrast, brightness, sharpness) is
not among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.random import MT19937, RandomState, SeedSequence
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Generator, Tensor

from robustkit.core.types import Images

_CHAINS, _DEEPEST = 3, 3
_SEVERITY = 3.0
Operation = Callable[[Image.Image, RandomState], Image.Image]


def _level(draw: RandomState) -> float:
    return float(draw.uniform(0.1, _SEVERITY))


def _sign(draw: RandomState) -> int:
    return 1 if draw.uniform() < 0.5 else -1


def _moved(image: Image.Image, rows: Sequence[float]) -> Image.Image:
    affine, smooth = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return image.transform(image.size, affine, tuple(rows), resample=smooth)


def _posterize(image: Image.Image, draw: RandomState) -> Image.Image:
    return ImageOps.posterize(image, 4 - int(_level(draw) * 0.4))


def _rotate(image: Image.Image, draw: RandomState) -> Image.Image:
    degrees = _sign(draw) * int(3 * _level(draw))
    return image.rotate(degrees, resample=Image.Resampling.BILINEAR)


def _solarize(image: Image.Image, draw: RandomState) -> Image.Image:
    return ImageOps.solarize(image, 256 - int(25.6 * _level(draw)))


def _shear_x(image: Image.Image, draw: RandomState) -> Image.Image:
    return _moved(image, (1, _sign(draw) * 0.03 * _level(draw), 0, 0, 1, 0))


def _shear_y(image: Image.Image, draw: RandomState) -> Image.Image:
    return _moved(image, (1, 0, 0, _sign(draw) * 0.03 * _level(draw), 1, 0))


def _translate_x(image: Image.Image, draw: RandomState) -> Image.Image:
    return _moved(image, (1, 0, _sign(draw) * int(_level(draw) * image.width / 30), 0, 1, 0))


def _translate_y(image: Image.Image, draw: RandomState) -> Image.Image:
    return _moved(image, (1, 0, 0, 0, 1, _sign(draw) * int(_level(draw) * image.height / 30)))


OPERATIONS: tuple[Operation, ...] = (
    lambda image, draw: ImageOps.autocontrast(image),
    lambda image, draw: ImageOps.equalize(image),
    _posterize,
    _rotate,
    _solarize,
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
)


def mixed(image: NDArray[np.float32], draw: RandomState) -> NDArray[np.float32]:
    """(1 − m) x + m Σ w_i chain_i(x), w ~ Dirichlet(1, 1, 1), m ~ Beta(1, 1); [c, h, w] in [0, 1].

    A chain is one to three operations in a row. They work on 8 bits, the mixture does not.
    """
    weights = draw.dirichlet([1.0] * _CHAINS)
    share = draw.beta(1.0, 1.0)
    levels = np.round(image * 255).astype(np.uint8)
    start = Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0))
    total = np.zeros(image.shape, dtype=np.float64)
    for weight in weights:
        made = start
        for _ in range(draw.randint(1, _DEEPEST + 1)):
            made = OPERATIONS[draw.randint(len(OPERATIONS))](made, draw)
        pixels = np.asarray(made, dtype=np.float64) / 255
        total += weight * (pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
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
