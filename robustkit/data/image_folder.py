"""An image folder: one subfolder per class, decoded with Pillow when a batch is fetched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from robustkit.data.dataset import ImageSet
from robustkit.errors import UsageError

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_GRAY, _COLOR = ("1", "L"), ("RGB", "P")


def open_folder(name: str, path: Path) -> ImageSet:
    """Open `path`: its subfolders, sorted by name, are the classes 0, 1, ...

    Images that are all gray have one channel; if any is in color, all are read as RGB. The headers
    of all files are read here, the pixels when they are fetched. Rotation tags are not applied.

    Raises:
        UsageError: without subfolders or with an empty one; for a file that is no image, has
            another size than the first, or has transparency or more than 8 bits a channel.
    """
    if not path.is_dir():
        raise UsageError(f"{path} is not a folder (looked from {Path.cwd()}).")
    classes = sorted(
        (p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")), key=_name
    )
    if not classes:
        raise UsageError(f"{path}: expected one subfolder a class, got none.")
    files, labels = [], []
    for label, folder in enumerate(classes):
        inside = _images(folder)
        files += inside
        labels += [label] * len(inside)
    (width, height), channels = _headers(files)

    def read(indices: NDArray[np.int64]) -> NDArray[Any]:
        mode = "RGB" if channels == 3 else "L"
        return np.stack([decode(files[i], files[i], mode) for i in indices])

    return ImageSet(
        name=name,
        family=name,
        shape=(channels, height, width),
        classes=len(classes),
        labels=np.array(labels, dtype=np.int64),
        read=read,
        class_names=tuple(folder.name for folder in classes),
    )


def decode(source: Path | bytes, where: object, mode: str) -> NDArray[np.uint8]:
    """Decode one image to uint8 [c, h, w], in Pillow's `mode` "RGB" or "L".

    Raises:
        UsageError: when it cannot be decoded, naming `where`.
    """
    with _image(source, where) as image:
        pixels = np.asarray(image.convert(mode), dtype=np.uint8)
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


@contextmanager
def _image(source: Path | bytes, where: object) -> Iterator[Image.Image]:
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
            yield image
    except UnidentifiedImageError as error:
        raise UsageError(f"{where}: expected an image, got something else.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UsageError(f"{where} cannot be decoded: {error}.") from error


def _name(path: Path) -> str:
    return path.name


def _images(folder: Path) -> list[Path]:
    named = [p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES and p.is_file()]
    found = sorted((p for p in named if not p.name.startswith(".")), key=_name)
    if not found:
        listing = " ".join(_SUFFIXES)
        raise UsageError(f"{folder}: expected images ({listing}), got none.")
    return found


def _headers(files: Sequence[Path]) -> tuple[tuple[int, int], int]:
    """Return (width, height) and the number of channels that all files share."""
    size, channels = None, 1
    for path in files:
        with _image(path, path) as image:
            if image.mode not in _GRAY + _COLOR or "transparency" in image.info:
                raise UsageError(
                    f"{path}: expected 8-bit gray or RGB without transparency, got mode "
                    f"{image.mode!r}. Convert it to RGB or L first."
                )
            if size is not None and image.size != size:
                raise UsageError(
                    f"{path}: expected {size[0]} × {size[1]} pixels as in {files[0]}, "
                    f"got {image.size[0]} × {image.size[1]}. Resize the images to one size."
                )
            size = image.size
            channels = 3 if image.mode in _COLOR else channels
    if size is None:
        raise UsageError("expected at least one image, got none.")
    return size, channels
