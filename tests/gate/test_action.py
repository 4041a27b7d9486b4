"""The composite action, its workflow and the hook: valid, and the script does what it says."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from robustkit.cli.program import program as main
from robustkit.gate.baseline import load_baselines
from robustkit.gate.config import load

ROOT = Path(__file__).resolve().parents[2]
STUB = """#!/bin/sh
printf '%s\\n' "$@" > arguments
for report in ${WRITES-junit.xml robustkit.sarif summary.md}; do
    echo '### Robustness' > "$REPORTS/$report"
done
exit ${CODE:-0}
"""


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def action() -> Any:
    return read("action.yml")


def act(action: Any, folder: Path, code: int, **inputs: str) -> subprocess.CompletedProcess[str]:
    """Run the script of the action's last step as a runner would, with a robustkit that obeys."""
    (step,) = (step for step in action["runs"]["steps"] if step.get("id") == "check")
    given = {name: one.get("default", "") for name, one in action["inputs"].items()} | inputs
    environment = {
        name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: given[found[1]], value)
        for name, value in step["env"].items()
    }
    program = folder / "bin" / "robustkit"
    program.parent.mkdir(exist_ok=True)
    program.write_text(STUB)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=folder,
        env={
            **environment,
            **{name: os.environ[name] for name in ("WRITES",) if name in os.environ},
            "CODE": str(code),
            "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
            "GITHUB_OUTPUT": str(folder / "output"),
            "GITHUB_STEP_SUMMARY": str(folder / "step-summary"),
        },
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(os.name == "nt", reason="runs bash")
class TestAction:
    @pytest.mark.parametrize(
        ("code", "verdict"), [(0, "pass"), (1, "regressed"), (2, "refused"), (3, "open")]
    )
    def test_the_exit_code_is_handed_on_and_named(
        self, action: Any, tmp_path: Path, code: int, verdict: str
    ) -> None:
        assert act(action, tmp_path, code).returncode == code
        output = (tmp_path / "output").read_text().splitlines()
        assert output == [f"verdict={verdict}", f"exit-code={code}"]
        assert (tmp_path / "step-summary").read_text() == "### Robustness\n"

    def test_success_without_a_report_of_this_run_is_none(
        self, action: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither where the program ends early, nor where reports of an earlier run lie about."""
        (tmp_path / "robustkit-reports").mkdir()
        for name in ("junit.xml", "robustkit.sarif", "summary.md"):
            (tmp_path / "robustkit-reports" / name).write_text("of another run")
        for written in ("", "summary.md"):
            monkeypatch.setenv("WRITES", written)
            done = act(action, tmp_path, 0)
            assert done.returncode == 3
            assert "was not written" in done.stderr
            output = (tmp_path / "output").read_text().splitlines()
            assert output[-2:] == ["verdict=open", "exit-code=3"]
        assert "of another run" not in (tmp_path / "step-summary").read_text()

    def test_arguments_do_not_lead_the_reports_elsewhere(self, action: Any, tmp_path: Path) -> None:
        act(action, tmp_path, 0, args="--junit other.xml")
        words = (tmp_path / "arguments").read_text().splitlines()
        assert main.commands["check"].make_context("check", words[1:]).params["junit"] == Path(
            "robustkit-reports/junit.xml"
        )

    def test_inputs_become_arguments_that_the_command_takes(
        self, action: Any, tmp_path: Path
    ) -> None:
        done = act(
            action,
            tmp_path,
            0,
            models="pgd_at(eps=0.3, steps=5)\n\n  net.py:make\n",
            baseline="kept",
            tolerance="0.02",
            args="--metric clean --quiet",
            **{"max-time": "5m", "undecided": "pass"},
        )
        assert done.returncode == 0, done.stderr
        command, *words = (tmp_path / "arguments").read_text().splitlines()
        assert command == "check"
        context = main.commands["check"].make_context("check", words)
        assert context.params["models"] == ("pgd_at(eps=0.3, steps=5)", "net.py:make")
        assert context.params["baseline"] == Path("kept")
        assert (context.params["tolerance"], context.params["max_time"]) == (0.02, 300)
        assert (context.params["undecided"], context.params["quiet"]) == ("pass", True)

    def test_an_input_cannot_become_a_command(self, action: Any, tmp_path: Path) -> None:
        act(action, tmp_path, 0, models="$(touch broken) `touch broken` ; touch broken")
        assert not (tmp_path / "broken").exists()
        assert "$(touch" in (tmp_path / "arguments").read_text()

    def test_scripts_hold_no_expressions(self, action: Any) -> None:
        scripts = [step["run"] for step in action["runs"]["steps"] if "run" in step]
        assert scripts and not any("${{" in script for script in scripts)

    def test_every_input_is_described_and_used(self, action: Any) -> None:
        text = (ROOT / "action.yml").read_text(encoding="utf-8")
        for name, one in action["inputs"].items():
            assert one["description"]
            assert f"inputs.{name}" in text


def test_the_workflow_uses_the_action_of_this_checkout() -> None:
    (job,) = read(".github/workflows/gate.yml")["jobs"].values()
    assert "./" in [step.get("uses") for step in job["steps"]]
    scripts = " ".join(step.get("run", "") for step in job["steps"])
    (place,) = re.findall(r"--baseline (\S+)", scripts)
    assert load_baselines(ROOT / place)


def test_every_configured_model_of_this_repository_has_its_baseline() -> None:
    config = load(ROOT / "pyproject.toml")
    known = {b.record.defense for b in load_baselines(ROOT / config.baseline)}
    assert {entry.model for entry in config.models} == known


def test_the_hook_calls_the_command() -> None:
    (hook,) = read(".pre-commit-hooks.yaml")
    program, command, *words = hook["entry"].split()
    assert program == "robustkit"
    main.commands[command].make_context(command, words)
    assert hook["pass_filenames"] is False
