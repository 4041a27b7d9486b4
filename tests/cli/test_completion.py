"""Completion in the shell: the variable that the documentation names, and what it offers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from robustkit.cli.program import program as main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "completion.md"


def offered(words: list[str], begun: str) -> list[str]:
    complete = ShellComplete(main, {}, "robustkit", "_ROBUSTKIT_COMPLETE")
    return [item.value for item in complete.get_completions(words, begun)]


def test_commands_options_and_choices_are_offered() -> None:
    assert offered([], "eva") == ["evaluate"]
    assert "--suite" in offered(["evaluate"], "--su")
    assert {"attacks", "defenses", "suites"} <= set(offered(["list"], ""))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_documented_variable_gives_the_script_of_a_shell(shell: str) -> None:
    named = re.search(rf"(\w+)={shell}_source robustkit", PAGE.read_text(encoding="utf-8"))
    assert named is not None
    done = subprocess.run(
        [sys.executable, "-m", "robustkit"],
        env={**os.environ, named[1]: f"{shell}_source"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "_robustkit_completion" in done.stdout
