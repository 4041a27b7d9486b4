"""Vectors, signals and volumes as data; boxes, and a range for every feature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robustkit.core.threat import Threat
from robustkit.data.arrays import as_dataset, from_arrays, open_npz
from robustkit.data.dataset import subset
from robustkit.data.pinned import PinnedData
from robustkit.errors import UsageError
from robustkit.models.normalization import in_units

DRAW = np.random.default_rng(0)
Y = np.array([0, 1, 0, 1])
TABLE = np.array([[1, 200.0, -3], [2, 100, -1], [3, 0, -2], [1, 50, -3]])
LOWER, UPPER = np.array([1, 0, -3]), np.array([3, 200, -1])


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((7,), None), ((7,), "nd"), ((2, 9), "nct"), ((2, 3, 4, 5), None), ((1, 3, 4, 5), "ncdhw")],
)
def test_floats_of_any_shape_come_back_as_they_are(
    shape: tuple[int, ...], layout: str | None, tmp_path: Path
) -> None:
    x = DRAW.uniform(size=(4, *shape)).astype(np.float32)
    more: Any = {} if layout is None else {"layout": layout}
    np.savez(tmp_path / "x.npz", x=x, y=Y, **more)
    data = open_npz("npz", tmp_path / "x.npz")
    assert data.shape == shape
    assert np.array_equal(data.fetch([3, 1])[0], x[[3, 1]])


def test_three_axes_are_images_unless_they_are_said_to_be_signals() -> None:
    x = DRAW.uniform(size=(4, 6, 5))
    assert from_arrays("x", x, Y).shape == (1, 6, 5)
    assert from_arrays("x", x, Y, layout="nct").shape == (6, 5)
    assert as_dataset("x", (torch.rand(4, 6), torch.tensor(Y))).shape == (6,)
    items = torch.utils.data.TensorDataset(torch.rand(4, 6), torch.tensor(Y))
    assert as_dataset("x", items).shape == (6,)


def test_ranges_make_shares_and_the_model_gets_the_units_back(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=TABLE, y=Y, lower=LOWER, upper=UPPER)
    data = open_npz("npz", tmp_path / "x.npz")
    x = data.fetch(range(4))[0]
    assert np.allclose(x, (TABLE - LOWER) / (UPPER - LOWER))
    assert x.dtype == torch.float32
    model = in_units(nn.Identity(), subset(data, [0, 1, 2, 3]))
    assert torch.allclose(model(x), torch.tensor(TABLE).float(), rtol=1e-6)
    assert torch.allclose(in_units(lambda z: 2 * z, data)(x), torch.tensor(2 * TABLE).float())
    assert in_units(model, from_arrays("plain", x.numpy(), Y)) is model


def test_whole_numbers_are_features_where_ranges_are_given_and_bytes_where_not() -> None:
    whole = TABLE.astype(int)
    assert torch.equal(
        from_arrays("x", whole, Y, lower=LOWER, upper=UPPER).fetch([0])[0],
        from_arrays("x", TABLE, Y, lower=LOWER, upper=UPPER).fetch([0])[0],
    )
    with pytest.raises(UsageError, match="integer images from 0 to 255, got -3 at point 0, feat"):
        from_arrays("x", whole, Y)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"lower": LOWER}, "both lower and upper, got no upper"),
        ({"lower": LOWER[:2], "upper": UPPER}, r"lower as numbers that broadcast to .*\[3\], got"),
        ({"lower": 0, "upper": "many"}, "upper as numbers that broadcast"),
        ({"lower": LOWER, "upper": [3, 0, -1]}, "lower < upper.*got 0 and 0 of feature 1"),
        ({"lower": LOWER, "upper": [3, np.nan, -1]}, "both finite, got 0 and nan of feature 1"),
        (
            {"lower": LOWER, "upper": [3, 150, -1]},
            r"expected feature 1 in \[0, 150\].*got 200 at point 0",
        ),
        ({"lower": LOWER, "upper": UPPER, "box": (0.0, 9.0)}, "a box is another"),
        ({"box": (-3.0, 100.0)}, r"floats? .*in \[-3, 100\], got 200 at point 0, feature 1"),
    ],
)
def test_ends_that_do_not_fit_are_refused(more: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        from_arrays("table", TABLE, Y, **more)


def test_a_box_that_excludes_a_point_names_it_however_the_data_are_made() -> None:
    data = from_arrays("table", TABLE, Y, box=(-3.0, 200.0))
    with pytest.raises(UsageError, match=r"point 0 holds 200, outside the box \[-3, 150\]"):
        PinnedData(data, Threat("linf", 1, -3, 150).box).fetch([0])


@pytest.mark.parametrize("shape", [(4,), (4, 5), (4, 5, 6, 7, 8, 9)])
def test_other_axes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"expected (x as|the layout)"):
        from_arrays("x", np.zeros(shape), Y, layout="nct" if len(shape) == 2 else None)


def test_a_model_that_is_in_units_is_not_wrapped_again() -> None:
    data = from_arrays("x", TABLE, Y, lower=LOWER, upper=UPPER)
    for model in (nn.Linear(3, 2), lambda x: x):
        once = in_units(model, data)
        assert once is not model and in_units(once, data) is once
