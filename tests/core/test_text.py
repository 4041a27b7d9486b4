"""Times, fractions and intervals are read and written in one way."""

from __future__ import annotations

import pytest

from robustkit.core.text import number, seconds, with_interval
from robustkit.errors import UsageError


@pytest.mark.parametrize(
    ("text", "value"), [("90", 90), ("30s", 30), ("5m", 300), ("1.5h", 5400), (" 2 min ", 120)]
)
def test_times_are_read(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "soon", "5 parsecs", "0", "-3s"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a time such as"):
        seconds(text)


@pytest.mark.parametrize(("text", "value"), [("0.5", 0.5), ("8/255", 8 / 255), (" 1 / 4", 0.25)])
def test_fractions_are_numbers(text: str, value: float) -> None:
    assert number(text) == value


@pytest.mark.parametrize("text", ["", "1/", "/2", "1/0", "1/2/3", "half"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"could not convert|divides by zero"):
        number(text)


def test_an_interval_has_the_digits_of_its_middle() -> None:
    assert with_interval(0.5, 0.25, 0.75) == "0.500 [0.250, 0.750]"
    assert with_interval(0.12345, 0, 1, digits=4) == "0.1235 [0.0000, 1.0000]"
