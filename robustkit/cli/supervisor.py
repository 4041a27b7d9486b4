"""The process that the user starts: it runs what imports a user's code in a child process.

A command has succeeded only if the child says so: with the exit code that was decided, the digests
of the files that were written, and a random token that only the two processes know. A child that
ends in any other way, exit code 0 included, has failed. This process imports no PyTorch and no code
of the user. See SECURITY.md for what this stops, and what it does not.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.exceptions import Exit

from robustkit.cli.console import outlive_readers, say, stderr
from robustkit.cli.program import RESUMES, STOPPED, program
from robustkit.core.imports import ended_by_code
from robustkit.errors import RobustkitError

if TYPE_CHECKING:
    from subprocess import Popen

    from robustkit.cli.child import SignOff

_BOOT = """
import sys
try:
    sys.path[:] = {path!r}
    from robustkit.cli.child import main
    main()
except KeyboardInterrupt:
    sys.exit(130)
"""
_PATIENCE = 2.0  # seconds for what a child wrote before it ended


class Supervisor:
    """Hands a command on to a child process; `words` are those that the user typed."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)

    def run(self, command: str) -> int:
        """Run it, and return the exit code that the child has signed.

        Raises:
            RobustkitError: when the child ended without a result, or a file is not what it wrote.
        """
        token = secrets.token_hex(32)
        child, hello, answer = _start(self.words)
        with _forwarding(child) as heard, os.fdopen(hello, "wb", buffering=0) as line:
            with contextlib.suppress(BrokenPipeError):
                line.write(json.dumps({"token": token, "parent": os.getpid()}).encode() + b"\n")
            answers = _Reader(answer, token)
            child.wait()
        if (signed := answers.result()) is not None:
            _compare(command, signed)
            return signed["exit_code"]
        _show_cursor()
        return _without_result(command, child.returncode, heard)


def main() -> None:
    """The command `robustkit`."""
    _open_standard_streams()
    outlive_readers()
    program(obj=Supervisor(sys.argv[1:]), prog_name="robustkit")


class _Reader:
    """Reads what a child says, until it says what carries the token, or nobody can say more."""

    def __init__(self, source: int, token: str) -> None:
        self._source, self._token = source, token
        self._signed: SignOff | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def result(self) -> SignOff | None:
        """Return the sign-off, if there is one, of a child that has ended."""
        # Processes that the child left behind may hold the pipe open: its end is not waited for.
        self._thread.join(_PATIENCE)
        return self._signed

    def _read(self) -> None:
        with os.fdopen(self._source, "rb") as pipe:
            for line in pipe:
                with contextlib.suppress(ValueError):
                    said = json.loads(line)
                    if _is_signed(said, self._token):
                        self._signed = said
                        return


def _is_signed(said: Any, token: str) -> bool:
    if not isinstance(said, dict) or not isinstance(said.get("token"), str):
        return False
    same = hmac.compare_digest(said["token"].encode(), token.encode())
    return same and type(said.get("exit_code")) is int and isinstance(said.get("files"), dict)


def _start(words: Sequence[str]) -> tuple[Popen[bytes], int, int]:
    """Start the child; return it, the pipe to write to it, and the pipe to read from it."""
    import subprocess

    theirs_in, hello = os.pipe()
    answer, theirs_out = os.pipe()
    given = [_inheritable(number) for number in (theirs_in, theirs_out)]
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    boot = [sys.executable, *flags, "-c", _BOOT.format(path=sys.path), *map(str, given)]
    try:
        # What the caller has opened for us, such as `--out >(tee page.html)`, is the child's too.
        child = subprocess.Popen([*boot, *words], close_fds=False)
    finally:
        os.close(theirs_in)
        os.close(theirs_out)
    return child, hello, answer


def _inheritable(number: int) -> int:
    """Let a child have a pipe; return the number that it has there."""
    if sys.platform == "win32":
        import msvcrt

        handle = msvcrt.get_osfhandle(number)
        os.set_handle_inheritable(handle, True)
        return handle
    os.set_inheritable(number, True)
    return number


@contextlib.contextmanager
def _forwarding(child: Popen[bytes]) -> Iterator[list[int]]:
    """Hand signals on to the child; yield those that came.

    Ctrl-C reaches both processes, `kill -INT` only this one: the child takes two within a second
    for one. A signal that was ignored when this process began stays ignored.
    """
    heard: list[int] = []

    def forward(number: int, _: object) -> None:
        heard.append(number)
        with contextlib.suppress(OSError, ValueError):  # ValueError: of Windows, for Ctrl-C
            child.send_signal(number)

    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, forward)
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _compare(command: str, signed: SignOff) -> None:
    """Refuse success where a file is not what was written (a RobustkitError)."""
    for name, digest in signed["files"].items():
        try:
            found = hashlib.sha256(Path(name).read_bytes()).hexdigest()
        except OSError:
            found = ""
        if found != digest:
            raise RobustkitError(
                f"{name} is not what `robustkit {command}` wrote there: it was changed or removed "
                "while the program ended. Look for what else writes to it (code of the model, of "
                "the data or of a plugin; another run), and run the command again."
            )


def _without_result(command: str, code: int, heard: Sequence[int]) -> int:
    """Say that the child ended without a result, or end by the signal that ended it."""
    if signal.SIGINT in heard and code in (STOPPED, -signal.SIGINT, 1):
        say(stderr(), "stopped", RESUMES.get(command, "nothing was changed."), "bold yellow")
        return STOPPED
    if code < 0 and -code in heard:
        rest = RESUMES.get(command, "nothing was changed.")
        say(stderr(), "stopped", f"by {signal.Signals(-code).name}; {rest}", "bold yellow")
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
        return 128 - code  # the first process of a container does not die of its own signals
    raise RobustkitError(
        f"`robustkit {command}` ended without a result: its process {_ending(code)} before the "
        "work was done. Code of the model, of the data or of a plugin may have ended it (sys.exit, "
        "os._exit), crashed, or used up the memory. Nothing has passed. Look for that in the code; "
        "PYTHONFAULTHANDLER=1 shows where it crashed. What was found so far is kept: "
        f"{RESUMES.get(command, 'run the same command again.')}"
    )


def _ending(code: int) -> str:
    if code >= 0:
        return f"left with exit status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _show_cursor() -> None:
    """Bring the cursor back that progress bars hide."""
    console = stderr()
    if console.is_terminal:
        console.show_cursor(True)


def _open_standard_streams() -> None:
    """Open what was closed, so that no pipe to the child gets the number of a standard stream."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # It takes the lowest number that is free; the child has it too.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


class Supervised(click.Command):
    """A command that imports a user's code: in a child process, where the program is supervised."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command here, or hand it on."""
        supervisor = ctx.find_object(Supervisor)
        if supervisor is None:
            try:
                return super().invoke(ctx)
            except Exit as error:  # not ours: words were read, and no command leaves by it
                raise ended_by_code(error) from error
        words = ctx.command_path.split()
        command = words[1] if len(words) > 1 else words[0]
        if not (ctx.params.get("quiet") or ctx.params.get("as_json")) and command in RESUMES:
            # The child says nothing before PyTorch is imported, which takes seconds.
            stderr().print(f"robustkit {command}: starting", highlight=False)
        return supervisor.run(command)
