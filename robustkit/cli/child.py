"""The child process in which a command does its work, and how it signs off.

Started by `robustkit.cli.supervisor`, with the numbers of two pipes before the user's words.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypedDict

import click

from robustkit.cli.console import outlive_readers
from robustkit.cli.program import STOPPED, program
from robustkit.core import files
from robustkit.core.lifeline import end_with_parent

_TWICE = 1.0  # seconds in which two interrupts are the same one


class SignOff(TypedDict):
    """What a child says when its work is done: the token, the exit code, the digests of files."""

    token: str
    exit_code: int
    files: dict[str, str]


def main() -> NoReturn:
    """Do what the user's words say, and sign off."""
    incoming, outgoing = (_opened(number) for number in sys.argv[1:3])
    sys.argv = ["robustkit", *sys.argv[3:]]
    sign = _meet(incoming, outgoing)
    outlive_readers()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt_once())
    with files.digesting() as written:
        try:
            code = int(program.main(sys.argv[1:], "robustkit", standalone_mode=False) or 0)
        except click.Abort:
            code = STOPPED
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    sign(code, written)
    sys.exit(code)


def _opened(number: str) -> int:
    if sys.platform == "win32":
        import msvcrt

        return msvcrt.open_osfhandle(int(number), 0)
    os.set_inheritable(int(number), False)
    return int(number)


def _meet(incoming: int, outgoing: int) -> Callable[[int, Mapping[Path, str]], None]:
    """Read the token before any code of a user runs, and return what signs off with it.

    The token stays in the closure: not in the environment, the arguments or a module.
    """
    pipe = os.fdopen(incoming, "rb")
    line = pipe.readline()
    if not line:  # the parent ended before it said hello
        sys.exit(3)
    hello = json.loads(line)
    token: str = hello["token"]
    end_with_parent(hello["parent"], pipe.read)  # which returns when the other end is closed

    started = os.getpid()

    def sign(code: int, written: Mapping[Path, str]) -> None:
        if os.getpid() != started:  # a copy that a user's code has made of this process
            return
        files = {str(path): digest for path, digest in written.items()}
        said: SignOff = {"token": token, "exit_code": code, "files": files}
        # Closed by a user's code: the parent says that there was no result.
        with contextlib.suppress(OSError), os.fdopen(outgoing, "wb") as line:
            line.write(json.dumps(said).encode() + b"\n")

    return sign


def _interrupt_once() -> Callable[[int, Any], None]:
    """Return a handler that takes Ctrl-C, which the supervisor hands on too, for one interrupt."""
    last = -_TWICE

    def handle(_: int, __: Any) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before >= _TWICE:
            raise KeyboardInterrupt

    return handle
