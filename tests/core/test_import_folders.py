"""Users' files in different folders import helpers of one name: each gets its own."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from robustkit.core import import_folders, process_state
from robustkit.core.imports import load_attribute

MODEL = """
import torch
from torch import nn
import helper
{above}

class Net(nn.Module):
    def forward(self, x):
        import lazy
        return x.flatten(1)[:, :2] * helper.SIGN + lazy.SHIFT

def function(x):
    import lazy
    return x.flatten(1)[:, :2] * helper.SIGN + lazy.SHIFT

net = Net().eval()
"""


@pytest.fixture(autouse=True)
def own_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave nothing behind."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(import_folders, "_known", {})
    monkeypatch.setattr(import_folders, "_active", [])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("helper", "lazy", "inner", "shared"):
            del sys.modules[name]


def write(folder: Path, sign: int, above: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(MODEL.format(above=above))
    (folder / "helper.py").write_text("from inner.deep import SIGN\n")
    (folder / "inner").mkdir()
    (folder / "inner" / "deep.py").write_text(f"SIGN = {sign}\n")
    (folder / "lazy.py").write_text(f"SHIFT = {10 * sign}\n")
    return folder / "model.py"


@pytest.mark.parametrize("what", ["net", "function"])
def test_each_file_runs_with_its_own_modules_also_late(tmp_path: Path, what: str) -> None:
    from robustkit.models.readiness import private_copy

    x, cpu = torch.ones(2, 1, 2, 2), torch.device("cpu")
    models = {
        sign: private_copy(
            load_attribute(f"{write(tmp_path / f'f{sign}', sign)}:{what}"), cpu, "it"
        )
        for sign in (1, 2, -3)
    }
    for _ in range(2):
        for sign, model in models.items():
            assert model(x).tolist() == [[11.0 * sign] * 2] * 2


def test_the_second_row_of_a_command_is_that_of_its_own_file(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from robustkit.cli.program import program

    np.savez(
        tmp_path / "d.npz",
        x=np.tile(np.array([[0.2, 0.8], [0.8, 0.2]], np.float32), (10, 1)).reshape(20, 1, 1, 2),
        y=np.tile([1, 0], 10),
    )
    files = [write(tmp_path / name, sign) for name, sign in (("right", 1), ("wrong", -1))]
    done = CliRunner().invoke(
        program,
        ["evaluate", *(f"{file}:net" for file in files), "--data", f"npz:{tmp_path / 'd.npz'}",
         "--threat", "linf:0.01", "--attack", "fgsm", "--out", str(tmp_path / "out")],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    records = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("record.json")]
    wrong = {r["defense"]: r["points"]["status"].count("misclassified") for r in records}
    assert sorted(wrong.values()) == [0, 20]
    assert wrong[f"{files[0]}:net"] == 0


def test_what_folders_share_is_imported_once(tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "shared.py").write_text("LIST = []\n")
    above = f"import sys; sys.path.append({str(tmp_path / 'common')!r}); import shared"
    files = [write(tmp_path / f"g{sign}", sign, above) for sign in (1, 2)]
    first, second = (load_attribute(f"{file}:shared.LIST") for file in files)
    assert first is second


def test_what_a_file_puts_on_the_search_path_is_its_own(tmp_path: Path) -> None:
    values = []
    for sign in (1, 2):
        folder = tmp_path / f"h{sign}"
        (folder / "src").mkdir(parents=True)
        (folder / "src" / "helper.py").write_text(f"SIGN = {sign}\n")
        (folder / "model.py").write_text(
            f"import sys; sys.path.insert(0, {str(folder / 'src')!r})\nimport helper\n"
            "def late():\n    import helper\n    return helper.SIGN\n"
        )
        values.append(load_attribute(f"{folder / 'model.py'}:helper.SIGN"))
    assert values == [1, 2]


def test_installed_packages_stay_where_they_are(tmp_path: Path) -> None:
    for sign in (1, 2):
        file = write(tmp_path / f"i{sign}", sign, "import numpy")
        (file.parent / "numpy.py").write_text("raise ImportError('mine')\n")
        assert load_attribute(f"{file}:numpy") is np


def test_an_import_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "import os, random, torch, numpy\nos.chdir('/')\nrandom.seed(0)\ntorch.manual_seed(0)\n"
        "numpy.random.seed(0)\ntorch.set_default_dtype(torch.float64)\n"
        "torch.set_grad_enabled(False)\ntorch.set_num_threads(2)\n"
        "torch.use_deterministic_algorithms(True)\nvalue = 7\n"
    )
    with process_state.kept():
        random.seed(5), np.random.seed(5), torch.manual_seed(5)
        before, states = process_state.read(), process_state.generators()
        assert load_attribute(f"{tmp_path / 'model.py'}:value") == 7
        assert process_state.read() == before
        now = process_state.generators()
        assert all(process_state.same(now[key], states[key]) for key in states)
        assert os.getcwd() == before.folder
