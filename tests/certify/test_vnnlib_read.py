"""Properties are read as they are written, and what is wrong is named by its line."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustkit.certify.vnnlib.query import Query
from robustkit.certify.vnnlib.read import query_of, read_query
from robustkit.errors import UsageError

FIRST = """; the competition's form
(declare-const X_0 Real)
(declare-const X_1 Real)
(declare-const Y_0 Real)
(declare-const Y_1 Real)
(declare-const Y_2 Real)
(assert (>= X_0 -0.5))
(assert (<= X_0 5e-1))
(assert (and (>= X_1 0.25) (<= X_1 0.75)))
(assert (or
    (and (>= Y_1 Y_0))
    (and (>= Y_2 Y_0) (<= Y_2 3.5))
))
"""
SECOND = """(vnnlib-version <2.0>)
(declare-network N
    (declare-input X float32 [1,2])
    (declare-output Y real [3])
)
(assert (and (>= X[0,0] -0.5) (<= X[0, 0] 0.5) (>= X[0,1] 0.25) (<= X[0,1] 0.75)))
(assert (or (>= Y[1] Y[0]) (and (>= Y[2] Y[0]) (<= (- Y[2] 3.0) 0.5))))
"""


def alike(a: Query, b: Query) -> bool:
    return len(a.disjuncts) == len(b.disjuncts) and all(
        np.array_equal(left, right)
        for one, other in zip(a.disjuncts, b.disjuncts, strict=True)
        for left, right in zip(one, other, strict=True)
    )


def test_both_versions_have_the_same_normal_form() -> None:
    first, second = query_of(FIRST), query_of(SECOND)
    assert (first.version, second.version) == ("1.0", "2.0")
    assert (first.input.shape, second.input.shape) == ((2,), (1, 2))
    assert alike(first, second)
    single, pair = first.disjuncts
    np.testing.assert_array_equal(single.low, [-0.5, 0.25])
    np.testing.assert_array_equal(single.high, [0.5, 0.75])
    np.testing.assert_array_equal(single.rows, [[0, 0, 1, -1, 0]])
    np.testing.assert_array_equal(pair.rows, [[0, 0, 1, 0, -1], [0, 0, 0, 0, 1]])
    np.testing.assert_array_equal(pair.limits, [0, 3.5])
    assert first.labels == ["X_0", "X_1", "Y_0", "Y_1", "Y_2"]
    assert second.labels == ["X[0,0]", "X[0,1]", "Y[0]", "Y[1]", "Y[2]"]


def test_an_alternative_holds_exactly() -> None:
    pair = query_of(FIRST).disjuncts[1]
    x, y = np.array([0.5, 0.25]), np.array([1.0, 0.0, 1.0])
    assert pair.holds(x, y)
    assert pair.holds(x, y + np.array([0, 0, 2.5]))
    assert not pair.holds(x, y + np.array([0, 0, np.nextafter(2.5, 3)]))
    assert not pair.holds(np.nextafter(x, 1), y)


@pytest.mark.parametrize("packed", [True, False])
def test_gzipped_files_are_read_under_either_name(packed: bool, tmp_path: Path) -> None:
    content = gzip.compress(FIRST.encode()) if packed else FIRST.encode()
    (tmp_path / ("p.vnnlib.gz" if packed else "p.vnnlib")).write_bytes(content)
    assert alike(read_query(tmp_path / "p.vnnlib"), query_of(FIRST))


def ranges(assertion: str) -> Query:
    return query_of(SECOND[: SECOND.index("(assert")] + assertion)


def test_strict_comparisons_opposites_and_equations() -> None:
    (strict,) = ranges("(assert (not (>= Y[0] 2.0)))").disjuncts
    assert bool(strict.strict[0])
    assert (strict.rows[0, 2], strict.limits[0]) == (1, 2.0)
    either = ranges("(assert (not (and (<= Y[0] 1.0) (== Y[1] 2.0))))").disjuncts
    assert [bool(d.strict[0]) for d in either] == [True, True, True]
    (both,) = ranges("(assert (== Y[0] 2.0))").disjuncts
    assert both.limits.tolist() == [2.0, -2.0]
    (open_side,) = ranges("(assert (< X[0,0] 1.0))").disjuncts
    assert (open_side.high[0], len(open_side.rows)) == (1.0, 1)


def test_a_bound_with_a_factor_is_rounded_outward_and_kept() -> None:
    (found,) = ranges("(assert (<= (* 3.0 X[0,0]) 1.0))").disjuncts
    assert found.high[0] > 1 / 3
    assert (found.rows[0, 0], found.limits[0]) == (3.0, 1.0)


@given(st.recursive(
    st.tuples(st.sampled_from(["<=", ">=", "<", ">", "==", "!="]), st.integers(0, 2),
              st.integers(-2, 2)),
    lambda inner: st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=1, max_size=3))
    | st.tuples(st.just("not"), inner),
    max_leaves=6,
), st.tuples(*[st.integers(-2, 2)] * 3))  # fmt: skip
def test_the_normal_form_says_what_the_formula_says(formula: object, y: tuple[int, ...]) -> None:
    signs = {"<=": np.less_equal, ">=": np.greater_equal, "<": np.less, ">": np.greater,
             "==": np.equal, "!=": np.not_equal}  # fmt: skip

    def written(f: object) -> str:
        assert isinstance(f, tuple)
        if len(f) == 3:
            return f"({f[0]} Y[{f[1]}] {float(f[2])})"
        parts = f[1] if f[0] != "not" else [f[1]]
        return f"({f[0]} {' '.join(written(part) for part in parts)})"

    def true(f: object) -> bool:
        assert isinstance(f, tuple)
        if len(f) == 3:
            return bool(signs[f[0]](y[f[1]], f[2]))
        if f[0] == "not":
            return not true(f[1])
        return (all if f[0] == "and" else any)(true(part) for part in f[1])

    found = ranges(f"(assert {written(formula)})").disjuncts
    x, values = np.zeros(2), np.array(y, dtype=float)
    assert any(one.holds(x, values) for one in found) == true(formula)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected declarations"),
        ("hello", r"line 1: expected '\(', got 'hello'"),
        (FIRST.replace("(declare-const X_1 Real)\n", ""), "line 8: .* got 'X_1'"),
        (FIRST.replace("X_1 Real", "X_2 Real"), "line 3: expected X_1, the next one, got X_2"),
        (FIRST.replace("5e-1", "five"), "line 8: expected a number or .* got 'five'"),
        (FIRST.replace("5e-1", "nan"), "line 8: expected a number"),
        (FIRST.replace("Y_2 3.5", "Y_7 3.5"), "line 12: expected a declared variable, got 'Y_7'"),
        (FIRST[:-3], r"line 12: expected '\)', got the end: '\(' of line 10"),
        (FIRST + ")", r"line 14: expected '\(' or the end, got '\)'"),
        (FIRST.replace("<= X_0", "=< X_0"), "line 8: expected and, or, not, .* '=<'"),
        (SECOND.replace("2.0>", "3.0>"), "line 1: expected version 1.0 or 2.0, got '3.0'"),
        (SECOND.replace("float32", "int8"), "line 3: expected a name, a type .* got 'X int8"),
        (SECOND.replace("X[0,0]", "X[0,5]"), r"line 6: expected 2 indices inside \[1, 2\]"),
        (SECOND.replace("(- Y[2] 3.0)", "(* Y[2] Y[1])"), "line 7: expected at most one factor"),
        (SECOND.replace("(declare-output", "(declare-hidden"), "line 4: .* got 'declare-hidden'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_its_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        query_of(text)


def test_more_alternatives_than_can_be_written_out_are_refused() -> None:
    pair = "(assert (or (<= Y[0] 1.0) (>= Y[1] 1.0)))"
    with pytest.raises(UsageError, match=r"at most 65,536 alternatives .* split the property"):
        ranges(pair * 17)


def test_missing_damaged_and_huge_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a file, got none"):
        read_query(tmp_path / "none.vnnlib")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(FIRST.encode())[:-9])
    with pytest.raises(UsageError, match="cannot be read"):
        read_query(tmp_path / "cut.gz")
    (tmp_path / "bytes.vnnlib").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="expected text in UTF-8"):
        read_query(tmp_path / "bytes.vnnlib")
