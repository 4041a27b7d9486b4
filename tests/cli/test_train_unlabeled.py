"""`robustkit train self_training`: the pool, the log, what is refused; training, then fitting."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from robustkit.cli.program import program as main
from robustkit.registry import defenses


@pytest.fixture
def root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_mnist: Callable[[Path, int], None]
) -> Path:
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path, 128)
    return tmp_path


def train(spec: str, *arguments: str) -> Result:
    common = ["--data", "mnist", "--data-root", ".", "--device", "cpu", "--out", "trained"]
    return CliRunner().invoke(main, ["train", spec, *common, "--epochs", "2", *arguments])


def self_training(*options: str) -> str:
    given = ("labels=40", "width=2", "steps=1", *options)
    return f"self_training({', '.join(given)})"


@pytest.mark.usefixtures("root")
def test_the_rest_of_the_training_data_is_the_pool() -> None:
    result = train(self_training("pseudo=given"), "--batch-size", "44")
    assert result.exit_code == 0, result.stderr
    rows = json.loads(Path("trained/log.json").read_text())["pseudo_labels"]
    assert len(rows) == 2
    assert all(60 < row[0] == row[1] == row[2] == sum(row[3:]) <= 88 for row in rows)
    card = json.loads(Path("trained/card.json").read_text())
    assert card["options"]["labels"] == 40 and card["measured"]["n"] == 40


@pytest.mark.usefixtures("root")
def test_a_pool_without_labels_is_read_and_one_with_test_images_refused() -> None:
    with np.load("mnist.npz") as arrays:
        test = arrays["x_test"]
    np.savez("pool.npz", x=255 - test)
    given = self_training("pool='npz:pool.npz'", "gate=1")
    result = train(given, "--batch-size", "40")
    assert result.exit_code == 0, result.stderr
    np.savez("pool.npz", x=np.concatenate([255 - test, test[3:4]]))
    result = train(given, "--batch-size", "40", "--fresh")
    assert result.exit_code == 2
    assert "got 1 of 41 images of npz:pool.npz that are test images" in result.stderr.replace(
        "\n", " "
    )


@pytest.mark.usefixtures("root")
def test_what_learns_and_is_fitted_is_fitted_with_its_new_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def calibrate(self: Any, model: Any, x: Any, y: Any, generator: Any) -> None:
        seen.append({key: value.clone() for key, value in model.state_dict().items()})
        with torch.no_grad():
            model[-1].bias.fill_(len(x))

    # A class of its own: what the original was once found to have would be remembered.
    entry = defenses.entry("undefended")
    fitted = type("Fitted", (entry.target,), {"calibrate": calibrate})
    monkeypatch.setitem(defenses._entries, "undefended", entry._replace(target=fitted))
    assert train("undefended(width=2)", "--batch-size", "64").exit_code == 0
    state = torch.load("trained/state.pt", weights_only=True)["model"]
    assert all(torch.equal(state[key], value) for key, value in seen[0].items())
    assert load_file("trained/model.safetensors")["10.bias"].tolist() == [128.0] * 10
