"""The composite action, GitLab's job and the hooks: valid, and their scripts do what they say."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from robustkit.cli.program import program as main
from robustkit.gate.baseline import load_baselines
from robustkit.gate.config import load

ROOT = Path(__file__).resolve().parents[2]
STUB = """#!/bin/bash
printf '%s\\n' "$PWD" > "$LOGS/place"
printf '%s\\0' "$@" > "$LOGS/arguments"
while [ $# -gt 0 ]; do
  case "$1" in --junit | --sarif | --markdown)
    case "${WRITES-junit.xml robustkit.sarif summary.md}" in
      *"${2##*/}"*) printf '<!-- robustkit check -->\\n### Robustness\\n' > "$2" ;;
    esac ;;
  esac
  shift
done
exit ${CODE:-0}
"""
REPORTS = ("junit.xml", "robustkit.sarif", "summary.md")
PULL = {"pull_request": {"number": 5, "head": {"sha": "0123456789abcdef"}}}
NASTY = "$(touch broken) `touch broken` ; touch broken"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="runs bash")
Make = Callable[..., Any]


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


@pytest.fixture
def job(runner: Make) -> Make:
    """Make a runner whose robustkit writes down what it was asked, and obeys."""

    def make(**how: Any) -> Any:
        found = runner(**how)
        found.program("robustkit", STUB)
        return found

    return make


def arguments(job: Any) -> list[str]:
    return str(job.log("arguments")).split("\0")[:-1]


class TestCheck:
    @pytest.mark.parametrize(
        ("code", "verdict"), [(0, "pass"), (1, "regressed"), (2, "refused"), (3, "open")]
    )
    def test_the_exit_code_is_handed_on_and_named(self, job: Make, code: int, verdict: str) -> None:
        done = job(variables={"CODE": str(code)}).act()
        assert done.failed is (code != 0)
        assert done.outputs["check"] == {"verdict": verdict, "exit-code": str(code)}
        assert "### Robustness" in done.summary

    @pytest.mark.parametrize("written", ["", "summary.md"])
    def test_success_without_a_report_of_this_run_is_none(self, job: Make, written: str) -> None:
        """Neither where the program ends early, nor where reports of an earlier run lie about."""
        done = job(variables={"WRITES": written})
        (done.workspace / "robustkit-reports").mkdir()
        for name in REPORTS:
            (done.workspace / "robustkit-reports" / name).write_text("of another run")
        done.act()
        assert done.codes[-1] == 3
        assert "was not written" in done.errors
        assert done.outputs["check"] == {"verdict": "open", "exit-code": "3"}
        assert "of another run" not in done.summary

    def test_a_check_without_a_summary_says_so(self, job: Make) -> None:
        """Else the comment would go on saying what became of an earlier commit."""
        done = job(variables={"WRITES": "", "CODE": "2"}, event_name="pull_request", event=PULL)
        done.act()
        assert "not checked, exit code 2" in done.summary
        assert "not checked, exit code 2" in done.log("comment")

    def test_arguments_do_not_lead_the_reports_elsewhere(self, job: Make) -> None:
        done = job().act(args="--junit other.xml")
        params = main.commands["check"].make_context("check", arguments(done)[1:]).params
        assert params["junit"] == done.workspace / "robustkit-reports/junit.xml"

    def test_inputs_become_arguments_that_the_command_takes(self, job: Make) -> None:
        done = job().act(
            models="pgd_at(eps=0.3, steps=5)\n\n  net.py:make\n",
            baseline="kept",
            tolerance="0.02",
            args="--metric clean --quiet",
            max_time="5m",
            undecided="pass",
        )
        assert not done.failed, done.errors
        command, *words = arguments(done)
        assert command == "check"
        params = main.commands["check"].make_context("check", words).params
        assert params["models"] == ("pgd_at(eps=0.3, steps=5)", "net.py:make")
        assert params["baseline"] == Path("kept")
        assert (params["tolerance"], params["max_time"]) == (0.02, 300)
        assert (params["undecided"], params["quiet"]) == ("pass", True)

    def test_arguments_over_lines_and_with_quotes_arrive_whole(self, job: Make) -> None:
        done = job().act(args="--metric robust\n--metric clean=0.02\n  --out 'a b'\n\n--quiet # x")
        _, *words = arguments(done)
        assert words[:9] == (
            ["--metric", "robust", "--metric", "clean=0.02", "--out", "a b", "--quiet", "#", "x"]
        )

    def test_a_quote_that_does_not_end_is_refused(self, job: Make) -> None:
        done = job().act(args="--out 'a b")
        assert done.outputs["check"]["verdict"] == "refused"
        assert "quotes in pairs: No closing quotation" in done.errors
        assert not done.log("arguments")

    def test_inputs_cannot_become_commands(self, job: Make) -> None:
        inputs = ("models", "args", "name", "baseline", "extras", "package", "max_time")
        done = job(event_name="pull_request", event=PULL)
        done.act(**dict.fromkeys(inputs, NASTY))
        assert not list(done.folder.rglob("broken"))
        assert "$(touch" in done.log("arguments")


class TestSetup:
    def test_the_python_of_the_job_is_kept(self, job: Make) -> None:
        done = job().act()
        assert done.outputs["setup"]["python"] == str(done.folder / "bin" / "python")
        assert "bin" not in done.outputs["setup"]
        assert [name for name, _ in done.used] == [
            "actions/cache/restore@v4",
            "actions/cache/save@v4",
        ]
        assert job_uses(done, "actions/setup-python@v5") == []

    def test_another_one_is_set_up_where_asked_for(self, job: Make) -> None:
        done = job().act(python_version="3.12", cache="false")
        assert done.used == [("actions/setup-python@v5", {"python-version": "3.12"})]

    def test_no_python_is_an_error_with_its_cure(self, job: Make) -> None:
        done = job()
        for name in ("python", "python3"):
            done.program(name, "#!/bin/sh\nexit 1\n")
        done.act()
        assert "::error::expected Python 3.10 or later" in done.told
        assert done.codes == [2] and not done.log("arguments")

    def test_what_is_installed_is_kept_and_the_requirements_come_first(self, job: Make) -> None:
        done = job()
        (done.workspace / "ml").mkdir()
        for name in ("requirements.txt", "gpu free.txt"):
            (done.workspace / "ml" / name).write_text("einops\n")
        done.act(
            working_directory="ml", requirements="requirements.txt\ngpu free.txt", extras="timm"
        )
        index = "index= https://download.pytorch.org/whl/cpu"
        constraints = done.folder / "temp" / "robustkit-constraints"
        assert done.log("pip").splitlines() == [
            "install --requirement requirements.txt --requirement gpu free.txt", index,
            f"install --constraint {constraints} {ROOT}[timm]", index,
        ]  # fmt: skip
        assert constraints.read_text() == "torch==2.6.0+cpu\nnumpy==2.1.3\n"
        assert done.log("place").strip() == str(done.workspace / "ml")
        assert (done.workspace / "robustkit-reports" / "junit.xml").exists()

    @pytest.mark.parametrize(
        ("package", "asked"),
        [("robustkit-eval==0.1.0", "robustkit-eval[timm,hf]==0.1.0"),
         ("robustkit-eval", "robustkit-eval[timm,hf]"), (".", ".[timm,hf]")],
    )  # fmt: skip
    def test_extras_go_with_any_package(self, job: Make, package: str, asked: str) -> None:
        done = job().act(package=package, extras="timm,hf")
        assert done.log("pip").splitlines()[0].endswith(f" {asked}")

    @pytest.mark.parametrize(("gpu", "has"), [("true", "1"), ("false", "0")])
    def test_wheels_for_a_cpu_are_not_for_gpus_nor_over_what_is_there(
        self, job: Make, gpu: str, has: str
    ) -> None:
        done = job(variables={"HAS_TORCH": has}).act(gpu=gpu)
        assert done.log("pip").splitlines()[1] == "index="

    def test_a_conflict_ends_the_job_and_is_named(self, job: Make) -> None:
        done = job(variables={"PIP_CODE": "1"}, event_name="pull_request", event=PULL).act()
        assert "could not be installed beside what the job has" in done.told
        assert not done.log("arguments")
        assert "### Robustness: not checked" in done.log("comment")

    @pytest.mark.parametrize(
        ("inputs", "told"),
        [({"working_directory": "gone"}, "working-directory: expected a folder"),
         ({"requirements": "gone.txt"}, "requirements: expected the name of a file")],
    )  # fmt: skip
    def test_what_is_not_there_is_named(self, job: Make, inputs: dict[str, str], told: str) -> None:
        done = job().act(**inputs)
        assert told in done.told
        assert done.codes == [2] and not done.log("arguments")

    def test_the_system_s_python_is_left_alone(self, job: Make) -> None:
        """Where pip may not install, an environment sees what the system has installed."""
        done = job()
        real = (done.folder / "bin" / "python").read_text()
        managed = 'case "$2" in *EXTERNALLY-MANAGED*) exit 0 ;; esac\n'
        made = (
            'if [ "$1 $2" = "-m venv" ]; then\n'
            '  mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; exit 0\nfi\n'
        )
        first, rest = real.split("\n", 1)
        done.program("python", f"{first}\n{managed}{made}{rest}")
        done.act()
        assert not done.failed, done.errors
        place = done.folder / "temp" / "robustkit-python" / "bin"
        assert done.outputs["setup"]["python"] == str(place / "python")
        assert done.outputs["setup"]["bin"] == str(place)

    def test_packages_weights_and_data_are_cached(self, job: Make) -> None:
        done = job()
        done.act(models="timm:resnet18")
        first = dict(done.used)["actions/cache/save@v4"]
        home = done.folder / "home"
        names = ("pip", ".cache/robustkit", ".cache/torch", ".cache/huggingface")
        assert first["path"].splitlines() == [str(home / name) for name in names]
        assert first["key"].startswith("robustkit-Linux-X64-")
        done.used.clear()
        done.act(models="timm:resnet50")
        assert dict(done.used)["actions/cache/save@v4"]["key"] != first["key"]

    def test_installed_already_installs_nothing(self, job: Make) -> None:
        done = job().act(install="false")
        assert not done.log("pip") and not done.failed


class TestComment:
    def test_one_is_left_on_a_pull_request_whatever_the_verdict(self, job: Make) -> None:
        done = job(event_name="pull_request", event=PULL, variables={"CODE": "1"}).act(name="cnn")
        assert "pr comment 5 --repo someone/models" in done.log("gh")
        lines = done.log("comment").splitlines()
        assert lines[0] == "<!-- robustkit check: cnn -->"
        assert lines[-1] == (
            "<sub>Commit 01234567, [log](https://github.com/someone/models/actions/runs/17)</sub>"
        )
        assert "### Robustness" in lines

    def test_that_of_an_earlier_run_is_replaced(self, job: Make) -> None:
        urls = "".join(f"https://x/pull/5#issuecomment-{n}\n" for n in (11, 12))
        done = job(event_name="pull_request", event=PULL, variables={"COMMENTS": urls[:-1]}).act()
        last = done.log("gh").splitlines()[-1]
        assert "PATCH repos/someone/models/issues/comments/12 " in last

    def test_a_push_gets_none(self, job: Make) -> None:
        assert not job().act().log("gh")

    def test_what_cannot_be_written_is_a_warning(self, job: Make) -> None:
        done = job(event_name="pull_request", event=PULL, variables={"GH_CODE": "1"}).act()
        assert not done.failed
        assert "::warning::the comment could not be written" in done.told

    def test_a_long_summary_is_cut_between_lines(self, job: Make) -> None:
        done = job(event_name="pull_request", event=PULL)
        text = STUB.replace(
            '### Robustness\\n\' > "$2"', '\' > "$2"; yes \'| é |\' | head -n 30000 >> "$2"'
        )
        done.program("robustkit", text)
        done.act()
        comment = done.log("comment")
        assert len(comment) < 65_536
        assert "| é |\n\nCut here" in comment


def job_uses(job: Any, name: str) -> list[dict[str, str]]:
    return [given for used, given in job.used if used == name]


def test_a_repository_goes_through_the_action(runner: Make) -> None:
    """A project with a folder, requirements, a baseline and a model of its own, which is worse."""
    job = runner(event_name="pull_request", event=PULL)
    job.program("robustkit", f'#!/bin/sh\nexec {sys.executable} -m robustkit "$@"\n')
    job.variables["PYTHONPATH"] = str(ROOT)
    project = job.workspace / "ml"
    project.mkdir()
    (project / "requirements.txt").write_text("einops\n")
    (project / "net.py").write_text(
        "from robustkit import load_model\nfrom robustkit.data.open import open_dataset\n\n"
        "def make():\n    return load_model('undefended', data=open_dataset('bundled')).model\n"
    )
    (project / "robustkit.toml").write_text('[[models]]\nmodel = "net.py:make"\n')
    known = ROOT / ".github/baseline/pgd_at-bundled-linf-0.1-quick/record.json"
    (project / "robustkit-baseline").mkdir()
    shutil.copy(known, project / "robustkit-baseline")
    inputs = {"working_directory": "ml", "requirements": "requirements.txt"}
    job.act(**inputs, args="--metric robust\n--out 'a run'", undecided="fail")
    assert job.outputs["check"] == {"verdict": "regressed", "exit-code": "1"}, job.errors
    assert (project / "a run").is_dir()
    for report in REPORTS:
        assert (job.workspace / "robustkit-reports" / report).stat().st_size > 0
    comment = job.log("comment")
    assert "❌ regressed" in comment and job.summary in comment
    assert re.search(r"<summary>net\.py:make: \d+ points lost, 0 gained</summary>", comment)
    assert re.search(r"\| \d+ \| [\w/ -]+ \| robust \| broken by ", comment)


def test_scripts_hold_no_expressions() -> None:
    for name in ("action.yml", *(str(p) for p in (ROOT / ".github/workflows").glob("*.yml"))):
        found = read(name)
        jobs = found.get("jobs", {}).values()
        steps = [step for one in jobs for step in one.get("steps", ())]
        steps += found.get("runs", {}).get("steps", ())
        assert not any("${{" in step.get("run", "") for step in steps), name


def test_every_input_is_described_and_used() -> None:
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    for name, one in read("action.yml")["inputs"].items():
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


def test_the_hooks_call_the_command() -> None:
    hooks = read(".pre-commit-hooks.yaml")
    assert [hook["language"] for hook in hooks] == ["python", "system"]
    for hook in hooks:
        program, command, *words = hook["entry"].split()
        assert program == "robustkit"
        main.commands[command].make_context(command, words)
        assert hook["pass_filenames"] is False


class TestGitLab:
    @pytest.fixture
    def steps(self) -> list[dict[str, Any]]:
        """The script of the job, which GitLab runs in one shell."""
        text = (ROOT / ".gitlab/check.yml").read_text(encoding="utf-8")
        _, jobs = yaml.safe_load_all(text)
        (found,) = jobs.values()
        return [{"run": "\n".join([*found["before_script"], *found["script"]])}]

    def run(self, job: Any, steps: list[dict[str, Any]], **given: str) -> Any:
        usual = dict.fromkeys(("REQUIREMENTS", "GPU", "MODELS", "ARGS"), "")
        job.variables |= {
            **usual, "WORKING_DIRECTORY": ".", "PACKAGE": "robustkit-eval",
            "CI_PROJECT_DIR": str(job.workspace), **given,
        }  # fmt: skip
        return job.run(steps)

    def test_arguments_arrive_whole(self, job: Make, steps: list[dict[str, Any]]) -> None:
        done = self.run(
            job(), steps, ARGS="--out 'a b'\n--quiet", MODELS="pgd_at(eps=0.3, steps=5)"
        )
        assert not done.failed, done.errors
        words = arguments(done)
        assert words[:4] == ["check", "--out", "a b", "--quiet"]
        assert words[-1] == "pgd_at(eps=0.3, steps=5)"
        assert "index= https://download.pytorch.org/whl/cpu" in done.log("pip")

    def test_no_report_is_no_pass(self, job: Make, steps: list[dict[str, Any]]) -> None:
        done = self.run(job(variables={"WRITES": ""}), steps)
        assert done.codes == [3]

    def test_the_comment_is_replaced(self, job: Make, steps: list[dict[str, Any]]) -> None:
        made = job()
        notes = [{"id": 3, "body": "x"}, {"id": 4, "body": "<!-- robustkit check -->"}]
        made.program(
            "curl",
            '#!/bin/bash\nprintf "%s\\n" "$*" >> "$LOGS/curl"\n'
            f"case \"$*\" in *per_page*) printf '%s' '{json.dumps(notes)}' ;; esac\n",
        )
        known = {"CI_API_V4_URL": "https://g/api/v4", "CI_PROJECT_ID": "1"}
        known |= {"CI_MERGE_REQUEST_IID": "9", "ROBUSTKIT_TOKEN": "t"}
        done = self.run(made, steps, CODE="1", **known)
        assert done.codes == [1]
        last = done.log("curl").splitlines()[-1]
        assert "--request PUT" in last
        assert last.endswith("https://g/api/v4/projects/1/merge_requests/9/notes/4")

    def test_every_input_reaches_the_job(self) -> None:
        text = (ROOT / ".gitlab/check.yml").read_text(encoding="utf-8")
        head, _ = yaml.safe_load_all(text)
        for name, one in head["spec"]["inputs"].items():
            assert one["description"]
            assert f"$[[ inputs.{name} ]]" in text
