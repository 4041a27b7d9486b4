"""Opening what `--data` names, and the names that other packages use for data."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Protocol

from robustkit.core import arguments
from robustkit.data.arrays import from_arrays, open_function, open_npz
from robustkit.data.dataset import Augment, Dataset, ImageSet, digest, select, subset
from robustkit.data.download import cache_root
from robustkit.data.hf_data import PREFIX, open_hf_data
from robustkit.data.image_folder import open_folder
from robustkit.data.values import UNIT, Box
from robustkit.errors import UsageError, unknown
from robustkit.registry import datasets

__all__ = [
    "Augment",
    "Dataset",
    "DatasetSource",
    "ImageSet",
    "data_root",
    "digest",
    "from_arrays",
    "names_code",
    "open_dataset",
    "select",
    "subset",
]


class DatasetSource(Protocol):
    """What a class registered in `robustkit.registry.datasets` does; its fields are options."""

    def open(self, root: Path, split: str, download: bool) -> Dataset:
        """Open `split` ("train" or "test") from the data root, or download it if that is allowed.

        Raises:
            UsageError: when the data cannot be had, with the cure.
        """
        ...


def open_dataset(
    text: str,
    *,
    root: Path | None = None,
    split: str = "test",
    download: bool = True,
    box: Box = UNIT,
) -> Dataset:
    """Open what `--data` names. No image is read yet, except to check the range of float images.

    Args:
        text: a registered name (with options, if it has any), `npz:PATH`, `folder:PATH`,
            `hf-data:FOLDER`, or `module:function` / `path/to/file.py:function`.
        root: the data root; see `data_root`.
        split: "train" or "test"; only registered names and `hf-data:` have two.
        download: whether a named set that is missing may be downloaded, into the cache.
        box: the range of floating-point images of your own.

    Raises:
        UsageError: for a name that is not known or data that cannot be used, with the cure.
    """
    arguments.text("data", text)
    if root is not None:
        root = arguments.path("root", root)
    arguments.switch("download", download)
    if arguments.text("split", split) not in ("train", "test"):
        raise UsageError(f"expected the split 'train' or 'test', got {split!r}.")
    kind, colon, rest = text.partition(":")
    if kind == "npz" and colon:
        return open_npz(text, Path(rest).expanduser(), box=box)
    if kind == "folder" and colon:
        return open_folder(text, Path(rest).expanduser())
    if kind == PREFIX and colon:
        return open_hf_data(text, split)
    if re.fullmatch(r"\s*\w[\w-]*\s*(\(.*\))?\s*", text, re.DOTALL):
        source: DatasetSource = datasets.build(text)
        return source.open(data_root(root), split, download)
    if colon:
        return open_function(text, box=box)
    raise _guess(text)


def names_code(text: str) -> bool:
    """Tell whether opening `text` can run code: all but files and registered names.

    What a record, a card or another file names is opened only where this is false.
    """
    return ":" in text and not text.startswith(("npz:", "folder:", f"{PREFIX}:"))


def data_root(root: Path | None = None) -> Path:
    """Return `root`, else the environment's ROBUSTKIT_DATA, else the cache folder."""
    if root is not None:
        return root.expanduser()
    given = os.environ.get("ROBUSTKIT_DATA")
    return Path(given).expanduser() if given else cache_root()


def _guess(text: str) -> UsageError:
    path = Path(text).expanduser()
    if path.is_dir():
        return UsageError(f"{text!r} is a folder: write 'folder:{text}'.")
    if path.suffix == ".npz":
        return UsageError(f"{text!r} is a file: write 'npz:{text}'.")
    if path.suffix == ".py":
        return UsageError(f"{text!r} is a file: name a function in it, as in '{text}:load'.")
    forms = ["npz:PATH", "folder:PATH", f"{PREFIX}:FOLDER", "module:function"]
    return unknown("data set", text, [*datasets, *forms])
