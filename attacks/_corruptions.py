"""Common corruptions: eighteen functions of an image, constants by severity, and a generator.

One decorated function per corruption, in the file of its group (_noise, _blur, _weather, _digital);
nothing else names them. All is done on the CPU in float64 and truncated to 8 bits, as CIFAR-10-C
and ImageNet-C are: the same key gives the same bytes on every device, in every batch and after
every interruption.

Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and
perturbations", ICLR 2019 (arXiv:1903.12261).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.float64]
"""[c, h, w] in [0, 1]."""
Apply: TypeAlias = Callable[..., Pixels]

SEVERITIES = range(1, 6)
LARGE = 100  # pixels: an image with a longer side takes the constants of ImageNet-C
EXTRA = "extra"  # the group that is no part of the benchmark: for validation


class Corruption(NamedTuple):
    """One corruption.

    Attributes:
        group: noise, blur, weather, digital or extra.
        small, large: its constants by severity, those of CIFAR-10-C and of ImageNet-C.
        apply: from (image, generator, constants) to an image, which may leave [0, 1].
    """

    name: str
    group: str
    small: Sequence[Any]
    large: Sequence[Any]
    apply: Apply


CORRUPTIONS: dict[str, Corruption] = {}
_GROUPS = ("noise", "blur", "weather", "digital", EXTRA)


def corruption(group: str, small: Sequence[Any], large: Sequence[Any]) -> Callable[[Apply], Apply]:
    """Add a function of (image, generator, constants) to the list, under its own name."""

    def decorate(apply: Apply) -> Apply:
        name = apply.__name__
        CORRUPTIONS[name] = Corruption(name, group, small, large, apply)
        return apply

    return decorate


def grouped() -> dict[str, list[str]]:
    """Name the corruptions of each group, and those of the benchmark together as `all`."""
    known = CORRUPTIONS.values()
    groups = {group: [one.name for one in known if one.group == group] for group in _GROUPS}
    return {"all": [name for group in _GROUPS[:-1] for name in groups[group]], **groups}


def corrupt(
    image: NDArray[Any], name: str, severity: int, point: int, *, large: bool | None = None
) -> NDArray[np.uint8]:
    """Corrupt one image.

    Args:
        image: [c, h, w] in [0, 1], gray or of three channels, from 28 pixels a side.
        severity: 1 to 5; 0 leaves the image as it is, but for its rounding to 8 bits.
        point: position of the image in its data set. With name and severity it keys every draw, so
            that all models meet the same images.
        large: whether to take the constants of ImageNet-C; by default those of the image's size.

    Returns:
        [c, h, w], 8 bits. The result is truncated, not rounded, as the published sets are.
    """
    x = np.asarray(image, dtype=np.float64)
    if severity == 0:
        return np.round(x * 255).astype(np.uint8)
    chosen = CORRUPTIONS[name]
    if large is None:
        large = max(x.shape[1:]) > LARGE
    constants = (chosen.large if large else chosen.small)[severity - 1]
    constants = constants if isinstance(constants, tuple) else (constants,)
    # RandomState, unlike Generator, promises the same stream in every version of NumPy.
    words = np.random.SeedSequence([zlib.crc32(name.encode()), severity, point])
    draw = np.random.RandomState(np.random.MT19937(words))
    done = chosen.apply(x, draw, *constants)
    # What lies within float64's rounding of a whole level is that level.
    return np.floor(np.clip(done, 0, 1) * 255 + 1e-9).astype(np.uint8)
