"""The program and its child, both copies of a process that has imported PyTorch already.

Read as text by the tests, and run in such a process.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from robustkit.cli import child, supervisor


class Child:
    """As much of `subprocess.Popen` as the supervisor uses."""

    returncode: int

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def wait(self) -> int:
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


def start(words: Sequence[str]) -> tuple[Child, int, int]:
    """Stand for `supervisor._start`: fork where it starts an interpreter."""
    theirs_in, hello = os.pipe()
    answer, theirs_out = os.pipe()
    if pid := os.fork():
        os.close(theirs_in)
        os.close(theirs_out)
        return Child(pid), hello, answer
    code = 1
    try:
        os.close(hello)
        os.close(answer)
        sys.argv = ["-c", str(theirs_in), str(theirs_out), *words]
        child.main()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(room: Path, words: Sequence[str]) -> None:
    """Run the program in `room`; what it prints goes to the files `stdout` and `stderr` there."""
    os.chdir(room)
    for number, name in ((1, "stdout"), (2, "stderr")):
        there = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(there, number)
        os.close(there)
    sys.argv = ["robustkit", *words]
    supervisor._start = start  # type: ignore[assignment]
    try:
        supervisor.main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
