"""The calls of AutoAttack and RobustBench, run by robustkit."""

from __future__ import annotations

import enum
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robustkit.errors import UsageError
from robustkit.integrations.autoattack import AutoAttack
from robustkit.integrations.robustbench import benchmark

X = torch.rand(8, 1, 5, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(25, 3)).eval()


@pytest.fixture
def labels(model: nn.Module) -> torch.Tensor:
    y: torch.Tensor = model(X).argmax(1)
    y[0] = (y[0] + 1) % 3  # one point is misclassified
    return y


class TestAutoAttack:
    def test_the_signature_is_that_of_autoattack(self) -> None:
        call = inspect.signature(AutoAttack.run_standard_evaluation)
        assert list(call.parameters)[1:] == [
            "x_orig", "y_orig", "bs", "return_labels", "state_path"
        ]  # fmt: skip
        made = list(inspect.signature(AutoAttack).parameters)
        assert made[:5] == ["model", "norm", "eps", "seed", "verbose"]

    def test_the_inputs_returned_are_adversarial_where_the_record_says_so(
        self, model: nn.Module, labels: torch.Tensor, tmp_path: Path
    ) -> None:
        log = tmp_path / "log.txt"
        adversary = AutoAttack(
            model,
            eps=0.05,
            version="custom",
            attacks_to_run=["apgd-ce"],
            verbose=False,
            log_path=log,
        )
        x_adv, y_adv = adversary.run_standard_evaluation(X, labels, bs=5, return_labels=True)
        record = adversary.record
        assert (model(x_adv).argmax(1) == labels).float().mean() == pytest.approx(record.robust)
        assert torch.equal(y_adv, model(x_adv).argmax(1))
        assert 0 < record.robust < record.clean == pytest.approx(7 / 8)
        assert (x_adv - X).abs().max() <= 0.05 + 1e-7  # half a unit in the last place of x_adv
        assert x_adv.min() >= 0 and x_adv.max() <= 1
        robust = (y_adv == labels) | (model(X).argmax(1) != labels)
        assert torch.equal(x_adv[robust], X[robust])
        last = log.read_text().splitlines()
        assert last[0] == f"initial accuracy: {record.clean:.2%}"
        assert last[-1] == f"robust accuracy: {record.robust:.2%}" and "apgd" in last[1]
        assert last[-2].split(": ")[1].startswith(f"{record.robust:.2%}")

    def test_a_state_is_a_folder_that_resumes(
        self, model: nn.Module, labels: torch.Tensor, tmp_path: Path
    ) -> None:
        adversary = AutoAttack(
            model, "L2", 0.1, version="custom", attacks_to_run=["apgd-ce"], verbose=False
        )
        first = adversary.run_standard_evaluation(X, labels, state_path=tmp_path / "state")
        record = adversary.record
        again = adversary.run_standard_evaluation(X, labels, state_path=tmp_path / "state")
        assert torch.equal(first, again) and adversary.record == record
        assert [stage.attack for stage in record.stages] == ["apgd(restarts=5)"]
        assert record.threat.norm == "l2"

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            ({"norm": "linf"}, "norm"),
            ({"version": "fast"}, "version"),
            ({"is_tf_model": True}, "TensorFlow|PyTorch"),
            ({"version": "custom"}, "got version='custom' and 0 attacks"),
            ({"attacks_to_run": ["square"]}, "got version='standard' and 1 attacks"),
        ],
    )
    def test_bad_arguments_are_refused(self, given: dict[str, Any], told: str) -> None:
        with pytest.raises(UsageError, match=told):
            AutoAttack(nn.Identity(), **given)


class Norms(enum.Enum):
    Linf = "Linf"


class TestBenchmark:
    @pytest.fixture
    def data(self, labels: torch.Tensor, tmp_path: Path) -> str:
        np.savez(tmp_path / "points.npz", x=X.numpy(), y=labels.numpy())
        return f"npz:{tmp_path / 'points.npz'}"

    def test_two_numbers_of_the_first_points(
        self, model: nn.Module, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        clean, robust = benchmark(
            model, 5, data, Norms.Linf, True, "mine", eps=1, log_path="log.txt"
        )
        assert clean == pytest.approx(0.8) and robust == 0
        assert (tmp_path / "robustkit-runs" / "mine" / "record.json").exists()
        assert Path("log.txt").read_text().endswith(f"robust accuracy: {robust:.2%}\n")

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            ({"threat_model": "corruptions"}, "threat model"),
            ({"preprocessing": "Res256Crop224"}, "preprocessing"),
            ({"to_disk": True, "eps": 0.1}, "model_name"),
            ({}, "eps"),
        ],
    )
    def test_bad_arguments_are_refused(
        self, model: nn.Module, data: str, given: dict[str, Any], told: str
    ) -> None:
        with pytest.raises(UsageError, match=told):
            benchmark(model, dataset=data, **given)
