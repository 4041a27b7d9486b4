"""A certified radius and an adversarial distance for every point of a grid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset
from robustkit.evaluation import radii as room
from robustkit.evaluation.eps_grid import evaluate_grid
from robustkit.evaluation.watcher import Watcher
from robustkit.record import radii as kept
from robustkit.record.radii import Radii
from robustkit.record.record import Record

GRID = (0.02, 0.06, 0.1)


@pytest.fixture
def run(nearest: nn.Module, blobs: Dataset, tmp_path: Path) -> Callable[..., list[Record]]:
    def call(folder: str = "out", **options: Any) -> list[Record]:
        asked = {"certify": "ibp", **options}
        return evaluate_grid(
            nearest, name="toy", data=blobs, threat=Threat("linf", 1.0), grid=GRID,
            attacks=["apgd(steps=10)"], device="cpu", folder=tmp_path / folder, **asked,
        )  # fmt: skip

    return call


@torch.no_grad()
def worst_margin(model: nn.Module, x: Tensor, y: Tensor, eps: Tensor) -> Tensor:
    """The least margin of a linear model over the ball and the box: exact, in float64 [b]."""
    weight, bias = model[1].weight.double(), model[1].bias.double()  # type: ignore[index]
    x = x.flatten(1).double()
    difference = weight[y][:, None] - weight[None]
    down, up = (x - eps[:, None]).clamp_min(0), (x + eps[:, None]).clamp_max(1)
    least = difference.clamp_min(0) @ down[:, :, None] + difference.clamp_max(0) @ up[:, :, None]
    margin = least[:, :, 0] + bias[y][:, None] - bias[None]
    return margin.scatter(1, y[:, None], torch.inf).amin(1)


def test_a_linear_model_is_bracketed_by_its_exact_radius(
    run: Callable[..., list[Record]], nearest: nn.Module, blobs: Dataset, tmp_path: Path
) -> None:
    """Where the interval bound is exact: it holds within the radius, and fails at `open`."""
    records = run()
    found = kept.read(tmp_path / "out")
    assert found is not None
    x, y = blobs.fetch(found.index)
    certified = torch.tensor(found.certified, dtype=torch.float64)
    margins = worst_margin(nearest, x, y, certified)
    assert bool((margins[certified > 0] > 0).all())
    widths = []
    for at, (low, high, nearest_input) in enumerate(
        zip(found.certified, found.open, found.adversarial, strict=True)
    ):
        if nearest_input == 0 or high is None:
            continue
        eps = torch.tensor([high], dtype=torch.float64)
        assert float(worst_margin(nearest, x[at : at + 1], y[at : at + 1], eps)) < 1e-3
        assert nearest_input is None or low <= nearest_input
        widths.append(high - low)
    assert widths
    assert max(widths) <= 0.04 / 2**room.ROUNDS + 1e-12
    at_grid = [sum(low >= eps for low in found.certified) / 80 for eps in GRID]
    assert at_grid == [record.certified for record in records]


def test_a_run_that_was_killed_goes_on_where_it_was(
    run: Callable[..., list[Record]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("whole")

    class Kill(Watcher):
        def stage(self, name: str, tasks: int) -> None:
            if name.startswith("certified radius 2"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("out", watcher=Kill())
    half = kept.read(tmp_path / "out")
    assert half is not None
    assert half.rounds == 1
    rounds = []
    halve = room._halve

    def counted(found: Radii, *rest: Any) -> Radii:
        rounds.append(found.rounds)
        return halve(found, *rest)

    monkeypatch.setattr(room, "_halve", counted)
    run("out")
    assert rounds == [1, 2]
    whole, resumed = kept.read(tmp_path / "whole"), kept.read(tmp_path / "out")
    assert whole is not None
    assert resumed is not None
    assert resumed.certified == whole.certified
    assert resumed.open == whole.open


def test_a_file_that_contradicts_itself_is_made_again(
    run: Callable[..., list[Record]], tmp_path: Path
) -> None:
    run()
    path = tmp_path / "out" / kept.NAME
    before = path.read_bytes()
    found = kept.read(tmp_path / "out")
    assert found is not None
    at = next(row for row, high in enumerate(found.adversarial) if high)
    certified = [*found.certified]
    certified[at] = 1.0  # proved beyond the distance that breaks it
    path.write_bytes(found.model_copy(update={"certified": certified}).model_dump_json(
        by_alias=True
    ).encode())  # fmt: skip
    assert kept.read(tmp_path / "out") is None
    run()
    assert path.read_bytes() == before


def test_without_a_certificate_there_are_none(
    run: Callable[..., list[Record]], tmp_path: Path
) -> None:
    run(certify=None)
    assert kept.read(tmp_path / "out") is None
