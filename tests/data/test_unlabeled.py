"""A few labels and a pool: what is refused, what is read, and that no label of the pool is left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import ImageSet
from robustkit.data.unlabeled import open_pool, with_unlabeled
from robustkit.errors import UsageError


def points(n: int, seed: int = 0, side: int = 4) -> ImageSet:
    draw = np.random.default_rng(seed)
    x = draw.integers(256, size=(n, side, side)).astype(np.uint8)
    return from_arrays(f"points {seed}", x, np.arange(n) % 3, classes=3)


def bright(rows: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.full((len(rows), 1, 4, 4), 1.5)


def labels_by_image(data: ImageSet) -> dict[bytes, int]:
    x, y = data.fetch(range(len(data)))
    return {image.numpy().tobytes(): int(label) for image, label in zip(x, y, strict=True)}


@pytest.mark.parametrize("pooled", [5, 40])
def test_half_of_the_points_are_labeled_and_the_labels_of_the_others_are_hidden(
    pooled: int,
) -> None:
    data, pool = points(30), points(pooled, 1)
    joined = with_unlabeled(data, 12, pool=pool)
    size = max(12, pooled)
    known = joined.labels >= 0
    assert known.tolist() == [True] * size + [False] * size
    assert np.bincount(joined.labels[:12]).tolist() == [4, 4, 4]
    x, y = joined.fetch(np.arange(2 * size)[::-1].copy())
    own, others = labels_by_image(data), labels_by_image(pool)
    for image, label in zip(x, y.tolist(), strict=True):
        source = own if label >= 0 else others
        assert source[image.numpy().tobytes()] == (label if label >= 0 else -1 - label)


def test_without_a_pool_the_other_points_are_the_pool() -> None:
    data = points(30)
    joined = with_unlabeled(data, 12)
    assert len(joined) == 36
    x, _ = joined.fetch(range(36))
    pictures = [image.numpy().tobytes() for image in x]
    assert len(set(pictures[:18])) == 12
    assert len(set(pictures[18:])) == 18
    assert not set(pictures[:18]) & set(pictures[18:])


def test_test_images_in_the_pool_are_refused() -> None:
    data, test = points(30), points(10, 7)
    x = np.concatenate([points(5, 3).fetch(range(5))[0], test.fetch([4])[0]])
    pool = from_arrays("mine", x[:, 0], np.zeros(6, int))
    with pytest.raises(UsageError, match=r"got 1 of 6 images of mine .* first at 5"):
        with_unlabeled(data, 12, pool=pool, test=test)
    with_unlabeled(data, 12, test=test)


@pytest.mark.parametrize(
    ("pool", "told"),
    [
        (points(6, side=5), r"of the shape \[1, 4, 4\] of points 0, got \[1, 5, 5\]"),
        (replace(points(6), read=bright), r"expected float images in \[0, 1\]"),
    ],
)
def test_images_of_another_size_or_range_are_refused(pool: ImageSet, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        with_unlabeled(points(30), 12, pool=pool)


def test_a_pool_of_all_points_is_empty() -> None:
    with pytest.raises(UsageError, match="got none: all 30 points"):
        with_unlabeled(points(30), 30)


def test_a_file_without_labels_is_a_pool(tmp_path: Path) -> None:
    np.savez(tmp_path / "pool.npz", x=np.zeros((6, 4, 4), np.uint8))
    pool = open_pool(f"npz:{tmp_path / 'pool.npz'}", classes=3)
    joined = with_unlabeled(points(30), 12, pool=pool)
    assert joined.labels[12:].tolist() == [-4] * 12  # no class is 3
