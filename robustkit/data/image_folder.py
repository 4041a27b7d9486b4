"""An image folder: one subfolder per class, decoded with Pillow when a batch is fetched."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from robustkit.data.dataset import ImageSet
from robustkit.data.pickled import refuse_batches
from robustkit.errors import UsageError

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_GRAY, _COLOR = ("1", "L"), ("RGB", "P")
MOST = 1 << 26  # pixels of an image


def open_folder(name: str, path: Path, *, most: int = MOST) -> ImageSet:
    """Open `path`: its subfolders are the classes 0, 1, ...

    They are sorted by name, or, where all names are whole numbers, by number.
    Images that are all gray have one channel; if any is in color, all are read as RGB. The headers
    of all files are read here, the pixels when they are fetched. Rotation tags are not applied.

    Args:
        most: pixels that an image may have.

    Raises:
        UsageError: without subfolders or with an empty one; for a file that is no
            image, has another size than the first, more than `most` pixels, or transparency or
            more than 8 bits a channel.
    """
    if not path.is_dir():
        raise UsageError(f"{path} is not a folder (looked from {Path.cwd()}).")
    refuse_batches(path)
    found = [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
    if not found:
        raise UsageError(f"{path}: expected one subfolder a class, got none.")
    named = sorted(found, key=_name)
    numbered = all(re.fullmatch("[0-9]{1,18}", p.name) for p in found)
    classes = sorted(named, key=_number) if numbered else named
    files, labels = [], []
    for label, folder in enumerate(classes):
        inside = _images(folder)
        files += inside
        labels += [label] * len(inside)
    (width, height), channels = headers(((file, file) for file in files), most)
    shape = (channels, height, width)

    def read(indices: NDArray[np.int64]) -> NDArray[Any]:
        if not len(indices):
            return np.empty((0, *shape), dtype=np.uint8)
        return np.stack([decode(files[i], files[i], shape) for i in indices])

    return ImageSet(
        name=name,
        family=name,
        shape=shape,
        classes=len(classes),
        labels=np.array(labels, dtype=np.int64),
        read=read,
        class_names=tuple(folder.name for folder in classes),
        note="" if classes == named else "classes are the subfolders in the order of their numbers",
        source=str(path),
    )


def decode(source: Path | bytes, where: object, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Decode one image to uint8 [c, h, w].

    Raises:
        UsageError: when it cannot be decoded or has another size, naming `where`.
    """
    mode = "RGB" if shape[0] == 3 else "L"
    with _image(source, where) as image:
        if image.size != (shape[2], shape[1]):  # before any pixel is unpacked
            raise _other_size(where, (shape[2], shape[1]), image.size, "")
        pixels = np.asarray(image.convert(mode), dtype=np.uint8)
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


@contextmanager
def _image(source: Path | bytes, where: object) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            # The size is judged by us, before a pixel is unpacked.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(BytesIO(source) if isinstance(source, bytes) else source)
        with opened as image:
            yield image
    except UsageError:
        raise
    except UnidentifiedImageError as error:
        raise UsageError(f"{where}: expected an image, got something else.") from error
    except Exception as error:  # a damaged file fails in every way that Pillow knows
        raise UsageError(
            f"{where} cannot be decoded: {type(error).__name__}: {error}. Replace the file, or "
            "leave it out."
        ) from error


def _other_size(
    where: object, expected: tuple[int, int], got: tuple[int, int], beside: str
) -> UsageError:
    return UsageError(
        f"{where}: expected {expected[0]} × {expected[1]} pixels{beside}, got {got[0]} × {got[1]}. "
        "Resize the images to one size."
    )


def _name(path: Path) -> str:
    return path.name


def _number(path: Path) -> int:
    return int(path.name)


def _images(folder: Path) -> list[Path]:
    named = [p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES and p.is_file()]
    found = sorted((p for p in named if not p.name.startswith(".")), key=_name)
    if not found:
        listing = " ".join(_SUFFIXES)
        raise UsageError(f"{folder}: expected images ({listing}), got none.")
    return found


def headers(
    images: Iterable[tuple[Path | bytes, object]], most: int
) -> tuple[tuple[int, int], int]:
    """Return (width, height) and the number of channels that all images share.

    Args:
        images: each file or its content, and what to call it.
        most: pixels that an image may have.

    Raises:
        UsageError: naming the first image that is none, or cannot be used.
    """
    size, channels, first = None, 1, None
    for source, where in images:
        with _image(source, where) as image:
            if image.mode not in _GRAY + _COLOR or "transparency" in image.info:
                raise UsageError(
                    f"{where}: expected 8-bit gray or RGB without transparency, got mode "
                    f"{image.mode!r}. Convert it to RGB or L first."
                )
            if image.size[0] * image.size[1] > most:
                raise UsageError(
                    f"{where}: expected at most {most:,} pixels, got {image.size[0]} × "
                    f"{image.size[1]}: such an image can fill the memory. Cut or resize it."
                )
            if size is not None and image.size != size:
                raise _other_size(where, size, image.size, f" as in {first}")
            size, first = image.size, where if first is None else first
            channels = 3 if image.mode in _COLOR else channels
    if size is None:
        raise UsageError("expected at least one image, got none.")
    return size, channels
