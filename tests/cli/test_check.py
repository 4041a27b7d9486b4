"""`robustkit check`, `baseline`, `init`, `plan`, `history` as a user types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from robustkit.cli.program import program as main
from robustkit.errors import UsageError
from robustkit.gate.baseline import Baseline, attacks_of, models_of
from robustkit.leaderboard.history import history
from robustkit.record.record import Record, load, save

MODELS = """
import time
import torch
from torch import nn

def net(noise=0.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval()
    with torch.no_grad():
        model[1].weight.mul_(5).add_(noise * torch.randn(3, 36))
    return model

def ruined():
    return net(5.0)

class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):  # sound on the clean points, undefined where a pixel is black or white
        edge = ((x == 0) | (x == 1)).flatten(1).any(1, keepdim=True)
        return torch.where(edge, float("nan"), self.net(x))

class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        time.sleep(0.05)
        return self.net(x)
"""


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with models.py, and data.npz that models.py:net gets right."""
    import torch

    monkeypatch.chdir(tmp_path)
    for name in ("ROBUSTKIT_DEBUG", "ROBUSTKIT_DATA", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "models.py").write_text(MODELS)
    x = np.random.default_rng(0).random((90, 1, 6, 6), dtype=np.float32)
    scope: dict[str, Any] = {}
    exec(MODELS, scope)
    with torch.no_grad():
        y = scope["net"]()(torch.from_numpy(x)).argmax(1).numpy()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def evaluate(*arguments: str) -> Result:
    common = ["--data", "npz:data.npz", "--threat", "linf:0.05", "--attack", "apgd(steps=5)"]
    return run("evaluate", *common, "--device", "cpu", "--quiet", *arguments)


def check(*arguments: str) -> Result:
    return run("check", "--device", "cpu", *arguments)


@pytest.fixture
def base(room: Path) -> Path:
    assert evaluate("models.py:net", "--certify", "none", "--out", "base").exit_code == 0
    return room / "base"


class TestCheck:
    def test_the_same_model_passes_with_a_table_and_a_sentence(self, base: Path) -> None:
        result = check("models.py:net", "--baseline", "base", "--tolerance", "0.2")
        assert result.exit_code == 0, result.stderr
        assert "pass: models.py:net has not regressed against models.py:net" in result.stdout
        assert "the answer was certain" in result.stdout
        (folder,) = (base.parent / "robustkit-runs").iterdir()
        assert {"record.json", "check.json", "ledger.sqlite"} <= {p.name for p in folder.iterdir()}

    def test_without_a_model_those_of_the_baseline_are_checked(self, room: Path) -> None:
        how = ["--data", "bundled", "--n", "20", "--threat", "linf:0.1", "--attack", "fgsm"]
        assert run("evaluate", "pgd_at", *how, "--out", "base", "--quiet").exit_code == 0
        result = check("--baseline", "base", "--json", "--tolerance", "0.2")
        assert result.exit_code == 0, result.stderr
        told = json.loads(result.stdout)
        assert (told["schema"], told["exit_code"]) == ("robustkit/checks/1", 0)
        assert [one["candidate"] for one in told["checks"]] == ["pgd_at"]

    def test_a_regression_is_exit_code_1_and_quiet_says_why(self, base: Path) -> None:
        result = check(
            "models.py:ruined", "--baseline", "base/models.py-net/record.json", "--quiet"
        )
        assert (result.exit_code, result.stdout) == (1, "")
        assert "models.py:ruined has regressed against models.py:net" in result.stderr

    def test_reports_are_written(self, base: Path) -> None:
        result = check(
            *("models.py:ruined", "--baseline", "base", "--quiet"),
            *("--junit", "r/junit.xml", "--sarif", "r/check.sarif", "--markdown", "r/check.md"),
        )
        assert result.exit_code == 1
        root = ElementTree.parse("r/junit.xml").getroot()
        assert root.attrib["failures"] == "1"
        sarif = json.loads(Path("r/check.sarif").read_text())
        (found,) = sarif["runs"][0]["results"]
        place = found["locations"][0]["physicalLocation"]["artifactLocation"]
        assert (found["ruleId"], place["uri"]) == ("robust", "models.py")
        assert "❌ regressed" in Path("r/check.md").read_text(encoding="utf-8")

    @pytest.mark.parametrize(("word", "code"), [("error", 3), ("fail", 1), ("pass", 0)])
    def test_an_open_answer(self, base: Path, word: str, code: int) -> None:
        result = check(
            *("models.py:net", "--baseline", "base", "--tolerance", "0"),
            *("--max-forwards", "1", "--undecided", word),
        )
        assert result.exit_code == code, result.stderr
        assert "undecided: models.py:net cannot be told from a regression" in result.stdout
        assert "the 74 points that are left decide" in result.stdout

    def test_one_that_cannot_finish_is_exit_code_3_and_the_others_are_checked(
        self, base: Path
    ) -> None:
        models = ["models.py:Late", "models.py:net"]
        result = check(*models, "--baseline", "base", "--tolerance", "0.2", "--no-replay")
        assert result.exit_code == 3, result.stderr
        assert "error: models.py:Late: " in result.stderr
        assert "pass: models.py:net" in result.stdout

    def test_a_certificate_that_nobody_asked_for_is_no_demand(self, room: Path) -> None:
        assert evaluate("models.py:net", "--out", "base").exit_code == 0
        same = check("models.py:net", "--baseline", "base", "--tolerance", "0.2")
        assert same.exit_code == 0, same.stderr
        unbounded = ["models.py:Late", "--baseline", "base", "--no-replay"]  # cannot be bounded
        result = check(*unbounded)
        assert result.exit_code == 3, result.stderr
        assert check(*unbounded, "--metric", "certified").exit_code == 2

    @pytest.mark.parametrize("others", [[], ["models.py:net"]])
    def test_reports_say_what_could_not_finish(self, base: Path, others: list[str]) -> None:
        result = check("models.py:Late", *others, "--baseline", "base", "--tolerance", "0.2",
                       "--no-replay", "--json", "--junit", "j.xml", "--sarif", "r.sarif",
                       "--markdown", "s.md")  # fmt: skip
        told = json.loads(result.stdout)
        assert result.exit_code == told["exit_code"] == 3
        assert [row["candidate"] for row in told["checks"]] == others
        assert told["failures"][0]["candidate"] == "models.py:Late"
        root = ElementTree.parse("j.xml").getroot()
        assert (root.get("errors"), root.get("tests")) == ("1", str(1 + 2 * len(others)))
        error = root.find("testsuite[@name='models.py:Late']/testcase/error")
        assert error is not None
        assert "NaN or infinite logits" in str(error.text)
        assert "could not finish" in Path("s.md").read_text().splitlines()[1]
        (log,) = json.loads(Path("r.sarif").read_text())["runs"]
        (ended,) = log["invocations"]
        assert not ended["executionSuccessful"]
        (notice,) = ended["toolExecutionNotifications"]
        assert notice["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "models.py"

    def test_a_regression_counts_for_more_than_one_that_cannot_finish(self, base: Path) -> None:
        models = ["models.py:Late", "models.py:ruined"]
        assert check(*models, "--baseline", "base", "--no-replay").exit_code == 1

    def test_records_are_compared_without_a_run(self, base: Path) -> None:
        assert evaluate("models.py:ruined", "--out", "new").exit_code == 0
        result = check("new", "--baseline", "base")
        assert result.exit_code == 1, result.stderr
        assert "90 of 90 points" in result.stdout
        assert not (base.parent / "robustkit-runs").exists()

    def test_the_same_command_resumes_and_another_candidate_gets_its_own_folder(
        self, base: Path
    ) -> None:
        command = ["models.py:net", "--baseline", "base", "--tolerance", "0", "--json"]
        first = json.loads(check(*command, "--max-forwards", "1").stdout or "{}")
        assert first["checks"][0]["n"] == 16
        again = json.loads(check(*command).stdout)
        assert again["checks"][0]["n"] == 90
        assert again["checks"][0]["record"] == first["checks"][0]["record"]
        assert check("models.py:ruined", "--baseline", "base").exit_code == 1
        assert len(list((base.parent / "robustkit-runs").iterdir())) == 2

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["--baseline", "gone"], "there is no baseline at gone: record one with"),
            ([], "there is no baseline at robustkit-baseline"),
            (["--baseline", "models.py"], "models.py"),
            (["--baseline", "base", "--metric", "speed"], "Unknown metric 'speed'"),
            (["--baseline", "base", "--metric", "certified"], "has no certified points"),
            (["--baseline", "base", "--data", "bundled"], "does not hold the points"),
            (["--baseline", "base", "--max-time", "soon"], "expected a time such as"),
            (["--baseline", "base", "--tolerance", "1"], "--tolerance"),
            (["--baseline", "base", "models.py:gone"], "has no attribute 'gone'"),
            (["--baseline", "base", "--config", "gone.toml"], "gone.toml"),
            (["--baseline", "base", "models.py:ruined", "--weights", "w.pt"], "exactly one MODEL"),
            (["--baseline", "base", "models.py:net"], "is checked twice"),
        ],
    )
    def test_bad_requests_are_exit_code_2_and_run_nothing(
        self, base: Path, arguments: list[str], told: str
    ) -> None:
        result = check("models.py:net", *arguments)
        assert result.exit_code == 2
        assert told in result.stderr
        assert "Traceback" not in result.stderr
        assert not (base.parent / "robustkit-runs").exists()

    def test_changed_data_is_refused(self, base: Path) -> None:
        with np.load("data.npz") as kept:
            x, y = kept["x"] * 0.9, kept["y"]
        np.savez("data.npz", x=x, y=y)
        result = check("models.py:net", "--baseline", "base")
        assert result.exit_code == 2
        assert "have changed (the digests differ)" in result.stderr


CONFIG = """
data = "npz:data.npz"
threat = "linf:0.05"
suite = "quick"
baseline = "kept"

[[models]]
model = "models.py:net"

[check]
tolerance = 0.2
"""


class TestProject:
    @pytest.mark.slow
    def test_from_init_to_check_and_back_to_a_new_baseline(self, room: Path) -> None:
        (room / "robustkit.toml").write_text(CONFIG)
        missing = check()
        assert missing.exit_code == 2
        assert "there is no baseline at" in missing.stderr
        made = run("baseline", "update", "--reason", "first", "--device", "cpu")
        assert made.exit_code == 0, made.stderr
        assert "models.py:net: robust" in made.stdout
        assert check().exit_code == 0
        assert check("--tolerance", "0.3").exit_code == 0
        (room / "models.py").write_text(MODELS.replace("noise=0.0", "noise=5.0"))
        assert check("--quiet").exit_code == 1
        again = run("baseline", "update", "--reason", "smaller net", "--quiet", "--device", "cpu")
        assert again.exit_code == 0, again.stderr
        assert check("--quiet").exit_code == 0
        log = [json.loads(x) for x in (room / "kept" / "log.jsonl").read_text().splitlines()]
        assert [entry["reason"] for entry in log] == ["first", "smaller net"]
        assert log[1]["robust_before"] == log[0]["robust"] > log[1]["robust"]
        listed = run("baseline", "list")
        assert listed.exit_code == 0
        assert "smaller net" in listed.stdout

    def test_an_unreadable_baseline_is_replaced(self, room: Path) -> None:
        (room / "robustkit.toml").write_text(CONFIG)
        update = ("baseline", "update", "--reason", "anew", "--device", "cpu")
        run(*update)
        (path,) = (room / "kept").glob("*/record.json")
        path.write_text("garbage{")
        again = run(*update)
        assert again.exit_code == 0, again.stderr
        assert "the baseline before cannot be read" in again.stderr
        log = [json.loads(x) for x in (room / "kept" / "log.jsonl").read_text().splitlines()]
        assert log[1]["robust_before"] is None
        assert json.loads(path.read_text())["schema"]

    def test_a_baseline_of_another_threat_model_does_not_serve(self, room: Path) -> None:
        (room / "robustkit.toml").write_text(CONFIG)
        run("baseline", "update", "--reason", "first", "--device", "cpu", "--quiet")
        (room / "robustkit.toml").write_text(CONFIG.replace("0.05", "0.06"))
        result = check()
        assert result.exit_code == 2
        assert "no baseline fits models.py:net (npz:data.npz, linf:0.06, quick)" in result.stderr

    def test_examples_are_kept_when_asked_for_and_replayed(self, room: Path) -> None:
        (room / "robustkit.toml").write_text(CONFIG)
        run("baseline", "update", "--reason", "first", "--examples", "--device", "cpu", "--quiet")
        (one,) = json.loads(check("--json").stdout)["checks"]
        assert one["replayed"] > 0

    def test_a_reason_is_needed(self, room: Path) -> None:
        (room / "robustkit.toml").write_text(CONFIG)
        assert run("baseline", "update").exit_code == 2
        assert "expected why" in run("baseline", "update", "--reason", " ").stderr

    def test_init_writes_once_what_check_can_read(self, room: Path) -> None:
        assert run("init", "--data", "npz:data.npz", "--threat", "l2:0.5").exit_code == 0
        text = (room / "robustkit.toml").read_text()
        assert 'threat = "l2:0.5"' in text
        refused = run("init")
        assert refused.exit_code == 2
        assert "has a configuration already" in refused.stderr
        assert (room / "robustkit.toml").read_text() == text

    def test_init_puts_no_configuration_out_of_force(self, room: Path) -> None:
        assert run("init", "--pyproject").exit_code == 0
        refused = run("init")
        assert refused.exit_code == 2
        assert "which robustkit.toml would put out of force" in refused.stderr
        assert not (room / "robustkit.toml").exists()

    def test_init_adds_no_table_that_would_not_count(self, room: Path) -> None:
        (room / "pyproject.toml").write_text("# tool.robustkit is set in robustkit.toml\n")
        (room / "robustkit.toml").write_text(CONFIG)
        refused = run("init", "--pyproject")
        assert refused.exit_code == 2
        assert "robustkit.toml has a configuration already, which would keep" in refused.stderr
        (room / "robustkit.toml").unlink()
        assert run("init", "--pyproject").exit_code == 0

    def test_init_adds_a_table_to_pyproject(self, room: Path) -> None:
        (room / "pyproject.toml").write_text('[project]\nname = "mine"\n')
        assert run("init", "--pyproject").exit_code == 0
        text = (room / "pyproject.toml").read_text()
        assert text.startswith('[project]\nname = "mine"\n')
        assert "[tool.robustkit]" in text and "[[tool.robustkit.models]]" in text
        assert run("init", "--pyproject").exit_code == 2


class TestPlan:
    def test_it_says_how_many_points_are_needed(self) -> None:
        result = run("plan", "--effect", "0.05", "--power", "0.8", "--n", "1000")
        assert result.exit_code == 0, result.stderr
        assert "paired, exact McNemar" in result.stdout
        told = json.loads(run("plan", "--effect", "0.05", "--n", "1000", "--json").stdout)
        assert {need["test"] for need in told["needs"]} >= {"unpaired, Fisher", "sequential"}

    def test_two_records_tell_the_discordance(self, base: Path) -> None:
        assert evaluate("models.py:ruined", "--out", "new").exit_code == 0
        paths = ["base/models.py-net/record.json", "new/models.py-ruined/record.json"]
        result = run("plan", "--effect", "0.05", "--n", "500", "--like", *paths)
        assert result.exit_code == 0, result.stderr
        evaluate("models.py:ruined", "--n", "30", "--out", "few")
        paths[1] = "few/models.py-ruined/record.json"
        refused = run("plan", "--effect", "0.05", "--like", *paths)
        assert refused.exit_code == 2
        assert "about different points" in refused.stderr

    def test_nonsense_is_refused(self) -> None:
        assert run("plan", "--effect", "2").exit_code == 2
        assert run("plan", "--effect", "0.1", "--discordance", "0.01").exit_code == 2


class TestEvaluate:
    def test_a_budget_gives_an_interval_for_what_is_finished(self, room: Path) -> None:
        common = ["models.py:net", "--data", "npz:data.npz", "--threat", "linf:0.05"]
        result = run("evaluate", *common, "--attack", "fgsm", "--max-forwards", "1", "--out", "out")
        assert result.exit_code == 0, result.stderr
        told = " ".join(result.stderr.split())
        assert "models.py:net: 16 of 90 points, in a random order" in told
        whole = run("evaluate", *common, "--attack", "fgsm", "--out", "out", "--json")
        assert json.loads(whole.stdout)["rows"][0]["n"] == 90

    def test_replay(self, base: Path) -> None:
        assert evaluate("models.py:net", "--replay", "base", "--out", "new").exit_code == 0
        record = json.loads(Path("new/models.py-net/record.json").read_text())
        assert record["stages"][0]["attack"] == "replay"
        assert record["stages"][0]["broken"] > 0
        refused = evaluate("models.py:net", "--replay", "gone", "--out", "newer")
        assert refused.exit_code == 2
        assert "holds no ledger.sqlite" in refused.stderr
        other = evaluate("models.py:net", "--out", "new")
        assert "holds another evaluation: replay was base, now not given" in other.stderr


class TestHistory:
    def test_a_baseline_and_its_run_are_one_line(self, make_record: Callable[..., Record]) -> None:
        run_of = make_record("net", "rrbm")
        kept = run_of.model_copy(update={"arguments": {**run_of.arguments, "reason": "first"}})
        for order in (["a", "b"], ["b", "a"]):
            pairs = {"a": run_of, "b": kept}
            frame = history([(name, pairs[name]) for name in order])
            assert [(line.record, line.reason) for line in frame.itertuples()] == [("b", "first")]

    def test_runs_of_another_size_are_not_compared(
        self, make_record: Callable[..., Record]
    ) -> None:
        made = [make_record("net", letters, started=f"2026-01-0{day}T00:00:00+00:00")
                for day, letters in enumerate(("rrbm", "rrrrbm", "rbbm"), 1)]  # fmt: skip
        changes = history([(str(i), record) for i, record in enumerate(made)])["change"]
        assert changes.isna().tolist() == [True, True, False]
        assert changes[2] == -0.25

    def test_the_same_images_at_other_positions_are_not_paired(
        self, make_record: Callable[..., Record]
    ) -> None:
        first = make_record("net", "rrbm")
        moved = first.points.model_copy(update={"index": [10, 11, 12, 13]})
        later = first.model_copy(update={"points": moved, "started": "2027-01-01T00:00:00+00:00"})
        frame = history([("a", first), ("b", later)])
        assert frame["p"].isna().all()

    def test_table_csv_and_plot(self, base: Path) -> None:
        assert evaluate("models.py:net", "--seed", "1", "--out", "later").exit_code == 0
        table = run("history", "base", "later")
        assert table.exit_code == 0, table.stderr
        assert table.stdout.count("models.py:net") == 2
        csv = run("history", "base", "later", "--format", "csv").stdout
        assert csv.startswith("started,commit,defense,")
        assert len(csv.splitlines()) == 3
        for suffix in ("png", "svg"):
            drawn = run("history", "base", "later", "--plot", f"h.{suffix}", "--output", "h.csv")
            assert drawn.exit_code == 0, drawn.stderr
            assert Path(f"h.{suffix}").stat().st_size > 1000
        assert Path("h.csv").read_text() == csv

    def test_a_missing_matplotlib_is_named(
        self, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        result = run("history", "base", "--plot", "h.png")
        assert result.exit_code == 3
        assert 'pip install "robustkit-eval[report]"' in result.stderr


MINE = """
from pathlib import Path
import numpy as np

Path("mark").touch()

def load():
    file = np.load(Path(__file__).with_name("data.npz"))
    return file["x"], file["y"]
"""


class TestARecordIsDataNeverCode:
    """What a baseline names is imported only if the user named it too; the mark says so."""

    @pytest.fixture
    def strange(self, base: Path) -> Path:
        """A baseline whose record names mine.py:load as its data."""
        (base.parent / "mine.py").write_text(MINE)
        (path,) = base.rglob("record.json")
        record = load(path)
        named = record.arguments | {"data": "mine.py:load"}
        path.unlink()
        save(record.model_copy(update={"arguments": named}), path)
        return base.parent / "mark"

    def test_its_data_is_not_imported(self, strange: Path) -> None:
        result = check("models.py:net", "--baseline", "base")
        assert (result.exit_code, strange.exists()) == (2, False)
        assert "`robustkit check models.py:net --data mine.py:load`" in result.stderr

    def test_unless_the_command_names_it(self, strange: Path) -> None:
        words = ["models.py:net", "--baseline", "base", "--tolerance", "0.2"]
        result = check(*words, "--data", "mine.py:load")
        assert (result.exit_code, strange.exists()) == (0, True), result.stderr

    def test_or_the_configuration(self, strange: Path) -> None:
        Path("robustkit.toml").write_text('data = "mine.py:load"\n')
        result = check("models.py:net", "--baseline", "base", "--tolerance", "0.2")
        assert (result.exit_code, strange.exists()) == (0, True), result.stderr

    def test_nor_from_python(self, strange: Path) -> None:
        from robustkit.integrations.testing import assert_not_regressed

        with pytest.raises(UsageError, match=r'data="mine\.py:load" in Python'):
            assert_not_regressed("models.py:net", "base")
        assert not strange.exists()

    def test_its_model_is_not_imported(self, base: Path) -> None:
        (base.parent / "models.py").write_text("open('mark', 'w')" + MODELS)
        result = check("--baseline", "base")
        assert result.exit_code == 2
        assert "`robustkit check models.py:net`" in result.stderr
        assert not Path("mark").exists()

    def test_nor_one_inside_its_model_or_its_suite(
        self, room: Path, make_record: Callable[..., Record]
    ) -> None:
        for field, value in (
            ("defense", "smoothed(base='mine.py:load')"),
            ("suite", "adaptive(transfer='mine.py:load')"),
        ):
            record = make_record("undefended", "rrbm").model_copy(update={field: value})
            baseline = Baseline(record, Path("record.json"))
            with pytest.raises(UsageError, match="code"):
                models_of([baseline])
                attacks_of(baseline, None)

    @pytest.mark.parametrize("command", ["history", "leaderboard", "report"])
    def test_nor_by_what_only_reads_records(self, strange: Path, command: str) -> None:
        assert run(command, "base").exit_code == 0
        assert not strange.exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL")
def test_a_killed_check_goes_on_to_the_same_verdict(base: Path) -> None:
    command = [sys.executable, "-m", "robustkit", "check", "models.py:Slow", "--baseline", "base",
               "--tolerance", "0", "--device", "cpu", "--out", "out", "--json"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (base.parent / "out" / "ledger.sqlite").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (one,) = json.loads(done.stdout)["checks"]
    assert (one["answer"], one["n"]) == ("pass", 90)
