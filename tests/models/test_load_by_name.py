"""`load_model` takes data by name, as `evaluate` does."""

from __future__ import annotations

import pytest
import torch

import robustkit
from robustkit.errors import UsageError


def test_data_are_also_named_and_are_those_of_the_box_by_default() -> None:
    x = robustkit.open_dataset("bundled").fetch([0])[0]
    first, again = robustkit.load_model("undefended"), robustkit.load_model(
        "undefended", data="bundled"
    )  # fmt: skip
    assert torch.equal(first.model(x), again.model(x))


def test_other_data_are_refused() -> None:
    with pytest.raises(UsageError, match=r"expected a robustkit\.data\.Dataset or the name of one"):
        robustkit.load_model("undefended", data=3)  # type: ignore[arg-type]
