"""Arrays of an npz file, memory-mapped in place or unpacked once to a temporary file.

An npz is a zip of npy files. A member that is stored is mapped at its offset in the archive; one
that is compressed is unpacked in chunks into a temporary file that vanishes with the array.
Nothing is ever unpickled.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from robustkit.errors import UsageError

_SMALL = 1 << 16
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, struct.error, NotImplementedError)


def keys(path: Path) -> list[str]:
    """List the names of the arrays in `path`.

    Raises:
        UsageError: when there is no such file, or it is no npz.
    """
    with _archive(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def array(path: Path, key: str) -> NDArray[Any]:
    """Return one array, read-only; its rows are read from disk when they are used.

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
                f"{path}: expected the key {key!r}, got {found}. Save it with np.savez(path, {pair})."  # noqa: E501
            )
        member = archive.getinfo(names[0])
        if member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1:
            with path.open("rb") as file:
                return _mapped(file, _offset(file, member), member.file_size, f"{path}[{key}]")
        with tempfile.TemporaryFile() as scratch:
            _unpack(archive, member, cast(BinaryIO, scratch))
            return _mapped(cast(BinaryIO, scratch), 0, member.file_size, f"{path}[{key}]")


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


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, scratch: BinaryIO) -> None:
    try:
        with archive.open(member) as packed:
            shutil.copyfileobj(packed, scratch, 1 << 20)
        scratch.flush()
    except RuntimeError as error:
        raise UsageError(f"{archive.filename}: {error}. Save it without a password.") from error
    except OSError as error:
        raise UsageError(
            f"{archive.filename} cannot be unpacked in {tempfile.gettempdir()}: {error.strerror}; "
            f"it takes {member.file_size:,} bytes. Set TMPDIR to a folder with more room, or save "
            "the file with np.savez, which does not compress and needs no unpacking."
        ) from error


def _mapped(file: BinaryIO, start: int, size: int, where: str) -> NDArray[Any]:
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
    if file.tell() + int(np.prod(shape, dtype=object)) * dtype.itemsize > start + size:
        raise ValueError(f"{where} is cut short")
    if size < _SMALL:
        file.seek(start)
        small: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        return small
    mapped: NDArray[Any] = np.memmap(
        cast(Any, file), dtype, "r", file.tell(), shape, "F" if fortran else "C"
    )
    return mapped
