"""A child ends with its parent, whatever ended that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], *sys.argv[2:]], stdin=subprocess.PIPE)
time.sleep(60)
"""
CHILD = """
import os, sys, time
from pathlib import Path
from robustkit.core.lifeline import end_with_parent
end_with_parent(os.getppid(), sys.stdin.read, ask_kernel=sys.argv[1] == "kernel")
Path(sys.argv[2]).write_text(str(os.getpid()))
time.sleep(60)
"""


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and is not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("how", ["kernel", "thread"])
def test_a_child_ends_within_two_seconds_of_its_killed_parent(tmp_path: Path, how: str) -> None:
    note = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD, how, str(note)])
    try:
        deadline = time.monotonic() + 60
        while not (note.exists() and note.read_text()):
            assert time.monotonic() < deadline and parent.poll() is None
            time.sleep(0.05)
        pid = int(note.read_text())
        assert alive(pid)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 2
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the kernel")
def test_a_child_whose_parent_is_gone_already_does_not_begin() -> None:
    code = (
        "from robustkit.core.lifeline import end_with_parent\n"
        f"end_with_parent({os.getpid()} + 1, lambda: None)\nprint('began')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "")
