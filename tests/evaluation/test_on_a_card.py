"""The CUDA paths: on a card, an evaluation comes to the verdicts of a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset
from robustkit.evaluation.evaluate import evaluate
from robustkit.models.tuning import Tuning
from robustkit.record.record import Record

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LINE = ["apgd(steps=4)", "fab(steps=3, targets=2)", "square(queries=8)"]


@pytest.fixture
def run(blobs: Dataset, nearest: nn.Module, tmp_path: Path) -> Callable[..., Record]:
    """Evaluate the linear model on the blobs, in a folder of its own each time."""
    folders = iter(range(100))

    def call(device: str, **options: Any) -> Record:
        return evaluate(
            nearest, name="toy", data=blobs, threat=Threat("linf", 0.06), attacks=LINE,
            device=device, folder=tmp_path / str(next(folders)), **options,
        )  # fmt: skip

    return call


def differing(one: Record, two: Record) -> int:
    """Count the verdicts that differ: at the edge of the ball a rounding decides."""
    return sum(a != b for a, b in zip(one.points.status, two.points.status, strict=True))


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_verdicts_are_those_of_a_cpu(run: Callable[..., Record], precision: Any) -> None:
    record = run("cuda", tuning=Tuning(precision=precision))
    assert record.device.startswith("cuda")
    assert differing(run("cpu"), record) <= 1


def test_workers_on_one_card_come_to_the_same(run: Callable[..., Record]) -> None:
    assert differing(run("cuda"), run("cuda", workers=2)) == 0


def test_tf32_that_a_user_has_switched_on_decides_no_verdict(run: Callable[..., Record]) -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        record = run("cuda", tuning=Tuning(precision="float32"))
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (
            True,
            True,
        )
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    assert differing(run("cuda", tuning=Tuning(precision="float32")), record) <= 1
