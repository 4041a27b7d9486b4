"""Digests of what a run's store holds, computed once for a file that stays as it is."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from robustkit.record.schema import LedgerDigests

FileState: TypeAlias = "tuple[int, ...]"
_KEPT, _SETTLED = 64, 0.1  # ledgers; seconds without a write, as clocks of files are coarse
_known: dict[FileState, LedgerDigests] = {}


def file_state(*files: Path) -> FileState | None:
    """Return what changes whenever some files do; None where they have changed just now."""
    found: list[int] = []
    for file in files:
        try:
            told = file.stat()
        except OSError:
            found.append(-1)
            continue
        if abs(time.time() - told.st_mtime) < _SETTLED:
            return None
        found += [told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns]
    return tuple(found)


def known(state: FileState | None) -> LedgerDigests | None:
    """Return the digests of a file in this state, if they were computed before."""
    return None if state is None else _known.get(state)


def keep(state: FileState | None, digests: LedgerDigests) -> None:
    """Remember the digests of a file in this state."""
    if state is None:
        return
    if len(_known) >= _KEPT:
        _known.clear()
    _known[state] = digests


def of_rows(tables: Iterable[Iterable[tuple[Any, ...]]]) -> str:
    """Return the SHA-256 of the rows of some tables."""
    digest, encode = hashlib.sha256(), json.JSONEncoder().encode
    for rows in tables:
        for row in rows:
            digest.update(encode(row).encode() + b"\n")
        digest.update(b"\n")
    return digest.hexdigest()


def of_inputs(inputs: Iterable[tuple[int, bytes]]) -> str:
    """Return the SHA-256 of stored adversarial inputs, each with its point."""
    digest = hashlib.sha256()
    for point, blob in inputs:
        digest.update(f"{point}:".encode() + blob)
    return digest.hexdigest()
