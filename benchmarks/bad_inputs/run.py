"""One bad input: drawn, put to robustkit in this process, and its answer judged."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch

from benchmarks.bad_inputs.families import FAMILIES, Case
from benchmarks.bad_inputs.world import build, speak
from robustkit.errors import RobustkitError

SECONDS = 5.0  # of computing; by the clock four times as many, for machines that are busy
# What torch keeps in the temporary folder (`torchinductor_NAME`) is its cache, not ours.
_TEMPORARY = re.compile(r"\.tmp$|-journal$|^tmp|\.damaged-wal$")


class Finding(NamedTuple):
    """What became of one input.

    Attributes:
        what: the input, in words.
        outcome: the exit code, or what a call did.
        said: the output, or the message.
        trouble: why the answer is not good enough; empty where it is.
    """

    seed: int
    case: int
    what: str
    outcome: str
    said: str
    trouble: str

    def told(self) -> str:
        """Say what went wrong, and how to see it again."""
        again = f"python -m benchmarks.bad_inputs --seed {self.seed} --case {self.case}"
        return f"{again}\n  {self.what}\n  {self.outcome}; {self.trouble or 'fine'}"


class _TooLate(BaseException):
    """The time is up. No `Exception`, so that no handler takes it for an error of the input."""


@contextlib.contextmanager
def project() -> Iterator[Path]:
    """Yield a folder with the valid project; settings of the process are put back afterwards."""
    here = Path.cwd()
    kept = {name: os.environ.pop(name, None) for name in ("ROBUSTKIT_DEBUG", "ROBUSTKIT_DATA")}
    try:
        with tempfile.TemporaryDirectory(prefix="bad-inputs-") as folder:
            place = Path(folder).resolve()
            (place / "valid").mkdir()
            (place / "scratch").mkdir()
            os.chdir(place / "valid")
            build(place / "valid")
            yield place
            os.chdir(here)
    finally:
        os.chdir(here)
        os.environ.update({name: value for name, value in kept.items() if value is not None})


def try_case(place: Path, seed: int, index: int) -> Finding:
    """Draw the input `index` of a seed, and judge the answer to it."""
    rng = Random(f"{seed}:{index}")
    work = place / "work"
    _restore(place / "valid", work)
    os.chdir(work)
    threads, before = torch.get_num_threads(), tempfile.tempdir
    tempfile.tempdir = str(place / "scratch")
    try:
        case = rng.choice(FAMILIES)(rng)
        what = case.what
        if case.words:
            what = f"{what}; robustkit {' '.join(map(shlex.quote, case.words))[:300]}"
        start = time.process_time()
        with _at_most(4 * SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome, said, trouble = _ask(case)
        if (spent := time.process_time() - start) > SECONDS and not trouble:
            trouble = f"it computed for {spent:.1f} s"
        left = [
            Path(path) for path, _ in _states(work) if _TEMPORARY.search(os.path.basename(path))
        ]
        left += [path for path in (place / "scratch").iterdir() if path.name[:5] != "torch"]
        if left and not trouble:
            trouble = f"it left {left[0].name} behind"
        return Finding(seed, index, what, outcome, said, trouble)
    finally:
        tempfile.tempdir = before
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        for path in (place / "scratch").iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        os.chdir(place)


def _restore(valid: Path, work: Path) -> None:
    """Make `work` a copy of the project again, by what differs: a whole copy takes longer."""
    work.mkdir(exist_ok=True)
    wanted, there = (
        {path.removeprefix(str(top)): state for path, state in _states(top)}
        for top in (valid, work)
    )
    for name in sorted(there.keys() - wanted.keys()):
        path = f"{work}{name}"
        if there[name] is None:
            shutil.rmtree(path, ignore_errors=True)
        else:
            Path(path).unlink(missing_ok=True)
    for name, state in sorted(wanted.items()):
        if state is None:
            os.makedirs(f"{work}{name}", exist_ok=True)
        elif there.get(name) != state:
            shutil.copy2(f"{valid}{name}", f"{work}{name}")


def _states(top: Path | str) -> Iterator[tuple[str, tuple[int, int] | None]]:
    """Yield what lies in a folder, and when a file changed to which size; None for a folder."""
    with os.scandir(top) as found:
        for entry in found:
            folder = entry.is_dir(follow_symlinks=False)
            state = entry.stat(follow_symlinks=False)
            yield entry.path, None if folder else (state.st_mtime_ns, state.st_size)
            if folder:
                yield from _states(entry.path)


def _ask(case: Case) -> tuple[str, str, str]:
    """Return the outcome, what was said, and what is wrong with it."""
    try:
        if case.call is not None:
            return _called(case)
        result = speak(*case.words)
    except _TooLate:
        return "late", traceback.format_exc(), "it did not come to an end"
    error = result.exception
    if isinstance(error, _TooLate):
        return "late", _traceback(error), "it did not come to an end"
    outcome, said = f"exit {result.exit_code}", result.output
    if error is not None and not isinstance(error, SystemExit):
        return outcome, _traceback(error), f"{type(error).__name__} got out"
    return outcome, said, _judge(result.exit_code, said)


def _called(case: Case) -> tuple[str, str, str]:
    assert case.call is not None
    try:
        case.call()
    except RobustkitError as error:
        return "refused", str(error), _named(str(error))
    except Exception as error:
        return "raised", _traceback(error), f"{type(error).__name__} instead of a RobustkitError"
    return "accepted", "", ""


def _judge(code: int, said: str) -> str:
    if code not in (0, 1, 2, 3):
        return "exit codes are 0 to 3"
    if "did not expect" in said:
        return "robustkit did not expect this"
    if "Traceback (most recent call last)" in said:
        return "a traceback"
    if code < 2:
        return "" if said or code == 0 else "exit 1 without a word"
    message = re.search(r"error: (.*)", said, re.IGNORECASE | re.DOTALL)
    return _named(message[1]) if message else "no error is named"


def _named(message: str) -> str:
    if len(re.findall(r"\w+", message)) < 3:
        return "the message names no cause"
    if re.search(r"<[\w.<>]+ object at 0x", message):
        return "the message is a bare repr"
    return ""


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)[-4:])


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Stop what runs inside after so many seconds."""

    def stop(*_: Any) -> None:
        raise _TooLate

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
