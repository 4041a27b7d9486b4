"""What is said of data that is not as expected must be true, and what is meant must be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from robustkit.data.arrays import as_dataset, from_arrays
from robustkit.data.open import open_dataset
from robustkit.errors import UsageError

Y = np.array([0, 1, 0, 1])
GRAY = np.linspace(0, 1, 80, dtype=np.float32).reshape(4, 5, 4)


class TestRange:
    @pytest.mark.parametrize(
        ("x", "told"),
        [
            (GRAY * 2 - 1, r"\[-1, 1\]: store x \* 0\.5 \+ 0\.5 .*--mean and --std.*lower=-1"),
            ((GRAY - 0.45) / 0.22, r"normalized: undo it \(x \* std \+ mean\)"),
            (GRAY * 255, "Divide by the largest value a pixel can have"),
            (GRAY * 1.02 - 0.01, r"If a resize has overshot, clip them: x\.clip\(0, 1\)"),
            (np.where(GRAY > 0.9, np.nan, GRAY), "NaN or infinite values"),
            (np.where(GRAY > 0.9, np.inf, GRAY), "NaN or infinite values"),
        ],
    )
    def test_the_advice_fits_the_data(self, x: NDArray[Any], told: str) -> None:
        with pytest.raises(UsageError, match=told) as caught:
            from_arrays("toy", x, Y)
        assert ("largest value" in str(caught.value)) == ("largest value" in told)

    def test_the_number_is_shown_as_it_is(self) -> None:
        x = GRAY.copy()
        x[2, 1, 1] = 1.00001
        with pytest.raises(UsageError, match=r"got 1\.0000\d+ at point 2"):
            from_arrays("toy", x, Y)

    @pytest.mark.parametrize("off", [1.0000001, 1.0000004, -1e-8, -4e-7])
    def test_a_rounding_of_float32_is_clipped_and_said(self, off: float) -> None:
        x = GRAY.astype(np.float64)
        x[2, 1, 1] = off
        data = from_arrays("toy", x, Y)
        assert data.fetch([2])[0][0, 0, 1, 1] == (1 if off > 1 else 0)
        if np.float32(off) not in (0, 1):
            assert data.note == ("pixels outside [0, 1] by a rounding of float32 are clipped to it")
        assert from_arrays("toy", GRAY, Y).note == ""

    def test_integers_are_bytes(self) -> None:
        x = np.arange(80).reshape(4, 5, 4)
        wide = from_arrays("toy", x, Y).fetch([3])[0]
        assert torch.equal(wide, from_arrays("toy", x.astype(np.uint8), Y).fetch([3])[0])
        with pytest.raises(UsageError, match="integer images from 0 to 255, got 260 at point 1"):
            from_arrays("toy", x * 10, Y).fetch([3])
        with pytest.raises(UsageError, match=r"from 0 to 1: .* black.*astype\(\'float32\'\)"):
            from_arrays("toy", x % 2, Y)


@pytest.mark.parametrize("label", [0, 1, 4])
def test_points_of_one_class_are_a_subset_whichever_it_is(label: int) -> None:
    data = from_arrays("toy", GRAY, np.full(4, label))
    assert data.classes == max(2, label + 1)


class TestAxes:
    def test_tensors_are_channels_first(self) -> None:
        x = torch.rand(5, 1, 4, 4)
        data = as_dataset("pair", (x, torch.arange(5) % 2))
        assert data.shape == (1, 4, 4) and torch.equal(data.fetch(range(5))[0], x)
        assert as_dataset("pair", (torch.rand(5, 3, 8, 3), Y[[0, 1, 2, 3, 0]])).shape == (3, 8, 3)

    def test_tensors_whose_channels_are_last_are_read_as_before(self) -> None:
        assert as_dataset("pair", (torch.rand(4, 8, 9, 3), Y)).shape == (3, 8, 9)

    def test_arrays_are_not_guessed(self) -> None:
        with pytest.raises(UsageError, match="both axis 1 and axis 3"):
            as_dataset("pair", (np.zeros((4, 1, 4, 4), dtype=np.uint8), Y))


class TestTensors:
    def test_bfloat16(self) -> None:
        x = torch.rand(4, 3, 8, 8).bfloat16()
        assert torch.equal(as_dataset("pair", (x, Y)).fetch(range(4))[0], x.float())

    @pytest.mark.parametrize(
        "x", [torch.rand(4, 3, 8, 8).to_sparse(), torch.empty(4, 3, 8, 8, device="meta")]
    )
    def test_what_is_no_array(self, x: torch.Tensor) -> None:
        with pytest.raises(UsageError, match="pair: expected x and y as arrays or dense tensors"):
            as_dataset("pair", (x, Y))

    def test_complex_numbers(self) -> None:
        with pytest.raises(UsageError, match="expected x as bytes, or as float"):
            as_dataset("pair", (torch.zeros(4, 3, 8, 8, dtype=torch.complex64), Y))


class TestFolders:
    def make(self, root: Path, names: list[str]) -> str:
        for value, name in enumerate(names):
            (root / name).mkdir()
            Image.new("L", (3, 2), value).save(root / name / "0.png")
        return f"folder:{root}"

    def test_numbers_are_sorted_as_numbers(self, tmp_path: Path) -> None:
        data = open_dataset(self.make(tmp_path, ["0", "1", "10", "2"]))
        assert data.class_names == ("0", "1", "2", "10")
        assert (data.fetch(range(4))[0][:, 0, 0, 0] * 255).round().tolist() == [0, 1, 3, 2]
        assert data.note == "classes are the subfolders in the order of their numbers"

    def test_where_both_orders_agree_nothing_is_said(self, tmp_path: Path) -> None:
        assert open_dataset(self.make(tmp_path, ["0", "1", "2"])).note == ""

    def test_other_names_are_sorted_as_text(self, tmp_path: Path) -> None:
        data = open_dataset(self.make(tmp_path, ["1", "10", "2", "x"]))
        assert data.class_names == ("1", "10", "2", "x") and data.note == ""
