"""Images kept in memory: each is read once, and what is fetched is what the source gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from robustkit.data import held as module
from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import ImageSet, subset
from robustkit.data.held import held


def counted(dtype: Any) -> tuple[ImageSet, list[int]]:
    x = np.random.default_rng(0).integers(0, 256, (12, 3, 5, 5), dtype=np.uint8)
    images = x if dtype is np.uint8 else (x / 255).astype(dtype)
    data, asked = from_arrays("some", images, np.arange(12) % 3), list[int]()

    def read(indices: Any) -> Any:
        asked.extend(indices.tolist())
        return data.read(indices)

    return replace(data, read=read), asked


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_what_is_fetched_is_the_same(dtype: Any) -> None:
    data, _ = counted(dtype)
    kept = held(data)
    for chosen in ([3, 1, 3], [1], [], [11, 0, 3, 3]):
        for a, b in zip(kept.fetch(chosen), data.fetch(chosen), strict=True):
            assert torch.equal(a, b)


def test_bytes_are_read_once_also_through_a_subset() -> None:
    data, asked = counted(np.uint8)
    part = subset(held(data), [5, 2, 8])
    asked.clear()  # of the first image's type
    for chosen in ([0, 1], [1, 2], [2, 0, 1]):
        part.fetch(chosen)
    assert asked == [5, 2, 8]


def test_a_copy_is_no_way_to_change_them() -> None:
    kept = held(counted(np.uint8)[0])
    before = kept.fetch([0])[0].clone()
    kept.fetch([0])[0].zero_()
    assert torch.equal(kept.fetch([0])[0], before)


def test_more_than_fits_is_read_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = counted(np.uint8)
    monkeypatch.setattr(module, "_MOST", 12 * 75 - 1)
    assert held(data) is data
