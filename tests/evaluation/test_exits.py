"""Code that would end the program is an error of the evaluation, not its end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustkit
from robustkit.core.attribution import blaming, outliving_exits
from robustkit.data.dataset import Dataset, ImageSet
from robustkit.errors import RobustkitError
from robustkit.integrations.conformance import _outcome
from robustkit.integrations.testing import assert_robust


def leaves(*_: object) -> Any:
    sys.exit(0)


class Leaves(nn.Module):
    """Answers so many times, and then ends the program."""

    def __init__(self, inner: nn.Module, passes: int) -> None:
        super().__init__()
        self.inner, self.left = inner, passes

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            sys.exit(0)
        answer: Tensor = self.inner(x)
        return answer


def run(model: nn.Module, data: Dataset, folder: Path, **how: Any) -> Any:
    return robustkit.evaluate(
        model, data=data, threat="linf:0.1", attacks=["pgd(steps=20)"], folder=folder,
        device="cpu", **how,
    )  # fmt: skip


@pytest.mark.parametrize("passes", [0, 200])
def test_of_a_model(nearest: nn.Module, blobs: Dataset, tmp_path: Path, passes: int) -> None:
    model = Leaves(nearest, passes)
    with pytest.raises(RobustkitError, match=r"Leaves .*test_exits\.py, line \d+.*SystemExit: 0"):
        run(model, blobs, tmp_path, batch_size=4)
    assert not list(tmp_path.rglob("record.json"))


def test_of_data(nearest: nn.Module, blobs: Dataset, tmp_path: Path) -> None:
    labels = np.arange(80, dtype=np.int64) % 4
    data = ImageSet("ends", "ends", (1, 6, 6), 4, labels, leaves)
    with pytest.raises(RobustkitError, match=r"tried to end the program .*SystemExit: 0"):
        run(nearest, data, tmp_path)


def test_of_a_model_in_a_test(nearest: nn.Module, blobs: Dataset) -> None:
    with pytest.raises(RobustkitError, match="SystemExit: 0"):
        assert_robust(Leaves(nearest, 0), at_least=0.0, threat="linf:0.1", data=blobs)


@pytest.mark.parametrize("guard", [outliving_exits, lambda: blaming("net")])
def test_the_message_names_the_place(guard: Callable[[], Any]) -> None:
    with pytest.raises(RobustkitError, match=r"\(test_exits\.py, line \d+\)"), guard():
        leaves()


def test_of_a_conformance_check() -> None:
    assert _outcome(leaves) == (False, "SystemExit: 0")


def test_a_plain_run_is_not_touched(nearest: nn.Module, blobs: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert run(nearest, blobs, tmp_path).n == 80
