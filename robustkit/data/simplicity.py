"""Data whose classes can be told by a simple part and by a complex one (Shah et al. 2020).

What a network learns of the two is a known result: the simple part alone (arXiv:2006.07710).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from robustkit.core.rng import task_key
from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Dataset, ImageSet
from robustkit.registry import datasets

Kind: TypeAlias = Literal["lms5", "ms57", "noisy_lms7"]
_FEATURES, _MARGIN = 50, 0.1
_TEST = 10_000


class _Recipe(NamedTuple):
    train: int
    first: int  # slabs of coordinate 0; 1: linear
    noisy: float  # share of its points that lie inside the margin
    others: int  # slabs of the 49 others


_RECIPES: dict[str, _Recipe] = {
    "lms5": _Recipe(100_000, 1, 0.0, 5),
    "ms57": _Recipe(100_000, 5, 0.0, 7),
    "noisy_lms7": _Recipe(40_000, 1, 0.1, 7),
}


@datasets.register("slabs", threat="linf:0.05", cites="arXiv:2006.07710", license="")
@dataclass(frozen=True)
class Slabs:
    """A table of 50 features: the first tells two classes simply, each of the others by slabs.

    `lms5`: a linear feature and 49 of five slabs; `ms57`: one of five and 49 of seven;
    `noisy_lms7`: a linear one that is right on 95% of the points, and 49 of seven that are always
    right. Slabs alternate between the classes, 0.2 apart, on [-1, 1]; written as (1 + v) / 2.
    Differs from the paper: features are not rotated, and the slabs of a class are drawn by binomial
    weights, so that no polynomial of a low degree tells the classes by one feature.

    Attributes:
        kind: lms5, ms57 or noisy_lms7.
        n: points of the split; 0: 10,000 to test, 100,000 or 40,000 to train.
    """

    kind: Kind = "lms5"
    n: int = 0

    def open(self, root: Path, split: str, download: bool) -> ImageSet:
        """Draw the points; no file is read."""
        recipe = _RECIPES[self.kind]
        count = self.n or (recipe.train if split == "train" else _TEST)
        x, y = _drawn(self.kind, count, split)
        return from_arrays(f"slabs({self.kind})", x[:, None, None], y, classes=2, layout="nchw")


@lru_cache(4)
def _drawn(kind: str, count: int, split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    recipe, draw = _RECIPES[kind], np.random.default_rng(task_key(f"slabs/{kind}/{split}"))
    y = draw.integers(0, 2, count)
    x = np.empty((count, _FEATURES))
    for feature in range(_FEATURES):
        x[:, feature] = _feature(y, recipe.others if feature else recipe.first, draw)
    inside = draw.uniform(size=count) < recipe.noisy
    x[inside, 0] = draw.uniform(-_MARGIN, _MARGIN, int(inside.sum()))
    return ((1 + x) / 2).astype(np.float32), y


def _feature(y: NDArray[np.int64], slabs: int, draw: np.random.Generator) -> NDArray[np.float64]:
    """Draw one feature: on the side of its class, or in one of the slabs of its class."""
    share = draw.uniform(size=len(y))
    if slabs == 1:
        linear: NDArray[np.float64] = (2 * y - 1) * (_MARGIN + (1 - _MARGIN) * share)
        return linear
    width = (2 - 2 * (slabs - 1) * _MARGIN) / slabs
    starts = (width + 2 * _MARGIN) * np.arange(slabs) - 1
    weights = np.array([math.comb(slabs - 1, place) for place in range(slabs)])
    chosen = np.empty(len(y))
    for label in (0, 1):
        # The middle slab is of class 0, its neighbours of class 1, and so on outward. Moments of
        # the classes then agree up to degree slabs − 2: the weights are those of a difference.
        own = weights * ((np.arange(slabs) - slabs // 2) % 2 == label)
        here = y == label
        chosen[here] = draw.choice(starts, int(here.sum()), p=own / own.sum())
    return chosen + width * share


@datasets.register("mnist_cifar", threat="linf:0.3", cites="arXiv:2006.07710", license="")
@dataclass(frozen=True)
class MnistCifar:
    """A digit 0 or 1 above an automobile or a truck of CIFAR-10: [3, 64, 32], two classes.

    Digits are framed to 32 x 32 and repeated to three channels; the pairs are drawn once within
    each class. Both are read from the data root, CIFAR-10 in whatever form it lies there.
    """

    def open(self, root: Path, split: str, download: bool) -> ImageSet:
        """Pair the images of both data sets."""
        digits = datasets.build("mnist").open(root, split, download)
        things = datasets.build("cifar10").open(root, split, download)
        pairs, y = list[NDArray[np.int64]](), list[int]()
        for label, (digit, thing) in enumerate(((0, 1), (1, 9))):
            chosen = _pairs(digits, things, (digit, thing), split)
            pairs += list(chosen)
            y += [label] * len(chosen)
        places = np.array(pairs)

        def read(indices: NDArray[np.int64]) -> NDArray[Any]:
            above, below = (
                data.fetch(places[indices, k])[0] for k, data in enumerate((digits, things))
            )
            framed = torch.nn.functional.pad(above, (2, 2, 2, 2)).expand(-1, 3, -1, -1)
            joined: NDArray[Any] = torch.cat([framed, below], 2).numpy()
            return joined

        return ImageSet(
            name="mnist_cifar", family="mnist_cifar", shape=(3, 64, 32), classes=2,
            labels=np.array(y), read=read, class_names=("0 / automobile", "1 / truck"),
            note=things.note,
        )  # fmt: skip


def _pairs(
    digits: Dataset, things: Dataset, classes: Sequence[int], split: str
) -> NDArray[np.int64]:
    """Return pairs of positions [n, 2] of one class, in random order, as many as the fewer."""
    draw = np.random.default_rng(task_key(f"mnist_cifar/{split}/{classes[0]}"))
    known = zip((digits, things), classes, strict=True)
    orders = [draw.permutation(np.flatnonzero(data.labels == label)) for data, label in known]
    count = min(map(len, orders))
    return np.stack([order[:count] for order in orders], 1)
