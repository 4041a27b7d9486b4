"""Arrays of an npz file, read row by row in place, or unpacked once to a temporary file.

An npz is a zip of npy files. Rows of a member that is stored are read at their place in the
archive; one that is compressed is unpacked in chunks into a temporary file that vanishes with the
array. Nothing is mapped into memory: a file that another process cuts short would then end this one
with a bus error. Nothing is ever unpickled, and nothing is made room for before it is known to be
there.
"""

from __future__ import annotations

import math
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from robustkit.data.rows import Rows
from robustkit.errors import UsageError

Stored: TypeAlias = "NDArray[Any] | Rows"
_HEADER = 1 << 16  # more than the header of any npy
_MOST = 1 << 30  # bytes that are read into memory at once
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, ValueError, struct.error, NotImplementedError),
    *(OverflowError, RecursionError, MemoryError, TypeError),
)


class Bomb(NamedTuple):
    """What is refused as a file that unpacks without bound: so large, and so well compressed."""

    size: int = 1 << 30
    ratio: int = 200


def keys(path: Path) -> list[str]:
    """List the names of the arrays in `path`.

    Raises:
        UsageError: when there is no such file, or it is no npz.
    """
    with _archive(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def array(path: Path, key: str, *, most: int = _MOST) -> NDArray[Any]:
    """Read one array.

    Args:
        most: bytes that it may have.

    Raises:
        UsageError: as `rows`, and for an array that is larger.
    """
    stored = rows(path, key, most=most)
    return stored[:] if isinstance(stored, Rows) else stored


def rows(path: Path, key: str, *, most: int | None = None, bomb: Bomb | None = None) -> Stored:
    """Return one array whose rows are read from disk when they are used.

    Args:
        most: bytes that it may have; None: what the disk holds.

    Raises:
        UsageError: when the file, the key or the content is not what it should be, or there is no
            room to unpack.
    """
    with _archive(path) as archive:
        names = [name for name in (f"{key}.npy", key) if name in archive.namelist()]
        if not names:
            found = ", ".join(keys(path)) or "no keys"
            pair = f"x{key[1:]}=..., y{key[1:]}=..." if key[0] in "xy" else f"{key}=..., ..."
            raise UsageError(
                f"{path}: expected the key {key!r}, got {found}. Save it with "
                f"np.savez(path, {pair})."
            )
        member, where = archive.getinfo(names[0]), f"{path}[{key}]"
        if most is not None and member.file_size > most + _HEADER:
            raise UsageError(
                f"{where}: expected at most {most:,} bytes, got {member.file_size:,}. Store one "
                "number an image there."
            )
        if member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1:
            with path.open("rb") as file:
                return _opened(file, _offset(file, member), member.file_size, where)
        _refuse_bomb(member, where, bomb or Bomb())
        with tempfile.TemporaryFile() as scratch:
            _unpack(archive, member, cast(BinaryIO, scratch))
            return _opened(cast(BinaryIO, scratch), 0, member.file_size, where)


def npy(path: Path) -> Stored:
    """Return the array of a plain npy file, whose rows are read when they are used.

    Raises:
        UsageError: when there is no such file, or it is damaged or no npy.
    """
    try:
        with path.open("rb") as file:
            return _opened(file, 0, os.fstat(file.fileno()).st_size, str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except _DAMAGE as error:
        raise UsageError(
            f"{path}: expected an npy file, got something else or a damaged one ({error}). Write "
            "it again with np.save."
        ) from error


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    if not path.is_file():
        raise UsageError(f"{path} does not exist (looked from {Path.cwd()}).")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except _DAMAGE as error:
        raise UsageError(
            f"{path}: expected an npz file, got something else or a damaged one "
            f"({type(error).__name__}: {error}). Write it again with np.savez."
        ) from error
    except OSError as error:  # a damaged archive may point before its own beginning
        raise UsageError(f"{path} cannot be read, or is damaged: {error.strerror}.") from error


def _offset(file: BinaryIO, member: zipfile.ZipInfo) -> int:
    """Where the member's bytes start: after its local header, a name and an extra field."""
    file.seek(member.header_offset)
    name, extra = struct.unpack("<26xHH", file.read(30))
    return member.header_offset + 30 + int(name) + int(extra)


def _refuse_bomb(member: zipfile.ZipInfo, where: str, bomb: Bomb) -> None:
    """Refuse what says that it unpacks to far more than images do, or than there is room for."""
    size, packed = member.file_size, max(1, member.compress_size)
    if size > bomb.size and size > bomb.ratio * packed:
        raise UsageError(
            f"{where}: expected images, got {size:,} bytes compressed to {packed:,}, 1 to "
            f"{size // packed:,}: that is how a file looks that fills the disk. If it is what it "
            "should be, save it with np.savez, which does not compress."
        )
    room = shutil.disk_usage(tempfile.gettempdir()).free
    if size > room:
        raise _no_room(where, size, f"there are {room:,} bytes")


def _no_room(where: str, size: int, why: str) -> UsageError:
    return UsageError(
        f"{where} cannot be unpacked in {tempfile.gettempdir()}: {why}; it takes {size:,} bytes. "
        "Set TMPDIR to a folder with more room, or save the file with np.savez, which does not "
        "compress and needs no unpacking."
    )


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, scratch: BinaryIO) -> None:
    """Unpack no more than the archive says the member has."""
    try:
        with archive.open(member) as packed:
            shutil.copyfileobj(packed, scratch, 1 << 20)
        scratch.flush()
    except RuntimeError as error:
        raise UsageError(f"{archive.filename}: {error}. Save it without a password.") from error
    except OSError as error:
        if error.errno is None:  # damaged bz2
            raise ValueError(str(error)) from error
        why = str(error.strerror)
        raise _no_room(str(archive.filename), member.file_size, why) from error


def _opened(file: BinaryIO, start: int, size: int, where: str) -> Stored:
    """Read the header of an npy of `size` bytes at `start`, and what follows if it is small."""
    shape, fortran, dtype = _header(file, start, where)
    needed = math.prod(shape) * dtype.itemsize
    if file.tell() + needed > min(start + size, os.fstat(file.fileno()).st_size):
        raise ValueError(f"{where} is cut short")
    found = Rows(file, file.tell(), shape, dtype, where)
    if fortran and len(shape) > 1:
        if needed > _MOST:
            raise UsageError(
                f"{where} is stored column by column (Fortran order), so that a row cannot be read "
                f"alone, and {needed:,} bytes are too many to read at once. Save it with "
                "np.ascontiguousarray(x)."
            )
        flat = Rows(file, file.tell(), (math.prod(shape),), dtype, where)[:]
        return flat.reshape(shape, order="F")
    return found if shape else found[:]


def _header(file: BinaryIO, start: int, where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    file.seek(start)
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"npy version {version}")
    try:
        shape, fortran, dtype = read(file)
    except Exception as error:  # a damaged header fails in many ways
        raise ValueError(f"{where} has a damaged header: {error}") from error
    if dtype.hasobject:
        raise UsageError(f"{where} holds Python objects: convert it to numbers and save it again.")
    if min(shape, default=0) < 0 or any(isinstance(side, bool) for side in shape):
        raise ValueError(f"{where} has the shape {list(shape)}")
    if not dtype.itemsize:
        raise ValueError(f"{where} holds {dtype}, which takes no bytes")
    return shape, fortran, dtype
