"""The benchmark of a card, in small and without one: what is known is written, whatever ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.gpu.__main__ import begin, main


@pytest.mark.slow
def test_a_section_is_written_down_when_it_ends(tmp_path: Path) -> None:
    how = ["--device", "cpu", "--small", "--only", "graphs", "--out", str(tmp_path)]
    done = CliRunner().invoke(main, how)
    assert done.exit_code == 0, done.output
    (section,) = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert section["status"] == "done"
    assert [row["model"] for row in section["rows"]] == ["pgd_at", "wrn-10-1"]
    assert all(row["eager ms"] > 0 for row in section["rows"])
    assert "| model | batch |" in (tmp_path / "gpu.md").read_text()


def test_a_section_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    found = begin("graphs", "cpu", True, tmp_path, 0.1)
    assert found["status"].startswith("stopped after")
    assert found["rows"] == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel")
def test_a_section_ends_with_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--only", "small-nets", "--device", "cpu"]
    process = subprocess.Popen([*command, "--small", "--out", str(tmp_path)])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while not (found := children.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.1)
    (section,) = map(int, found)
    time.sleep(5)  # until it has asked to end so
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while Path(f"/proc/{section}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{section}").exists()


def test_without_a_card_it_says_how_to_rehearse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = CliRunner().invoke(main, ["--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "--device cpu --small" in done.output
