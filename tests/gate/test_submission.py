"""The workflow of a public leaderboard: what it asks of a pull request, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from robustkit.cli.program import program as main

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "leaderboards/submissions"
STUB = """#!/bin/bash
printf '%s\\n' "$PWD" >> "$LOGS/places"
printf '%s\\0' "$@" >> "$LOGS/arguments"
if [ "$1" = verify-record ]; then echo "**checked** 5"; exit "${CODE:-0}"; fi
"""
NASTY = "$(touch broken)`touch broken`;touch broken #"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="runs bash")
Make = Callable[..., Any]


@pytest.fixture
def workflow() -> Any:
    return yaml.safe_load((ROOT / ".github/workflows/leaderboard.yml").read_text(encoding="utf-8"))


def git(place: Path, *words: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    done = subprocess.run(
        ["git", *identity, *words], cwd=place, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def job(runner: Make, workflow: Any) -> Make:
    """Make a job on a pull request that adds files to a repository with one submission."""

    def make(files: dict[str, str | bytes], *, real: bool = False, **variables: str) -> Any:
        found = runner(event_name="pull_request", variables=variables)
        place = found.workspace
        program = f'#!/bin/sh\nexec {sys.executable} -m robustkit "$@"\n' if real else STUB
        found.program("robustkit", program)
        found.program("pip", "#!/bin/sh\nexit 0\n")
        found.variables["PYTHONPATH"] = str(ROOT)
        git(place, "init", "--quiet")
        write(place, {} if real else {f"{FOLDER}/theirs/record.json": "{}"})
        git(place, "add", "--all")
        git(place, "commit", "--quiet", "--allow-empty", "--message", "before")
        base = git(place, "rev-parse", "HEAD")
        write(place, files)
        git(place, "add", "--all", "--force")
        git(place, "commit", "--quiet", "--message", "a submission")
        found.event = {"pull_request": {"number": 5, "base": {"sha": base}}}
        (steps,) = (one["steps"] for one in workflow["jobs"].values())
        return found.run(steps)

    return make


def write(place: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_an_honest_submission_is_checked_and_rendered(job: Make, tmp_path: Path) -> None:
    words = ("--attack", "fgsm", "--n", "8", "--device", "cpu", "--certify", "none", "--quiet")
    result = CliRunner().invoke(main, ["evaluate", "pgd_at", *words, "--out", str(tmp_path / "r")])
    assert result.exit_code == 0, result.output
    run = tmp_path / "r" / "pgd_at"
    files = {f"{FOLDER}/mine/{p.name}": p.read_bytes() for p in run.iterdir() if p.is_file()}
    done = job(files, real=True)
    assert not done.failed, done.errors
    assert "### mine: ✅ holds" in done.summary
    assert "clean predictions" in done.summary and "Not checked: " in done.summary
    assert "| pgd_at |" in done.summary
    page = (done.workspace / "page.html").read_text(encoding="utf-8")
    assert "pgd_at" in page
    assert ("actions/upload-artifact@v4", {"name": "leaderboard", "path": "page.html"}) in done.used


@pytest.mark.parametrize(
    ("code", "told"), [("1", "❌ differs"), ("2", "❌ refused"), ("3", "could not be checked")]
)
def test_what_does_not_hold_fails_and_is_shown(job: Make, code: str, told: str) -> None:
    done = job({f"{FOLDER}/mine/record.json": "{}"}, CODE=code)
    assert done.codes == [0, 0, int(code), 0]  # the rendering comes all the same
    assert told in done.summary
    assert "    **checked** 5" in done.summary  # no markup of a stranger


def test_each_new_record_is_asked_in_its_folder_by_the_name_beside_it(job: Make) -> None:
    place = f"{FOLDER}/a b"
    done = job({f"{place}/record.json": "{}", f"{place}/model.txt": f"{NASTY}\n--seed"})
    assert not done.failed, done.errors
    assert done.log("arguments").split("\0")[:4] == [
        "verify-record",
        "record.json",
        "--model",
        NASTY,
    ]
    assert done.log("places").splitlines()[0] == str(done.workspace / place)
    assert not list(done.folder.rglob("broken"))


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({f"{FOLDER}/theirs/record.json": "{ }"}, "changes or removes files that are there"),
        ({f"{FOLDER}/mine/notes.txt": "x"}, "expected a record.json in a new folder"),
    ],
)
def test_what_is_no_submission_is_refused(job: Make, files: dict[str, Any], told: str) -> None:
    done = job(files)
    assert done.failed and told in done.told
    assert not done.log("arguments")


def test_a_stranger_s_code_gets_no_secrets(workflow: Any) -> None:
    assert set(workflow[True]) == {"pull_request", "workflow_call"}  # YAML reads `on` so
    assert workflow["permissions"] == {"contents": "read"}
    text = (ROOT / ".github/workflows/leaderboard.yml").read_text(encoding="utf-8")
    assert "secrets." not in text and "github.token" not in text
    (steps,) = (one["steps"] for one in workflow["jobs"].values())
    assert steps[0]["with"]["persist-credentials"] is False
