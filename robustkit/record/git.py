"""What git knows of a working tree, asked so that nothing in the repository can run a program.

A repository's own configuration may name programs: file-system monitors, hooks, content filters,
external diffs, helpers that fetch missing objects. Only commands that read are called, with each
of these off.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

from robustkit.record.schema import Commit

LIMIT = 2.0  # seconds for all questions together
_OFF = (
    *("--no-pager", "--no-optional-locks", "--no-replace-objects"),
    *("-c", "core.fsmonitor=false", "-c", "core.untrackedCache=false"),
    *("-c", f"core.hooksPath={os.devnull}", "-c", "protocol.allow=never"),
)
_ENVIRONMENT = {
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_EXTERNAL_DIFF": "",
}
_KEPT = ("GIT_CONFIG_COUNT", "GIT_CONFIG_KEY_", "GIT_CONFIG_VALUE_", "GIT_CEILING_DIRECTORIES")
_FILTER = re.compile(r"filter\.([\w-]+)\.(clean|smudge|process|required)", re.ASCII)


class _UnknownError(Exception):
    """Git gave no answer."""


def head(path: Path | str = ".", *, limit: float = LIMIT) -> Commit | None:
    """Return the commit checked out around `path`; None where git does not tell within `limit`.

    Content filters are off: a file that goes through one (Git LFS) and was touched since git last
    looked counts as changed. So does a tree whose filters have names that cannot be turned off.
    """
    ask = _Questions(path, time.monotonic() + limit)
    try:
        name = ask("rev-parse", "--verify", "HEAD^{commit}").strip()
        off = _filters_off(ask("config", "--null", "--name-only", "--get-regexp", r"^filter\."))
        if off is None:
            return Commit(hash=name, dirty=True)
        looking = ("status", "--porcelain", "--untracked-files=no", "--no-renames")
        # A look into a submodule would obey that one's configuration.
        changes = ask(*looking, "--ignore-submodules=dirty", config=off)
    except (_UnknownError, OSError, ValueError, subprocess.SubprocessError):
        return None
    return Commit(hash=name, dirty=bool(changes))


class _Questions:
    """Asks git about one place, until a deadline."""

    def __init__(self, path: Path | str, deadline: float) -> None:
        self._path, self._deadline = path, deadline
        # What the user's environment configures stays, such as safe.directory in a container.
        plain = {key: value for key, value in os.environ.items()
                 if not key.startswith("GIT_") or key.startswith(_KEPT)}  # fmt: skip
        self._environment = {**plain, **_ENVIRONMENT}

    def __call__(self, command: str, *words: str, config: tuple[str, ...] = ()) -> str:
        answer = subprocess.run(
            ["git", *_OFF, *config, "-C", str(self._path), command, *words],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=max(0.0, self._deadline - time.monotonic()),
        )
        if answer.returncode not in ((0, 1) if command == "config" else (0,)):  # 1: no such key
            raise _UnknownError
        return answer.stdout.decode("utf-8", "replace")


def _filters_off(listed: str) -> tuple[str, ...] | None:
    """Return the options that turn the filters of a configuration off; None: they cannot be."""
    found: list[str] = []
    for key in filter(None, listed.split("\0")):
        if _FILTER.fullmatch(key) is None:
            return None
        found += ["-c", f"{key}={'false' if key.endswith('.required') else ''}"]
    return tuple(found)
