"""Git is asked for the commit; nothing that a repository configures is run."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from robustkit.record import git as questions
from robustkit.record.git import head
from robustkit.record.schema import Commit

pytestmark = pytest.mark.skipif(
    shutil.which("git") is None or os.name == "nt", reason="needs git and a shell"
)
Git = Callable[..., str]


@pytest.fixture
def git(tmp_path: Path) -> Git:
    """Run git in a repository with one commit that holds file.txt, sub/ and attributes."""

    def run(*words: str, where: Path = tmp_path / "tree") -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        command = ["git", *identity, "-C", str(where), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "tree").mkdir()
    run("init")
    (tmp_path / "tree" / "file.txt").write_text("one\n")
    (tmp_path / "tree" / ".gitattributes").write_text("*.txt filter=mark diff=mark\n")
    run("add", ".")
    run("commit", "-m", "first", "--no-gpg-sign")
    return run


@pytest.fixture
def marker(tmp_path: Path, git: Git) -> Path:
    """Let the repository name a program in every place; each would write the marker."""
    marker, program = tmp_path / "mark", tmp_path / "program.sh"
    program.write_text(f"#!/bin/sh\necho $0 $@ >> {marker}\ncat 2>/dev/null\n")
    program.chmod(0o755)
    for key in (
        "core.fsmonitor", "core.pager", "core.sshCommand", "core.askPass", "diff.external",
        "filter.mark.clean", "filter.mark.smudge", "diff.mark.textconv", "diff.mark.command",
    ):  # fmt: skip
        git("config", key, str(program))
    git("config", "filter.mark.required", "true")
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("post-index-change", "post-checkout", "pre-commit"):
        (hooks / name).symlink_to(program)
    git("config", "core.hooksPath", str(hooks))
    return marker


def touched(tree: Path) -> None:
    """Let git look into file.txt: its time of change is another, its content and size are not."""
    os.utime(tree / "file.txt", (time.time() + 100, time.time() + 100))


def test_no_program_of_the_repository_is_run(tmp_path: Path, git: Git, marker: Path) -> None:
    commit = git("rev-parse", "HEAD")
    touched(tmp_path / "tree")
    marker.unlink(missing_ok=True)
    found = head(tmp_path / "tree")
    assert found is not None and found.hash == commit
    assert not marker.exists()
    git("status")  # the same programs are run by a command that obeys the configuration
    assert marker.exists()


def asked(tree: Path, git: Git, marker: Path, key: str) -> Commit | None:
    """Ask about a tree in which the program that leaves the mark is configured under `key` too."""
    git("config", key, git("config", "filter.mark.clean"))
    touched(tree)
    marker.unlink(missing_ok=True)
    found = head(tree)
    assert not marker.exists()
    return found


def test_a_filter_that_talks_all_along_is_not_run_either(
    tmp_path: Path, git: Git, marker: Path
) -> None:
    assert asked(tmp_path / "tree", git, marker, "filter.mark.process") is not None


def test_a_filter_that_cannot_be_turned_off_counts_as_a_change(
    tmp_path: Path, git: Git, marker: Path
) -> None:
    found = asked(tmp_path / "tree", git, marker, "filter.a=b.clean")
    assert found == Commit(hash=git("rev-parse", "HEAD"), dirty=True)


def test_a_submodule_is_not_looked_into(tmp_path: Path, git: Git, marker: Path) -> None:
    inner = tmp_path / "tree" / "inner"
    inner.mkdir()
    git("init", where=inner)
    (inner / "file.txt").write_text("one\n")
    git("add", ".", where=inner)
    git("commit", "-m", "inner", "--no-gpg-sign", where=inner)
    (tmp_path / "tree" / ".gitattributes").write_text("")
    git("add", "inner", ".gitattributes")
    git("commit", "-m", "second", "--no-gpg-sign")
    git("config", "core.fsmonitor", git("config", "filter.mark.clean"), where=inner)
    marker.unlink(missing_ok=True)
    assert head(tmp_path / "tree") is not None
    assert not marker.exists()


def test_the_environment_does_not_name_another_repository(
    tmp_path: Path, git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_CONFIG_PARAMETERS", "nonsense")
    commit = head(tmp_path / "tree")
    for name in ("GIT_DIR", "GIT_CONFIG_PARAMETERS"):
        monkeypatch.delenv(name)
    assert commit == Commit(hash=git("rev-parse", "HEAD"), dirty=False)


def test_a_touched_file_with_the_same_content_is_no_change(tmp_path: Path, git: Git) -> None:
    touched(tmp_path / "tree")
    assert head(tmp_path / "tree") == Commit(hash=git("rev-parse", "HEAD"), dirty=False)
    (tmp_path / "tree" / "file.txt").write_text("two\n")
    assert head(tmp_path / "tree") == Commit(hash=git("rev-parse", "HEAD"), dirty=True)


def test_a_git_that_hangs_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}{os.pathsep}{os.environ['PATH']}")
    assert questions.LIMIT == 2
    began = time.monotonic()
    assert head(tmp_path, limit=0.3) is None
    assert time.monotonic() - began < 10
