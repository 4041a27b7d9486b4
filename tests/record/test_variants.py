"""Columns of a finite threat model, by hand; a record that contradicts itself is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pydantic
import pytest

from robustkit import Record
from robustkit.core.stats.intervals import clopper_pearson, mean_interval
from robustkit.leaderboard.rows import frame, row
from robustkit.record.schema import ThreatInfo

Make = Callable[..., Record]
VARIANTS = ["fog@4", "fog@5", "snow@5"]


def finite(make_record: Make, states: str, signs: list[str], **more: Any) -> Record:
    base = make_record("mine", states)
    told = base.model_dump(by_alias=True, exclude={"digest"})
    told["threat"] = ThreatInfo(norm="corruption:x", eps=5, variants=VARIANTS).model_dump()
    told["points"]["variants"] = signs
    return Record.model_validate(told | more)


def test_the_numbers_are_those_of_the_table_of_verdicts(make_record: Make) -> None:
    record = finite(make_record, "rbbm", ["111", "100", "011", "010"])
    found = record.corruptions
    assert found is not None
    assert found.cells == {"fog@4": 0.5, "fog@5": 0.75, "snow@5": 0.5}
    assert found.kinds == {"fog": 0.625, "snow": 0.5}
    assert found.mean == pytest.approx(0.5625)  # of two corruptions, not of three cells
    assert found.hardest == pytest.approx(0.625)
    assert found.worst == ("snow", 0.5)
    assert found.per_point.tolist() == [1.0, 0.25, 0.75, 0.25]
    assert found.cell_intervals["fog@5"] == clopper_pearson(3, 4)
    line = row(record, "x")
    low, high = mean_interval([1.0, 0.25, 0.75, 0.25])[1]
    assert (line.mean_corrupted_low, line.mean_corrupted_high) == (round(low, 6), round(high, 6))
    assert line.severity_5 == 0.625 and line.worst_corruption_name == "snow"
    assert "threat='corruption:x'" in repr(record) or "threat corruption:x" in repr(record)


def test_only_tables_with_such_a_row_have_the_columns(make_record: Make) -> None:
    finite_row = row(finite(make_record, "rb", ["111", "110"]), "x")
    plain = row(make_record("other", "rb"), "y")
    assert "mean_corrupted" not in frame([plain]) and make_record("other", "rb").corruptions is None
    assert frame([plain, finite_row])["mean_corrupted"].tolist()[1] == pytest.approx(0.875 - 0.125)


@pytest.mark.parametrize(
    "states, signs, told",
    [
        ("rb", ["110", "110"], "point 0 is robust, yet its variants are 110"),
        ("rb", ["111", "111"], "point 1 is broken, yet its variants are 111"),
        ("rb", ["111", "11x"], "expected signs 0 and 1"),
        ("rb", ["1111", "1101"], "one sign for each variant"),
        ("rb", ["111"], "columns of equal length"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(
    states: str, signs: list[str], told: str, make_record: Make
) -> None:
    with pytest.raises(pydantic.ValidationError, match=told):
        finite(make_record, states, signs)
