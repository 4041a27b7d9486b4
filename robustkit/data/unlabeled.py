"""Training data of which a few points have labels, joined with a pool of images without.

The labels of what is unlabeled are stored as their complement (−1 − label): negative, so that no
loss can take them for labels, and still there to say how many guesses at them were right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustkit.core.types import Images
from robustkit.data import npz
from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Dataset, ImageSet, subset
from robustkit.data.open import open_dataset
from robustkit.data.sampling import select
from robustkit.errors import UsageError

_CHUNK = 1024


def open_pool(text: str, *, classes: int, root: Path | None = None) -> Dataset:
    """Open a pool as `open_dataset` does; an npz may lack `y`.

    Args:
        classes: of the labeled data; images without a label get this number, which is no class.
        root: the data root.

    Raises:
        UsageError: as `open_dataset`.
    """
    kind, colon, rest = text.partition(":")
    path = Path(rest).expanduser()
    if kind == "npz" and colon and "y" not in npz.keys(path):
        x = npz.rows(path, "x")
        return from_arrays(text, x, np.full(len(x), classes), classes=classes + 1)
    return open_dataset(text, root=root, split="train")


def with_unlabeled(
    data: Dataset, labels: int, *, pool: Dataset | None = None, test: Dataset | None = None
) -> ImageSet:
    """Join `labels` points of `data` with unlabeled ones, as many draws of each.

    The smaller part is repeated to the size of the larger, so that a batch is half labeled, on
    average. Every image of the pool is read once.

    Args:
        data: as many of its points of each class keep their labels, the same for every training.
        pool: the images without labels; the other points of `data` when not given.
        test: images that must not lie in the pool.

    Returns:
        A data set whose labels are negative where a point is unlabeled: −1 − its label.

    Raises:
        UsageError: for too many labels, an empty pool, images of another size, outside [0, 1], or
            equal to a test image.
    """
    chosen = select(data, labels, 0, "balanced")
    if pool is None:
        pool = subset(data, np.setdiff1d(np.arange(len(data)), chosen))
    if not len(pool):
        raise UsageError(
            f"expected unlabeled images, got none: all {len(data)} points of {data.name} keep "
            "their labels. Take fewer labels, or name a pool."
        )
    if tuple(pool.shape) != tuple(data.shape):
        raise UsageError(
            f"expected unlabeled images of the shape {list(data.shape)} of {data.name}, got "
            f"{list(pool.shape)} of {pool.name}. Resize or crop them first."
        )
    _refuse_test_images(pool, test)
    places = np.arange(max(len(chosen), len(pool)))
    sources = ((data, chosen[places % len(chosen)]), (pool, places % len(pool)))
    known, hidden = (source.labels[rows] for source, rows in sources)
    return replace(
        subset(data, chosen[:1]),
        labels=np.concatenate([known, ~hidden]),
        read=lambda rows: _read(sources, rows),
        source="",
    )


def _read(
    sources: tuple[tuple[Dataset, NDArray[np.int64]], ...], rows: NDArray[np.int64]
) -> NDArray[Any]:
    """Read rows of one source after the other; all have as many."""
    part, place = np.divmod(rows, len(sources[0][1]))
    made = np.empty((len(rows), *sources[0][0].shape), dtype=np.float32)
    for number, (source, order) in enumerate(sources):
        mine = part == number
        if mine.any():
            made[mine] = source.fetch(order[place[mine]])[0].numpy()
    return made


def _refuse_test_images(pool: Dataset, test: Dataset | None) -> None:
    seen = set() if test is None else {key for x in _images(test) for key in _digests(x)}
    found = [key in seen for x in _images(pool) for key in _digests(x)]
    if any(found):
        raise UsageError(
            f"expected a pool without test images, got {sum(found)} of {len(found)} images of "
            f"{pool.name} that are test images too, first at {found.index(True)}. Leave them out: "
            "what a network was trained on says nothing about other images."
        )


def _images(data: Dataset) -> Iterator[Images]:
    for start in range(0, len(data), _CHUNK):
        yield data.fetch(np.arange(start, min(start + _CHUNK, len(data))))[0]


def _digests(x: Images) -> list[bytes]:
    return [hashlib.sha256(image.tobytes()).digest() for image in x.numpy()]
