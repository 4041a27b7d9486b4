"""The command: what it prints and where, its exit codes, and its sentences for bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from robustkit import registry
from robustkit.cli.evaluate.plan import make
from robustkit.cli.evaluate.request import Request
from robustkit.cli.program import program as main
from robustkit.evaluation.evaluate import evaluate_settings

MODELS = """
import time
import torch
from torch import nn

print("importing my models")

def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))

def other():
    return net(1)

class NaN(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :3] * float("nan")

class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):  # sound on the clean points, undefined where a pixel is black or white
        edge = ((x == 0) | (x == 1)).flatten(1).any(1, keepdim=True)
        return torch.where(edge, float("nan"), self.net(x))

class Slow(nn.Module):
    def forward(self, x):
        time.sleep(0.2)
        return x.flatten(1)[:, :3]
"""
KEYS = {
    *("defense", "data", "norm", "eps", "n", "clean", "robust", "robust_low", "robust_high"),
    *("certified", "randomized", "flags", "strongest_attack", "suite", "forwards_per_point"),
    *("backwards_per_point", "seconds", "seed", "record"),
}


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with models.py and data.npz: 12 points of 6 x 6, 3 classes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROBUSTKIT_DEBUG", raising=False)
    monkeypatch.delenv("ROBUSTKIT_DATA", raising=False)
    (tmp_path / "models.py").write_text(MODELS)
    x = np.random.default_rng(0).random((12, 6, 6), dtype=np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(12) % 3)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def evaluate(*arguments: str) -> Result:
    common = ["--data", "npz:data.npz", "--threat", "linf:0.1", "--device", "cpu"]
    return run("evaluate", *common, *arguments)


class TestEvaluate:
    def test_the_table_goes_to_stdout_and_the_rest_to_stderr(self, room: Path) -> None:
        result = evaluate("models.py:net", "--attack", "fgsm", "--out", "out")
        assert result.exit_code == 0, result.stderr
        assert "models.py:net" in result.stdout
        assert "CSV: out/leaderboard.csv" in result.stdout
        assert result.stdout.splitlines()[-1].startswith("  robustkit report out ")
        assert "of 12 robust" in result.stderr
        assert "of 12 robust" not in result.stdout
        assert (room / "out" / "leaderboard.csv").read_text().startswith("rank,")
        assert (room / "out" / "models.py-net" / "record.json").is_file()

    def test_json_is_one_object_and_nothing_else(self, room: Path) -> None:
        result = evaluate("models.py:net", "models.py:other", "--attack", "fgsm", "--json")
        assert result.exit_code == 0, result.stderr
        rows = json.loads(result.stdout)["rows"]
        assert len(rows) == 2
        assert all(set(row) >= KEYS for row in rows)
        assert all(row["certified"] is not None and row["n"] == 12 for row in rows)
        assert all(0 <= row["robust"] <= row["clean"] <= 1 for row in rows)
        assert all(Path(row["record"]).is_file() for row in rows)

    def test_quiet_is_silent(self, room: Path) -> None:
        result = evaluate("models.py:net", "--attack", "fgsm", "--quiet")
        assert (result.exit_code, result.stdout) == (0, "")
        assert result.stderr in ("", "importing my models\n")

    def test_the_same_command_resumes_in_the_same_folder(self, room: Path) -> None:
        first = json.loads(evaluate("models.py:net", "--attack", "fgsm", "--json").stdout)
        (folder,) = (room / "robustkit-runs").iterdir()
        assert folder.name.startswith("npz-data.npz-linf-0.1-attacks-12-s0-")
        again = json.loads(evaluate("models.py:net", "--attack", "fgsm", "--json").stdout)
        assert again == first
        assert list((room / "robustkit-runs").iterdir()) == [folder]
        evaluate("models.py:net", "--attack", "fgsm", "--seed", "1", "--quiet")
        assert len(list((room / "robustkit-runs").iterdir())) == 2

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (["--threat", "linf:0.2"], "threat was linf:0.1, now linf:0.2"),
            (["--n", "6"], "n was not given, now 6"),
            (["--seed", "3"], "seed was 0, now 3"),
            (["--attack", "pgd"], "attacks was fgsm, now fgsm, pgd"),
            (["models.py:other"], "models was models.py:net, now models.py:net, models.py:other"),
        ],
    )
    def test_a_folder_of_another_evaluation_is_refused(
        self, room: Path, change: list[str], told: str
    ) -> None:
        common = ["models.py:net", "--attack", "fgsm", "--out", "out", "--quiet"]
        assert evaluate(*common).exit_code == 0
        before = (room / "out" / "config.json").read_bytes()
        result = evaluate(*common, *change)
        assert result.exit_code == 2
        assert f"out holds another evaluation: {told}" in result.stderr
        assert "start over with --fresh" in result.stderr
        assert (room / "out" / "config.json").read_bytes() == before
        assert evaluate(*common, *change, "--fresh").exit_code == 0

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (["--mean", "0.3"], "mean was 0.5, now 0.3"),
            (["--mean", "0.5", "--std", "2"], "std was not given, now 2"),
        ],
    )
    def test_a_changed_normalization_is_named(
        self, room: Path, change: list[str], told: str
    ) -> None:
        common = ["models.py:net", "--attack", "fgsm", "--out", "out", "--quiet"]
        assert evaluate(*common, "--mean", "0.5").exit_code == 0
        result = evaluate(*common, *change)
        assert result.exit_code == 2
        assert f"out holds another evaluation: {told}." in result.stderr
        assert evaluate(*common, "--mean", "0.5").exit_code == 0

    def test_a_run_that_did_not_keep_its_normalization_goes_on(self, room: Path) -> None:
        common = ["models.py:net", "--attack", "fgsm", "--out", "out", "--mean", "0.5", "--quiet"]
        assert evaluate(*common).exit_code == 0
        config = json.loads((room / "out" / "config.json").read_text())
        assert config.pop("mean") == [0.5]
        (room / "out" / "config.json").write_text(json.dumps(config))
        assert evaluate(*common).exit_code == 0

    def test_several_checkpoints_go_into_one_command(self, room: Path) -> None:
        for seed in (3, 4):
            torch.manual_seed(seed)
            state = {"1.weight": torch.randn(3, 36), "1.bias": torch.zeros(3)}
            torch.save(state, room / f"{seed}.pt")
        given = ["models.py:net@3.pt", "models.py:net@4.pt"]
        rows = {
            row["defense"]: row
            for row in json.loads(evaluate(*given, "--attack", "fgsm", "--json").stdout)["rows"]
        }
        assert set(rows) == set(given)
        alone = json.loads(
            evaluate("models.py:net", "--weights", "4.pt", "--attack", "fgsm", "--json").stdout
        )["rows"][0]
        assert (rows[given[1]]["clean"], rows[given[1]]["robust"]) == (
            alone["clean"], alone["robust"]
        )  # fmt: skip
        both = evaluate("models.py:net@3.pt", "--weights", "4.pt", "--attack", "fgsm")
        assert both.exit_code == 2 and "names its weights: leave out --weights" in both.stderr

    def test_models_are_called_by_the_name_given(self, room: Path) -> None:
        given = ["models.py:net", "models.py:other", "--attack", "fgsm", "--json"]
        result = evaluate(*given, "--name", "mine", "--name", "theirs")
        rows = json.loads(result.stdout)["rows"]
        assert {row["defense"] for row in rows} == {"mine", "theirs"}
        record = json.loads(Path(rows[0]["record"]).read_text())
        assert record["arguments"]["model"] in given and record["defense"] in ("mine", "theirs")
        (room / "models.py").write_text(MODELS.replace("import time", "import time  # another"))
        again = evaluate(*given, "--name", "mine", "--name", "theirs")
        assert again.exit_code == 0  # another file of code is another run, in another folder
        assert len(list((room / "robustkit-runs").iterdir())) == 2
        few = evaluate(*given, "--name", "mine")
        assert few.exit_code == 2 and "one for each of 2 models, got 1" in few.stderr

    def test_changed_weights_are_noticed(self, room: Path) -> None:
        common = ["models.py:net", "--attack", "fgsm", "--out", "out", "--quiet"]
        assert evaluate(*common).exit_code == 0
        (room / "models.py").write_text(MODELS.replace("seed=0", "seed=5"))
        result = evaluate(*common)
        assert result.exit_code == 2
        assert "the weights of models.py:net have changed" in result.stderr

    def test_a_changed_file_of_the_model_is_named(self, room: Path) -> None:
        common = ["models.py:net", "--attack", "fgsm", "--out", "out", "--quiet"]
        assert evaluate(*common).exit_code == 0
        (room / "models.py").write_text(MODELS + "# mended")
        result = evaluate(*common)
        assert result.exit_code == 2
        assert "the file of models.py:net has changed. Choose another --out" in result.stderr

    def test_fresh_drops_the_records_of_models_that_are_gone(self, room: Path) -> None:
        common = ["--attack", "fgsm", "--out", "out", "--quiet"]
        evaluate("models.py:net", "models.py:other", *common)
        evaluate("models.py:net", "--fresh", *common)
        table = run("leaderboard", "out", "--format", "csv").stdout
        assert "models.py:net" in table
        assert "models.py:other" not in table

    def test_a_folder_of_somebody_else_is_left_alone(self, room: Path) -> None:
        (room / "config.json").write_text('{"name": "webpack"}')
        result = evaluate("models.py:net", "--attack", "fgsm", "--out", ".", "--fresh")
        assert result.exit_code == 2
        assert "config.json is not of robustkit" in result.stderr
        assert (room / "config.json").read_text() == '{"name": "webpack"}'

    def test_one_failing_model_does_not_stop_the_others(self, room: Path) -> None:
        result = evaluate("models.py:Late", "models.py:net", "--attack", "fgsm", "--json")
        assert result.exit_code == 3
        assert [row["defense"] for row in json.loads(result.stdout)["rows"]] == ["models.py:net"]
        assert "error: models.py:Late: " in result.stderr
        assert "Traceback" not in result.stderr

    def test_a_model_that_is_refused_leaves_the_folder_as_it_was(self, room: Path) -> None:
        assert evaluate("models.py:net", "--attack", "fgsm", "--out", "out").exit_code == 0
        before = {path: path.read_bytes() for path in (room / "out").rglob("*.json")}
        for more in ([], ["--fresh"]):
            result = evaluate("models.py:NaN", "--attack", "pgd", "--out", "out", *more)
            assert result.exit_code == 2
        assert {path: path.read_bytes() for path in (room / "out").rglob("*.json")} == before
        assert evaluate("models.py:NaN", "--attack", "fgsm", "--out", "new").exit_code == 2
        assert not (room / "new").exists()

    def test_ctrl_c_says_that_the_same_command_resumes(
        self, room: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("robustkit.cli.evaluate.run.evaluate_settings", stop)
        result = evaluate("models.py:net")
        assert result.exit_code == 130
        assert result.stderr.endswith("stopped: nothing is lost, and the same command resumes.\n")

    def test_ctrl_c_shows_the_models_that_are_finished(
        self, room: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = list[str]()

        def stop(settings: Any, *rest: Any, **more: Any) -> Any:
            seen.append(settings.name)
            if len(seen) > 1:
                raise KeyboardInterrupt
            return evaluate_settings(settings, *rest, **more)

        monkeypatch.setattr("robustkit.cli.evaluate.run.evaluate_settings", stop)
        result = evaluate("models.py:net", "models.py:other", "--attack", "fgsm", "--out", "out")
        assert result.exit_code == 130
        assert "models.py:net: robust 0" in result.stderr and "(1 of 2 models)" in result.stderr
        assert result.stderr.endswith("stopped: nothing is lost, and the same command resumes.\n")
        table = result.stdout.splitlines()
        assert [line.split()[1] for line in table if "models.py:" in line] == ["models.py:net"]

    def test_a_run_that_goes_on_says_so(self, room: Path) -> None:
        words = ("models.py:net", "models.py:other", "--attack", "fgsm", "--out", "out")
        assert "resumes" not in evaluate(*words).stderr
        assert "resumes: out, finished before. --fresh" in evaluate(*words).stderr
        (room / "out" / "models.py-other" / "record.json").unlink()
        assert "resumes: out, 1 of 2 models finished." in evaluate(*words).stderr
        for more in ("--quiet", "--fresh"):
            assert "resumes" not in evaluate(*words, more).stderr

    @pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
    def test_a_file_system_that_takes_no_files_is_refused_at_once(self, room: Path) -> None:
        result = evaluate("models.py:net", "--out", "/proc/x")
        assert result.exit_code == 2
        assert "/proc/x cannot be written: /proc takes no files" in result.stderr

    def test_quick_says_that_it_is_no_claim(self, room: Path) -> None:
        result = evaluate("models.py:net")
        assert result.exit_code == 0, result.stderr
        assert "defend a claim by --suite fast or parity." in result.stdout

    def test_statistics_and_weights_reach_the_model(self, room: Path) -> None:
        import torch

        torch.save({"1.weight": torch.zeros(3, 36), "1.bias": torch.ones(3)}, room / "w.pt")
        arguments = ["models.py:net", "--weights", "w.pt", "--mean", "1/2", "--std", "0.25"]
        assert evaluate(*arguments, "--attack", "fgsm", "--out", "out", "--quiet").exit_code == 0
        record = json.loads((room / "out" / "models.py-net" / "record.json").read_text())
        told = "inputs are normalized: mean 0.5, std 0.25"
        assert record["notes"][:2] == ["weights: w.pt", told]
        assert set(record["points"]["predicted"]) == {0}

    def test_the_usual_threat_of_the_data_is_the_default(
        self, room: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        entry = registry.datasets.entry("bundled")
        usual = entry._replace(facts={**entry.facts, "threat": "l2:0.7"})
        monkeypatch.setitem(registry.datasets._entries, "bundled", usual)
        (room / "flat.py").write_text(
            "from torch import nn\n\ndef net():\n"
            "    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
        )
        result = run("evaluate", "flat.py:net", "--n", "20", "--attack", "fgsm", "--json")
        assert result.exit_code == 0, result.stderr
        (row,) = json.loads(result.stdout)["rows"]
        assert (row["norm"], row["eps"], row["n"]) == ("l2", 0.7, 20)


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["--suite", "parity", "--attack", "fgsm"], "--suite and --attack exclude each other"),
            (["--attack", "fgmm"], "Unknown attack 'fgmm'. Did you mean 'fgsm'?"),
            (["--attack", "fgsm(steps=3)"], "Attack 'fgsm' has no option 'steps'"),
            (["--suite", "partiy"], "Unknown suite 'partiy'. Did you mean 'parity'?"),
            (["--threat", "linf"], "expected a threat model such as 'linf:8/255'"),
            (["--threat", "linf:-1"], "eps must be positive and finite, got -1.0"),
            (["--threat", "l3:1"], "Unknown norm 'l3'"),
            (["--n", "13"], "expected n from 1 to 12"),
            (["--n", "0"], "Invalid value for '--n': 0 is not in the range x>=1."),
            (["--device", "tpu"], "expected device auto, cpu, cuda or cuda:0, got 'tpu'"),
            (["--device", "cuda:99"], "device 'cuda:99' does not exist"),
            (["--batch-size", "many"], "expected 'auto' or a positive whole number, got 'many'"),
            (["--mean", "a,b"], "Invalid value for '--mean': expected comma-separated numbers"),
            (["--weights", "gone.pt"], "gone.pt does not exist"),
            (["--data", "npz:gone.npz"], "gone.npz"),
            (["--data", "bundeld"], "Did you mean 'bundled'"),
            (["models.py:net"], "models.py:net is listed twice"),
            (["models.py:gone"], "models.py has no attribute 'gone'. It defines: Late"),
            (["--frsh"], "No such option"),
        ],
    )
    def test_it_is_one_sentence_and_nothing_is_written(
        self, room: Path, arguments: list[str], told: str
    ) -> None:
        result = evaluate("models.py:net", *arguments)
        assert result.exit_code == 2
        assert told in result.stderr
        assert result.stderr.removeprefix("importing my models\n").startswith("error: ")
        assert result.stdout == ""
        assert not (room / "robustkit-runs").exists()

    def test_weights_go_with_one_model(self, room: Path) -> None:
        result = evaluate("models.py:net", "models.py:other", "--weights", "w.pt")
        assert "--weights goes with exactly one MODEL, got 2" in result.stderr

    def test_data_without_a_usual_threat_needs_one(self, room: Path) -> None:
        result = run("evaluate", "models.py:net", "--data", "npz:data.npz")
        assert result.exit_code == 2
        assert "no threat model is usual for 'npz:data.npz'" in result.stderr

    def test_data_without_bundled_models_needs_a_model(self, room: Path) -> None:
        result = evaluate()
        assert result.exit_code == 2
        assert "no model is bundled for npz:data.npz" in result.stderr

    def test_an_unknown_command_gets_a_suggestion(self) -> None:
        result = run("evalute")
        assert result.exit_code == 2
        assert "Unknown command 'evalute'. Did you mean 'evaluate'?" in result.stderr

    def test_debug_shows_the_traceback(self, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "Traceback" in evaluate("models.py:gone", "--debug").stderr
        monkeypatch.setenv("ROBUSTKIT_DEBUG", "1")
        assert "Traceback" in evaluate("models.py:gone").stderr

    def test_a_bug_is_reported_without_a_traceback(
        self, room: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def bug(*_: Any, **__: Any) -> None:
            raise KeyError("inner")

        monkeypatch.setattr("robustkit.cli.evaluate.run.evaluate_settings", bug)
        result = evaluate("models.py:net")
        assert result.exit_code == 3
        assert "KeyError: 'inner'. robustkit did not expect this" in result.stderr
        assert "Traceback" not in result.stderr


class TestList:
    @pytest.mark.parametrize(
        "kind", ["attacks", "defenses", "losses", "datasets", "suites", "threats", "criteria"]
    )
    def test_everything_registered_is_listed(self, kind: str) -> None:
        names = list(getattr(registry, kind))
        found = json.loads(run("list", kind, "--json").stdout)
        assert [entry["name"] for entry in found["entries"]] == names
        assert all(entry["summary"] and entry["source"] for entry in found["entries"])
        table = run("list", kind)
        assert table.exit_code == 0
        assert all(name in table.stdout for name in names)

    def test_options_have_their_defaults(self) -> None:
        found = json.loads(run("list", "defenses", "--json").stdout)["entries"]
        pgd_at = next(entry for entry in found if entry["name"] == "pgd_at")
        options = {"eps": 0.1, "steps": 7, "net": "small_cnn", "width": 32, "loss": "ce"}
        assert pgd_at["options"] == options

    def test_an_unknown_kind_is_refused(self) -> None:
        result = run("list", "atacks")
        assert result.exit_code == 2
        assert "'atacks' is not one of 'attacks', 'defenses'" in result.stderr


class TestLeaderboard:
    @pytest.fixture
    def records(self, room: Path) -> Path:
        evaluate("models.py:net", "models.py:other", "--attack", "fgsm", "--out", "out", "--quiet")
        return room / "out"

    @pytest.mark.parametrize(
        ("layout", "told"),
        [
            ("table", "models.py:other"),
            ("csv", "rank,"),
            ("markdown", "| --- |"),
            ("latex", "\\begin{tabular}"),
            ("json", '"rows"'),
        ],
    )
    def test_every_format_to_stdout_and_to_a_file(
        self, records: Path, layout: str, told: str
    ) -> None:
        shown = run("leaderboard", str(records), "--format", layout)
        assert shown.exit_code == 0
        assert told in shown.stdout
        written = run(
            "leaderboard", str(records), "--format", layout, "--output", str(records / "t")
        )
        assert (written.exit_code, written.stdout) == (0, "")
        assert (records / "t").read_text() == shown.stdout

    def test_it_agrees_with_what_evaluate_wrote(self, records: Path) -> None:
        shown = run("leaderboard", "out", "--format", "csv")
        assert shown.stdout == (records / "leaderboard.csv").read_text()

    def test_no_records_is_a_usage_error(self, room: Path) -> None:
        result = run("leaderboard", str(room))
        assert result.exit_code == 2
        assert "expected records" in result.stderr


class TestTrain:
    @pytest.fixture
    def root(self, room: Path, write_mnist: Callable[[Path, int], None]) -> Path:
        write_mnist(room, 128)
        return room

    def train(self, root: Path, *arguments: str, more: str = "") -> Result:
        common = ["--data", "mnist", "--data-root", str(root), "--device", "cpu"]
        return run("train", f"pgd_at(width=2, steps=1{more})", *common, "--epochs", "1", *arguments)

    def test_weights_and_card_are_left_and_evaluate_takes_them(self, root: Path) -> None:
        result = self.train(root, "--batch-size", "32", "--out", "trained")
        assert result.exit_code == 0, result.stderr
        card = json.loads((root / "trained" / "card.json").read_text())
        assert card["options"] == {
            **{"eps": 0.1, "steps": 1, "net": "small_cnn"},
            **{"width": 2, "loss": "ce"},
        }
        assert (card["defense"], card["data"], card["epochs"]) == ("pgd_at", "mnist", 1)
        assert card["measured"]["n"] == 40
        assert 0 <= card["measured"]["pgd20"] <= card["measured"]["clean"] <= 1
        assert card["command"] == (
            "robustkit train 'pgd_at(steps=1, width=2)' --data mnist --epochs 1 --batch-size 32 "
            "--seed 0"
        )
        following = next(x for x in result.stdout.splitlines() if x.startswith("next: "))
        assert "robustkit evaluate 'pgd_at(steps=1, width=2)' --data mnist" in following
        common = ["--data", "mnist", "--data-root", str(root), "--threat", "linf:0.1"]
        weights = ["--weights", "trained/model.safetensors", "--attack", "fgsm", "--json"]
        found = run("evaluate", "pgd_at", *common, *weights)
        assert found.exit_code == 0, found.stderr
        (row,) = json.loads(found.stdout)["rows"]
        assert row["defense"] == "pgd_at(steps=1, width=2)"
        assert row["clean"] == card["measured"]["clean"]

    def test_a_loss_is_named_by_the_card_and_its_weights_are_found_by_it(self, root: Path) -> None:
        loss = ", loss=comp_sum(tau=0.50)"
        result = self.train(root, "--batch-size", "64", "--out", "trained", more=loss)
        assert result.exit_code == 0, result.stderr
        card = json.loads((root / "trained" / "card.json").read_text())
        assert card["options"]["loss"] == "comp_sum(tau=0.5)"
        common = ["--data", "mnist", "--data-root", str(root), "--threat", "linf:0.1"]
        common += ["--weights", "trained/model.safetensors", "--attack", "fgsm", "--json"]
        for spec in ("pgd_at", "pgd_at(loss=comp_sum(tau=1/2))"):
            found = run("evaluate", spec, *common)
            assert found.exit_code == 0, found.stderr
            (row,) = json.loads(found.stdout)["rows"]
            assert row["defense"] == "pgd_at(loss='comp_sum(tau=0.5)', steps=1, width=2)"
        other = run("evaluate", "pgd_at(loss=z_loss)", *common)
        assert other.exit_code == 2
        assert "these weights are not of pgd_at(loss=z_loss)" in other.stderr
        again = self.train(root, "--batch-size", "64", "--out", "trained")
        assert again.exit_code == 2
        assert "loss was 'comp_sum(tau=0.5)', now 'ce'" in again.stderr

    def test_points_left_out_are_the_only_ones_measured(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Choosing among trainings must not look at the test data."""
        opened = []
        real = import_module("robustkit.data.open").open_dataset

        def spy(*arguments: Any, split: str = "test", **given: Any) -> Any:
            opened.append(split)
            return real(*arguments, split=split, **given)

        monkeypatch.setattr("robustkit.cli.train.run.open_dataset", spy)
        options = ("--batch-size", "32", "--validation", "20", "--out", "trained")
        result = self.train(root, *options)
        assert result.exit_code == 0, result.stderr
        assert opened == ["train"]
        assert "on 20 validation points: clean" in result.stdout
        card = json.loads((root / "trained" / "card.json").read_text())
        assert (card["measured"]["n"], card["measured"]["split"]) == (20, "validation")
        assert "--batch-size 32 --validation 20 --seed 0" in card["command"]
        state = torch.load(root / "trained" / "state.pt", weights_only=True)
        assert (state["identity"]["points"], state["step"]) == (108, 3)
        other = self.train(root, "--batch-size", "32", "--validation", "30", "--out", "trained")
        assert other.exit_code == 2
        assert "holds another training" in other.stderr
        whole = self.train(root, "--validation", "128")
        assert "--validation: expected fewer than the 128 points of mnist, got 128" in whole.stderr

    def test_it_is_deterministic_and_fresh_starts_over(self, root: Path) -> None:
        weights = root / "robustkit-models" / "pgd_at-steps=1-width=2-mnist" / "model.safetensors"
        assert self.train(root, "--quiet").stdout == ""
        first = weights.read_bytes()
        assert self.train(root, "--quiet", "--fresh").exit_code == 0
        assert weights.read_bytes() == first

    def test_a_folder_of_another_training_is_refused(self, root: Path) -> None:
        self.train(root, "--out", "trained", "--quiet")
        result = self.train(root, "--out", "trained", "--seed", "1")
        assert result.exit_code == 2
        assert "trained holds another training: seed was 0, now 1" in result.stderr

    def test_a_training_on_other_data_is_refused(self, root: Path) -> None:
        self.train(root, "--out", "trained", "--quiet")
        state = torch.load(root / "trained" / "state.pt", weights_only=True)
        with np.load(root / "mnist.npz") as stored:
            arrays = dict(stored)
        arrays["x_train"][5, 3, 3] ^= 1
        np.savez(root / "mnist.npz", **arrays)
        result = self.train(root, "--out", "trained")
        assert result.exit_code == 2
        assert "a training that began on other data" in result.stderr.replace("\n", " ")
        del state["data"]
        torch.save(state, root / "trained" / "state.pt")
        result = self.train(root, "--out", "trained")
        assert result.exit_code == 0
        assert "does not say which data it began on" in result.stderr.replace("\n", " ")

    def test_a_calibration_leaves_another_training_alone(self, root: Path) -> None:
        self.train(root, "--out", "trained", "--quiet")
        weights, card = (root / "trained" / name for name in ("model.safetensors", "card.json"))
        before = weights.read_bytes(), card.read_bytes()
        given = ["--data", "mnist", "--data-root", str(root), "--device", "cpu"]
        for told in ("defense was 'pgd_at', now 'mixednuts'", "its weights have no card"):
            result = run("train", "mixednuts", *given, "--out", "trained")
            assert result.exit_code == 2
            assert f"trained holds another training: {told}" in result.stderr.replace("\n", " ")
            assert weights.read_bytes() == before[0]
            assert card.read_bytes() == before[1]
            before = before[0], before[1].replace(b'"sha256": "', b'"sha256": "0')
            card.write_bytes(before[1])

    def test_a_batch_larger_than_the_data_is_refused(self, root: Path) -> None:
        result = self.train(root, "--batch-size", "129")
        assert result.exit_code == 2
        assert "expected at most the 128 points" in result.stderr

    def test_the_bundled_images_are_not_for_training(self, room: Path) -> None:
        result = run("train", "undefended", "--data", "bundled")
        assert result.exit_code == 2
        assert "Train on fashion_mnist" in result.stderr


def shell(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "robustkit", *arguments], cwd=cwd, capture_output=True, text=True
    )


def test_help_and_version_do_not_import_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom robustkit.cli.program import program as main\n"
        "for word in ('--help', '--version', 'evaluate --help', 'train --help'):\n"
        "    main(word.split(), standalone_mode=False)\n"
        "heavy = {'torch', 'numpy', 'pandas', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert b"robustkit, version" in result.stdout


def test_tables_and_pages_of_records_do_not_import_torch(tmp_path: Path) -> None:
    records = str(Path(__file__).parents[2] / "leaderboards" / "records")
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from robustkit.cli.program import program as main\n"
        f"main(['leaderboard', {records!r}], standalone_mode=False)\n"
        "from robustkit.leaderboard.report.html import write_page\n"
        "from robustkit.leaderboard.rows import load_records\n"
        "import robustkit.cli.progress\n"
        f"write_page(load_records([{records!r}]), Path('page.html'))\n"
        "sys.exit(', '.join({'torch', 'scipy.stats'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "page.html").stat().st_size


@pytest.mark.slow
def test_the_exit_code_and_json_of_a_real_process(room: Path) -> None:
    common = ["--data", "npz:data.npz", "--threat", "linf:0.1", "--attack", "fgsm", "--json"]
    result = shell("evaluate", "models.py:Late", "models.py:net", *common, cwd=room)
    assert result.returncode == 3, result.stderr
    assert json.loads(result.stdout)["rows"][0]["n"] == 12
    assert "error: models.py:Late: " in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_on_a_real_process(room: Path, stop_by_ctrl_c: Callable[..., None]) -> None:
    arguments = ["evaluate", "models.py:Slow", "--data", "npz:data.npz", "--threat", "linf:1e-6"]
    arguments += ["--attack", "pgd(steps=2000)", "--out", "out"]
    stop_by_ctrl_c(arguments, room, [room / "out" / "models.py-Slow" / "ledger.sqlite"], 60)


def test_a_first_look_takes_200_points_and_a_named_model_all() -> None:
    assert make(Request()).request.n == 200
    assert make(Request(n=30)).request.n == 30
    assert make(Request(models=("pgd_at",))).request.n is None
