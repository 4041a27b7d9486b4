"""Arguments from Python: what counts as a number, a switch, a text, a path, a list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustkit.core import arguments
from robustkit.errors import UsageError


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3), np.array(3)])
def test_any_whole_number_is_one(value: Any) -> None:
    found = arguments.whole("seed", value, 0, arguments.SEEDS)
    assert (found, type(found)) == (3, int)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (True, "True"), (np.bool_(True), "bool"), (torch.tensor(True), "Tensor"), (1.0, "1.0"),
        ("1", "'1'"), (-1, "-1"), (2**63, "9223372036854775808"), (None, "None"),
        (10**50, "a number of 167 bits"), (torch.tensor([1, 2]), r"Tensor \[2\]"),
        (b"1", r"b'1' \(bytes\)"),
    ],
)  # fmt: skip
def test_nothing_else_is_a_whole_number(value: Any, got: str) -> None:
    told = rf"^seed: expected a whole number from 0 to 9223372036854775807, got {got}\.$"
    with pytest.raises(UsageError, match=told):
        arguments.whole("seed", value, 0, arguments.SEEDS)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), torch.tensor(0.5), np.array(0.5)])
def test_any_number_is_read_as_a_float(value: Any) -> None:
    assert arguments.real("eps", value) == 0.5


@pytest.mark.parametrize("value", [True, "0.5", 1j, 10**400, torch.tensor([0.5]), None])
def test_nothing_else_is_a_number(value: Any) -> None:
    with pytest.raises(UsageError, match=r"^eps: expected a number, got "):
        arguments.real("eps", value)


def test_a_switch_is_a_bool() -> None:
    assert arguments.switch("fresh", np.bool_(True)) is True
    for value in (1, "no", None, np.array([True, False]), torch.tensor([True])):
        with pytest.raises(UsageError, match=r"^fresh: expected True or False, got "):
            arguments.switch("fresh", value)


def test_texts_paths_and_lists() -> None:
    assert arguments.path("folder", "a/b") == arguments.path("folder", Path("a/b")) == Path("a/b")
    assert arguments.several("notes", iter(["a", "b"])) == ("a", "b")
    for value in ("", " ", b"x", "a\0b", 5):
        with pytest.raises(UsageError, match=r"^name: expected a text, got "):
            arguments.text("name", value)
    for place in ("", b"x", 5, "a\0b", "x" * 256):
        with pytest.raises(UsageError, match=r"^folder: expected a path"):
            arguments.path("folder", place)
    for listed in ("text", b"text", 5, {"a": 1}, np.array(1)):
        with pytest.raises(UsageError, match=r"^notes: expected a list, got "):
            arguments.several("notes", listed)
