"""What a run reads stays what it was, is its own, and lies in the box."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Dataset, ImageSet, digest
from robustkit.data.open import open_dataset
from robustkit.data.pinned import PinnedData
from robustkit.errors import RobustkitError, UsageError

ALL = np.arange(6)


def floats() -> NDArray[np.float32]:
    return np.random.default_rng(0).random((6, 2, 5, 7), dtype=np.float32)


def pinned(data: Dataset, box: tuple[float, float] = (0, 1)) -> PinnedData:
    found = PinnedData(data, box)
    found.pin(ALL)
    return found


def npz_file(folder: Path, **more: Any) -> Path:
    path = folder / "set.npz"
    np.savez(path, x=floats(), y=ALL % 3, layout="nchw", **more)
    return path


def test_the_digest_is_that_of_the_data() -> None:
    data = from_arrays("toy", floats(), ALL % 3, layout="nchw")
    found = pinned(data)
    assert found.content == digest(data, ALL)
    found.verify()


def test_a_changed_pixel_ends_the_run_with_both_digests() -> None:
    x = floats()
    data = from_arrays("toy", x, ALL % 3, layout="nchw")
    found = pinned(data)
    before = found.content
    x[4, 1, 2, 3] = 1 - x[4, 1, 2, 3]
    found.fetch([0, 1, 2])
    after = digest(data, ALL)
    with pytest.raises(RobustkitError, match=f"point 4 is not .*{before}, now it is {after}") as e:
        found.fetch([3, 4])
    assert e.value.exit_code == 3
    with pytest.raises(RobustkitError, match=f"{before}, now it is {after}"):
        pinned_before = pinned(data)
        pinned_before.content = before  # as if no point had been read since
        pinned_before.verify()


def test_a_file_that_is_written_over_is_named(tmp_path: Path) -> None:
    path = npz_file(tmp_path)
    data = open_dataset(f"npz:{path}")
    found = pinned(data)
    place = path.read_bytes().index(floats().tobytes()[:64])
    with path.open("r+b") as file:
        file.seek(place)
        file.write(np.float32(0.5).tobytes())
    with pytest.raises(RobustkitError, match=r"set\.npz: the data changed .*digest"):
        found.verify()


@pytest.mark.parametrize("left", [0, 300, 1500])
def test_a_file_that_is_cut_short_is_an_error_and_no_bus_error(tmp_path: Path, left: int) -> None:
    x = np.zeros((6, 1, 256, 256), dtype=np.float32)  # more than what is read at once
    np.savez(tmp_path / "set.npz", x=x, y=ALL % 3)
    found = pinned(open_dataset(f"npz:{tmp_path / 'set.npz'}"))
    os.truncate(tmp_path / "set.npz", left)
    with pytest.raises(RobustkitError, match=r"set\.npz.* has become shorter") as caught:
        found.fetch([5])
    assert caught.value.exit_code == 3 and found.content in str(caught.value)


def test_binary_batches_can_be_cut_too(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "test_batch.bin").write_bytes(bytes(6 * 3073))
    found = pinned(open_dataset("cifar10", root=tmp_path))
    os.truncate(folder / "test_batch.bin", 3073)
    with pytest.raises(RobustkitError, match="has become shorter"):
        found.fetch([5])


class Odd:
    """A data set of the user's own that hands out its own memory, in float64 and not in order."""

    name, family, shape, classes = "odd", "odd", (2, 5, 7), 3
    class_names: tuple[str, ...] = ()
    note = ""

    def __init__(self) -> None:
        self.x = torch.from_numpy(floats()).double().permute(0, 2, 3, 1).contiguous()
        self.labels = ALL % 3
        self.augment = from_arrays("toy", floats(), ALL % 3, layout="nchw").augment

    def __len__(self) -> int:
        return 6

    def fetch(self, indices: Any) -> Any:
        if len(indices) == 6:
            return self.x.permute(0, 3, 1, 2), torch.from_numpy(self.labels)
        return self.x[indices].permute(0, 3, 1, 2), torch.from_numpy(self.labels[indices])


def test_what_is_handed_out_is_float32_contiguous_and_a_copy() -> None:
    odd = Odd()
    assert isinstance(odd, Dataset)
    found = pinned(odd)
    for _ in range(2):
        x, y = found.fetch(ALL)
        assert x.dtype == torch.float32 and x.is_contiguous() and y.dtype == torch.int64
        assert torch.equal(x, torch.from_numpy(floats()))
        x.zero_()
        y.zero_()
    found.verify()


def test_a_fetch_of_another_shape_is_refused() -> None:
    odd = Odd()
    odd.shape = (2, 7, 5)
    with pytest.raises(UsageError, match=r"images \[6, 2, 7, 5\].*got \[6, 2, 5, 7\]"):
        pinned(odd)


class TestBox:
    def test_a_point_outside_the_box_is_refused(self) -> None:
        x = np.full((6, 1, 4, 4), 0.5, dtype=np.float32)
        x[3, 0, 2, 2] = 0.9
        data = from_arrays("toy", x, ALL % 3, layout="nchw")
        with pytest.raises(
            UsageError, match=r"point 3 holds 0\.89.*outside the box \[0\.2, 0\.8\]"
        ):
            pinned(data, (0.2, 0.8))
        pinned(replace(data, read=lambda i: x[i] * 0 + 0.5), (0.2, 0.8))

    def test_data_in_another_box(self) -> None:
        x = floats() * 2 - 1
        data = from_arrays("toy", x, ALL % 3, layout="nchw", box=(-1, 1))
        assert isinstance(data, ImageSet)
        assert torch.equal(pinned(data, (-1, 1)).fetch(ALL)[0], torch.from_numpy(x))
        with pytest.raises(UsageError, match=r"outside the box \[0, 1\] of the threat model"):
            pinned(data)
