"""Install commands are written in one place, and can be typed as they stand."""

from __future__ import annotations

import re
import shlex
from importlib.metadata import metadata
from pathlib import Path

import pytest

import robustkit
from robustkit.core.packages import DISTRIBUTION, install_command, own_version, pip_command

ROOT = Path(__file__).resolve().parents[2]


def test_the_commands() -> None:
    assert install_command() == "pip install robustkit-eval"
    assert install_command("report") == 'pip install "robustkit-eval[report]"'
    assert install_command(upgrade=True) == "pip install --upgrade robustkit-eval"
    assert install_command(checkout=True) == "pip install -e ."


@pytest.mark.parametrize("words", [("install", "numpy<2", "a==1"), ("install", "-e", "/a b/c")])
def test_a_shell_reads_what_was_meant(words: tuple[str, ...]) -> None:
    assert shlex.split(pip_command(*words)) == ["pip", *words]


def test_the_distribution_is_the_installed_one() -> None:
    assert metadata(DISTRIBUTION)["Version"] == own_version() == robustkit.__version__


@pytest.mark.parametrize("folder", ["robustkit", "attacks", "defenses", "benchmarks"])
def test_no_message_writes_an_install_command_of_its_own(folder: str) -> None:
    written = re.compile(r"pip install (-\S+ )*[\"']?(robustkit|\.)")
    found = [
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).rglob("*.py")
        if written.search(path.read_text(encoding="utf-8"))
    ]
    assert found == [], "use robustkit.core.packages.install_command"


def test_extras_that_messages_name_exist() -> None:
    extras = set(metadata(DISTRIBUTION).get_all("Provides-Extra", []))
    named = {
        extra
        for folder in ("robustkit", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        for extra in re.findall(r"install_command\(['\"](\w+)['\"]\)", path.read_text("utf-8"))
    }
    assert {"report", "robustbench", "autoattack"} <= named <= extras
