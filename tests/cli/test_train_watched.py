"""`robustkit train` with a schedule that watches the points left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from robustkit.cli.program import program as main
from robustkit.cli.train.measure import watched
from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset


@pytest.fixture(autouse=True)
def root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_mnist: Callable[[Path, int], None]
) -> Path:
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path, 120)
    return tmp_path


def train(spec: str, *arguments: str) -> Result:
    common = ["--data", "mnist", "--data-root", ".", "--device", "cpu", "--out", "trained"]
    sizes = ["--epochs", "2", "--batch-size", "40"]
    return CliRunner().invoke(main, ["train", spec, *common, *sizes, *arguments])


@pytest.mark.parametrize("spec", ["undefended(net=preact_resnet, width=2)",
                                  "pgd_at(net=preact_resnet, steps=1, width=2)"])  # fmt: skip
def test_the_epoch_is_chosen_on_points_left_out_and_measured_on_others(spec: str) -> None:
    result = train(spec, "--validation", "30")
    assert result.exit_code == 0, result.stderr
    card = json.loads(Path("trained/card.json").read_text())
    assert card["measured"]["n"] == 40 and "split" not in card["measured"]
    assert "--validation 30" in card["command"]
    (found,) = json.loads(Path("trained/log.json").read_text())["watched"]
    assert found * 60 == pytest.approx(round(found * 60))
    state = torch.load("trained/state.pt", weights_only=True)
    assert state["identity"]["points"] == 90 and state["step"] == 4


def test_another_schedule_measures_on_the_points_left_out_as_before() -> None:
    assert train("undefended(width=2)", "--validation", "30").exit_code == 0
    card = json.loads(Path("trained/card.json").read_text())
    assert card["measured"]["n"] == 30 and card["measured"]["split"] == "validation"
    assert not Path("trained/log.json").exists()


def test_watched_is_the_mean_of_clean_and_robust_accuracy(
    nearest: torch.nn.Module, blobs: Dataset
) -> None:
    def share(threat: Threat | None) -> float:
        return watched(nearest, blobs, threat, seed=0)

    x, y = blobs.fetch(range(len(blobs)))
    assert share(None) == float((nearest(x).argmax(1) == y).double().mean())
    attacked = [share(Threat("linf", eps)) for eps in (0.05, 0.5)]
    assert share(None) > attacked[0] > attacked[1]
    assert attacked[1] == share(None) / 2  # all fall: the mean of clean and robust accuracy
    assert share(Threat("linf", 0.05)) == attacked[0]
