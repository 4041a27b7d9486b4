"""Security curves and quantiles, from records made by hand."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from robustkit.core.stats.intervals import clopper_pearson
from robustkit.errors import UsageError
from robustkit.leaderboard import curves
from robustkit.leaderboard.formats import to_csv
from robustkit.record.record import Record

NEAREST = [0.3, None, 0.1, 0.5, None, 0.1, 0.2, 0.4]  # the second is misclassified


def record(eps: float = 0.25, nearest: Any = NEAREST, **changes: Any) -> Record:
    """Eight points, of which the second is misclassified."""
    status = [
        "misclassified" if i == 1 else "broken" if d is not None and d <= eps else "robust"
        for i, d in enumerate(NEAREST)
    ]
    broken = [state == "broken" for state in status]
    points = {
        "index": list(range(8)),
        "label": [0] * 8,
        "predicted": [1 if i == 1 else 0 for i in range(8)],
        "status": status,
        "attack": ["fmn" if fell else None for fell in broken],
        "distance": [d if fell else None for d, fell in zip(NEAREST, broken, strict=True)],
        "nearest": nearest,
        **changes,
    }
    return Record.model_validate({
        "schema": "robustkit/record/1", "robustkit": "0", "defense": "toy",
        "data": {"name": "d", "digest": "x", "n": 8, "total": 9, "classes": 2, "shape": [1, 2, 2]},
        "threat": {"norm": "linf", "eps": eps}, "suite": None, "attacks": ["fmn"], "seed": 0,
        "arguments": {}, "weights": {"digest": "w", "parameters": 1}, "certify": None,
        "randomized": False, "flags": [], "notes": [], "stages": [], "points": points,
        "forwards": 80, "backwards": 40, "flips": 0, "seconds": 1, "started": "", "versions": {},
        "device": "cpu", "commit": None,
    })  # fmt: skip


def test_the_curve_of_distances_steps_down_at_each_of_them() -> None:
    frame = curves.curve([("r.json", record())])
    assert frame["eps"].tolist() == [0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert (8 * frame["robust"]).tolist() == [7, 5, 4, 3, 2, 1]
    low, high = clopper_pearson(5, 8)
    assert frame["robust_low"][1] == pytest.approx(low, abs=1e-6)
    assert frame["robust_high"][1] == pytest.approx(high, abs=1e-6)
    assert set(frame["carried"]) == set(frame["forwards_per_point"]) == {None}


def test_the_curve_of_a_grid_has_one_step_per_record_with_eps_rising() -> None:
    changes: dict[str, Any] = {"nearest": None}
    small = record(0.05, carried=[0.25, None, None, None, 0.25, None, 0.25, 0.25], **changes)
    frame = curves.curve([("b", record(**changes)), ("a", small)])
    assert frame["eps"].tolist() == [0.05, 0.25]
    assert frame["robust"].tolist() == [7 / 8, 4 / 8]
    assert frame["carried"].tolist() == [4, 0]
    assert frame["forwards_per_point"].tolist() == [10, 10]
    assert to_csv(frame).splitlines()[1] == (
        "toy,d,linf,0.05,8,0.8750,0.8750,0.4735,0.9968,,4,10.00,,0,a"
    )


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.1, 0), (1 / 8, 0), (0.13, 0.1), (0.25, 0.1), (0.5, 0.2), (0.51, 0.3), (0.875, 0.5),
     (0.9, None), (1.0, None)],
)  # fmt: skip
def test_a_quantile_is_where_the_curve_crosses(share: float, expected: float | None) -> None:
    made = record()
    assert curves.quantile(made, share) == expected
    frame = curves.curve([("", made)])
    reached = frame["eps"][frame["robust"] <= 1 - share + 1e-12]
    assert (reached.min() if len(reached) else None) == expected


def test_distances_summarize_a_record() -> None:
    (row,) = curves.distances([("r", record())]).to_dict("records")
    assert (row["found"], row["median"], row["q10"], row["q90"]) == (6, 0.2, 0, None)
    assert row["mean"] == pytest.approx(1.6 / 6)
    assert (row["eps"], row["robust"], row["clean"]) == (0.25, 4 / 8, 7 / 8)
    none = record(nearest=[None] * 8, status=["robust", "misclassified"] + 6 * ["robust"],
                  attack=[None] * 8, distance=[None] * 8)  # fmt: skip
    (row,) = curves.distances([("r", none)]).to_dict("records")
    assert (row["found"], row["mean"], row["q10"], row["median"]) == (0, None, 0, None)


def test_a_record_without_distances_is_refused() -> None:
    with pytest.raises(UsageError, match=r"toy at linf 0\.25 holds no distances.*--minimum-norm"):
        curves.distances([("r", record(nearest=None))])


def test_tables_without_records_have_their_columns() -> None:
    assert isinstance(curves.curve([]), pd.DataFrame)
    assert list(curves.distances([]).columns) == list(curves.Distances._fields)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"nearest": [0.3, 0.1, 0.1, 0.5, None, 0.1, 0.2, 0.4]}, "point 1 is misclassified, yet"),
        ({"nearest": [0.3, None, 0.05, 0.5, None, 0.1, 0.2, 0.4]}, "point 2 is broken, yet its"),
        ({"nearest": [0.3, None, None, 0.5, None, 0.1, 0.2, 0.4]}, "point 2 is broken, yet its"),
        ({"nearest": [0.2, None, 0.1, 0.5, None, 0.1, 0.2, 0.4]}, "a point is not broken, yet an"),
        ({"nearest": [0.3]}, "columns of equal length expected"),
        ({"carried": [None, 0.5, *[None] * 6]}, "point 1 is misclassified, yet it is carried"),
        ({"carried": [None, None, 0.5, *[None] * 5]}, "point 2 is broken, yet it is carried"),
        ({"carried": [0.25, *[None] * 7]}, "carried from 0.25, which is not a larger eps"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        record(**changes)


def test_infinite_distances_never_reach_a_file() -> None:
    with pytest.raises(ValueError, match="finite"):
        record(nearest=[math.inf if d is None else d for d in NEAREST])
