"""Rows of an array in a file, read when they are asked for."""

from __future__ import annotations

import math
import os
import weakref
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from robustkit.errors import UsageError


class Rows:
    """An array [n, ...] in C order at a place in a file, which is open when it is made.

    It is indexed along its first axis, by a slice or by indices [b], and answers with a copy. What
    is stored there is never mapped, so that a file which becomes shorter is an error with a name
    and no bus error.
    """

    def __init__(
        self, file: BinaryIO, start: int, shape: tuple[int, ...], dtype: np.dtype[Any], where: str
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self._file, self._start, self._where = os.dup(file.fileno()), start, where
        self._row = math.prod(shape[1:]) * dtype.itemsize
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[Any]:
        """Read rows.

        Raises:
            UsageError: when the file has become too short.
        """
        if not self.shape:
            return self._read(0, 1, ())
        if isinstance(rows, slice):
            first, last, _ = rows.indices(len(self))
            return self._read(first, last - first, (max(0, last - first), *self.shape[1:]))
        found = np.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        # Rows that follow one another are read at once.
        ends = np.flatnonzero(np.diff(rows) != 1) + 1
        for part in np.split(np.arange(len(rows)), ends):
            if len(part):
                shape = (len(part), *self.shape[1:])
                found[part[0] : part[-1] + 1] = self._read(int(rows[part[0]]), len(part), shape)
        return found

    def _read(self, first: int, count: int, shape: tuple[int, ...]) -> NDArray[Any]:
        whole = bytearray(max(0, count) * self._row)
        view, place = memoryview(whole), self._start + first * self._row
        while view:
            got = _at(self._file, place, len(view))
            if not got:
                raise UsageError(
                    f"{self._where} has become shorter since it was opened: another process has "
                    "cut the file. Put it back, and start again."
                )
            view[: len(got)] = got
            view, place = view[len(got) :], place + len(got)
        return np.frombuffer(whole, dtype=self.dtype).reshape(shape)


def _at(file: int, place: int, size: int) -> bytes:
    """Read up to `size` bytes at a place."""
    size = min(size, 1 << 26)
    if hasattr(os, "pread"):  # moves no position that a forked process shares
        return os.pread(file, size, place)
    os.lseek(file, place, os.SEEK_SET)
    return os.read(file, size)
