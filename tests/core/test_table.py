"""Descriptions of tables: what is refused, what counts as a row, what a repair returns."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from robustkit.core.table import Table
from robustkit.core.table_region import Region
from robustkit.data.table import described, open_table
from robustkit.errors import UsageError

RULES: dict[str, Any] = {
    "lower": np.array([0, -1, 0, 0, 0, 0, 0, 0]),
    "upper": np.array([10, 1, 7, 300, 1, 1, 1, 5]),
    "feature_kind": np.array(["real", "real", "integer", "integer", *["category"] * 3, "real"]),
    "feature_group": np.array([-1, -1, -1, -1, 0, 0, 0, -1]),
    "feature_mutable": np.array([True] * 7 + [False]),
    "feature_eps": np.array([4.0, 1.0, 7.0, 300.0, 1.0, 1.0, 1.0, 5.0]),
    "feature_names": np.array(["income", "trend", "rooms", "area", "rent", "own", "free", "age"]),
    "constraint_matrix": np.array([[0, 0, 20, -1, 0, 0, 0, 0], [1, 0, 0, 0, 0, -6, 0, 0.0]]),
    "constraint_bound": np.array([0, 4.0]),
    "equality_matrix": np.array([[1, 5, 0, 0, 0, 0, 0, -1.0]]),
    "equality_bound": np.array([0.0]),
}


def table(**changed: Any) -> Table:
    kept = {key: array for key, array in (RULES | changed).items() if array is not None}
    return described("rules.npz", kept)


def rows(count: int, seed: int = 0) -> Tensor:
    """Rows that obey all rules: income = age - 5 trend, at most 4, or 10 with an own flat."""
    draw = np.random.default_rng(seed)
    own = draw.integers(0, 3, count)
    income = draw.uniform(0, np.where(own == 1, 5, 4))
    trend = draw.uniform(-0.9, 0, count) * income / 5
    rooms = draw.integers(0, 8, count)
    area = np.minimum(20 * rooms + draw.integers(0, 150, count), 300)
    v = [income, trend, rooms, area, *np.eye(3)[own].T, income + 5 * trend]
    rules = table()
    return rules.scaled(torch.from_numpy(np.stack(v, 1)))


def test_rows_that_obey_are_told_from_those_that_miss_one_rule() -> None:
    rules, x = table(), rows(50)
    assert rules.feasible(x).all()
    wrong = {
        "rooms is 3.5, expected a whole number": (2, 3.5 / 7),
        "rooms is 3.0": (2, float(np.nextafter(np.float32(3 / 7), np.float32(1)))),
        "holds 0 ones": (4, 0.0),
        "holds 2 ones": (5, 1.0),
        r"constraint 0 \(20 rooms \+ -1 area <= 0\) is missed by": (3, 0.0),
        r"equality 0 \(1 income \+ 5 trend \+ -1 age = 0\) is missed by 1": (7, None),
        "income is 10.0999999, outside of its bounds": (0, 1.01),
    }
    for text, (feature, value) in wrong.items():
        z = x[(x[:, 4] == 1) & (x[:, 2] > 0)][:1].clone()
        z[0, feature] = z[0, feature] + 0.2 if value is None else value
        assert not rules.feasible(z).any()
        ((row, fault),) = rules.faults(z)
        assert row == 0
        assert re.search(text, fault), fault


def test_a_constraint_of_whole_numbers_has_no_tolerance_to_speak_of() -> None:
    rules = table()
    assert float(rules.tolerance[0]) < 1e-8
    # 2^-23 of the ranges of the real features, each weighted: 10 + 5 · 2 + 5.
    assert float(rules.tolerance[2]) == pytest.approx(25 * 2.0**-23, rel=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_a_repair_returns_rows_of_the_region_or_what_it_was_given(seed: int) -> None:
    rules, x = table(), rows(200, seed)
    region = Region.around(rules, x, 0.3)
    low, high = region.span
    drawn = low + torch.rand(200, 8, generator=torch.Generator().manual_seed(seed)) * (high - low)
    z, found = region.repaired(drawn, x)
    assert rules.feasible(z).all()
    assert torch.equal(z[~found], x[~found])
    assert found.double().mean() > 0.9
    v, before = rules.raw(z), rules.raw(x)
    assert torch.equal(z[:, 7], x[:, 7])
    near = (v - before).abs() <= 0.3 * rules.radius * (1 + 1e-8)
    assert (near | rules.category).all()
    # A row that obeys already stays as it is, bit by bit.
    assert torch.equal(region.repaired(before, torch.zeros_like(x))[0], x)


def test_the_best_row_is_that_of_all_rows_of_a_small_set() -> None:
    mutable = np.array([False, False, True, True, True, True, True, False])
    rules = table(feature_mutable=mutable, feature_eps=np.array([0, 0, 2, 30, 1, 1, 1, 0.0]))
    x = rows(20)
    region = Region.around(rules, x, 1.0)
    slope = torch.randn(20, 8, generator=torch.Generator().manual_seed(1))
    best, found = region.repaired(region.best(slope), x)
    assert found.all()
    for row in range(20):
        v = rules.raw(x)[row]
        options = torch.stack([
            torch.cat([v[:2], torch.tensor([rooms, area]).double(), group, v[7:]])
            for rooms in range(max(0, int(v[2]) - 2), min(7, int(v[2]) + 2) + 1)
            for area in range(max(0, int(v[3]) - 30), min(300, int(v[3]) + 30) + 1)
            for group in torch.eye(3).double()
        ])  # fmt: skip
        z = rules.scaled(options)
        value = z[rules.feasible(z)] @ slope[row]
        assert float(best[row] @ slope[row]) == pytest.approx(float(value.max()), abs=1e-5)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "length": ({"upper": np.ones(3)}, r"upper \[8\].*got \[3\]"),
    "kinds": ({"feature_kind": np.array(["real"] * 7)}, r"feature_kind \[8\].*got \[7\]"),
    "kind": (
        {"feature_kind": np.array([*RULES["feature_kind"][:7], "float"])},
        "real, integer or category",
    ),
    "group": ({"feature_group": np.full(8, -1)}, "category with group -1 at feature 4"),
    "matrix": ({"constraint_matrix": np.ones((2, 3))}, r"constraint_matrix \[2, 8\].*got \[2, 3\]"),
    "half": ({"constraint_bound": None}, "the key 'constraint_bound'"),
    "bounds": ({"lower": np.full(8, 9.0)}, "lower < upper, got 9 and 1"),
    "whole": ({"upper": np.array([10, 1, 7.5, 300, 1, 1, 1, 5])}, "whole bounds"),
    "nan": ({"feature_eps": np.full(8, np.nan)}, "finite numbers in feature_eps"),
    "mask": ({"feature_mutable": np.ones(8)}, "feature_mutable of bools"),
    "missing": ({"lower": None}, "the key 'lower'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_description_that_contradicts_itself_is_refused(name: str) -> None:
    changed, message = REFUSED[name]
    with pytest.raises(UsageError, match=message):
        table(**changed)


def test_constraints_that_nobody_can_meet_are_refused_at_the_door(tmp_path: Path) -> None:
    impossible = np.array([[0, 0, 0, 0, 1, 1, 1, 0.0], [1, 0, 0, 0, 0, 0, 0, 0]])
    path = tmp_path / "rules.npz"
    rules = RULES | {"constraint_matrix": impossible, "constraint_bound": np.array([0.5, 3])}
    np.savez(path, **rules)  # every group has one 1
    with pytest.raises(UsageError, match=r"constraint 0 \(1 rent .*<= 0.5\) cannot be met"):
        open_table(str(path))
    np.savez(path, **RULES)
    assert open_table(str(path)).digest() == table().digest()
    assert table(feature_names=None).digest() == table().digest()
    assert table(feature_eps=None).digest() != table().digest()


def test_a_row_at_its_upper_bounds_is_feasible_however_they_round() -> None:
    draw = np.random.default_rng(0)
    low, high = draw.uniform(-10, 10, 200), draw.uniform(20, 50, 200)
    rules = described("rules.npz", {"lower": low, "upper": high})
    assert (rules.lower + rules.width > rules.upper).any()
    assert rules.feasible(torch.ones(1, 200)).all()
    assert not rules.feasible(torch.full((1, 200), torch.nan)).any()
