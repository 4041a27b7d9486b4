"""Slabs and pairs of images: what tells the classes, alone, and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustkit.data.open import open_dataset
from robustkit.errors import UsageError


def table(kind: str, split: str = "test") -> tuple[np.ndarray, np.ndarray]:
    data = open_dataset(f"slabs(kind={kind}, n=4000)", split=split)
    assert data.shape == (1, 1, 50) and len(data) == 4000 and data.classes == 2
    x, y = data.fetch(range(4000))
    assert x.min() >= 0 and x.max() <= 1
    return 2 * x.flatten(1).double().numpy() - 1, y.numpy()


@pytest.mark.parametrize("kind, slabs", [("lms5", 5), ("ms57", 7), ("noisy_lms7", 7)])
def test_slabs_alternate_and_leave_gaps(kind: str, slabs: int) -> None:
    v, y = table(kind)
    width = (2 - 2 * (slabs - 1) * 0.1) / slabs
    place = (v[:, 5] + 1) / (width + 0.2)
    number, inside = np.floor(place + 1e-9).astype(int), (place % 1) * (width + 0.2)
    assert set(number) == set(range(slabs))
    assert inside.max() <= width + 1e-6
    assert np.array_equal((number - slabs // 2) % 2, y)


def test_no_low_moment_of_a_slab_feature_tells_the_classes() -> None:
    v, y = table("ms57")
    for feature, slabs in ((0, 5), (7, 7)):
        for power in range(1, slabs - 1):
            zero, one = (v[y == label, feature] ** power for label in (0, 1))
            error = np.sqrt(zero.var() / len(zero) + one.var() / len(one))
            assert abs(zero.mean() - one.mean()) < 4 * error


def test_the_linear_feature_has_a_margin_and_may_be_noisy() -> None:
    v, y = table("lms5")
    assert ((v[:, 0] > 0) == y).all() and np.abs(v[:, 0]).min() >= 0.1 - 1e-6
    noisy, y = table("noisy_lms7")
    assert ((noisy[:, 0] > 0) == y).mean() == pytest.approx(0.95, abs=0.015)
    assert (np.abs(noisy[:, 0]) < 0.1).mean() == pytest.approx(0.1, abs=0.02)


def test_points_repeat_and_splits_differ() -> None:
    assert np.array_equal(table("lms5")[0], table("lms5")[0])
    assert not np.array_equal(table("lms5")[0], table("lms5", "train")[0])
    assert len(open_dataset("slabs")) == 10_000
    with pytest.raises(UsageError, match="kind"):
        open_dataset("slabs(kind=other)")


def test_digits_stand_above_photos_of_their_class(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    y = np.array([0, 1, 2, 1, 0, 0, 9, 9])
    digits = draw.integers(0, 255, (8, 28, 28), dtype=np.uint8)
    things = draw.integers(0, 255, (8, 3, 32, 32), dtype=np.uint8)
    for name, pixels in (("mnist", digits), ("cifar10", things)):
        stored: dict[str, Any] = {f"x_{s}": pixels for s in ("train", "test")}
        stored |= {f"y_{s}": y for s in ("train", "test")}
        np.savez(tmp_path / f"{name}.npz", **stored)
    data = open_dataset("mnist_cifar", root=tmp_path)
    assert data.shape == (3, 64, 32) and data.labels.tolist() == [0, 0, 1, 1]
    x = data.fetch(range(4))[0]
    for row, label in zip(x, data.labels, strict=True):
        frame = torch.nn.functional.pad(torch.from_numpy(digits[y == label]) / 255, (2, 2, 2, 2))
        assert any(torch.equal(row[:, :32], one.expand(3, -1, -1)) for one in frame.float())
        photos = torch.from_numpy(things[y == (1, 9)[label]]) / 255
        assert any(torch.equal(row[:, 32:], one) for one in photos.float())
