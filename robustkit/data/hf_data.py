"""A Hugging Face data set in a folder: `hf-data:FOLDER`, read by the library `datasets`.

The folder is a repository of the hub as it is downloaded (Parquet, image files, with or without a
card), or what `save_to_disk` wrote. Only files in it are read, and no code of it runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustkit.core.imports import failure
from robustkit.core.optional import library, quiet
from robustkit.core.spec import Spec
from robustkit.data.dataset import ImageSet
from robustkit.data.image_folder import MOST, decode, headers
from robustkit.errors import UsageError, unknown

PREFIX, EXTRA = "hf-data", "hf-data"
_OPTIONS = ("config", "image", "label", "split")
_SAFE = 4  # the first version of `datasets` that runs no code of a data set
_NAMES = ("label", "labels", "y", "target")
_SPLITS = {"test": ("test", "validation"), "train": ("train",)}


class _Asked(NamedTuple):
    """The words of `hf-data:FOLDER(split=validation, image=img, label=fine_label)`."""

    text: str
    folder: Path
    options: dict[str, str]


def open_hf_data(text: str, split: str) -> ImageSet:
    """Open `hf-data:FOLDER`, with options in parentheses.

    Options: `split` (by default test, else validation, else the only one; of training data train),
    `image` and `label` (columns, where several could be meant), `config` (of a repository with
    several). Pixels are decoded as those of `folder:`; images are of one size, the headers of all
    are read here. Class names are those of the label's feature.

    Args:
        text: all of it.
        split: "test" or "train", where the options name none.

    Raises:
        UsageError: when `datasets` is absent or older than 4, for a folder it cannot read, a column
            that is missing or not the only candidate, labels that are hidden (-1), and images as
            `folder:` refuses them.
    """
    asked = _read(text)
    rows = _split(asked, _load(asked), split)
    image, label = _columns(asked, rows.features)
    labels, names = _labels(asked, rows, label)
    datasets: Any = library("datasets", EXTRA)
    bare = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    place = asked.folder.resolve()

    def source(index: int) -> bytes | Path:
        return _encoded(asked, place, bare[index][image], index)

    (width, height), channels = headers(
        ((source(i), f"{text}: image {i}") for i in range(len(bare))), MOST
    )
    shape = (channels, height, width)

    def read(indices: NDArray[np.int64]) -> NDArray[Any]:
        if not len(indices):
            return np.empty((0, *shape), dtype=np.uint8)
        return np.stack([decode(source(int(i)), f"{text}: image {i}", shape) for i in indices])

    return ImageSet(
        name=text, family=text, shape=shape, classes=max(2, len(names), int(labels.max()) + 1),
        labels=labels, read=read, class_names=names, source=str(asked.folder),
    )  # fmt: skip


def _read(text: str) -> _Asked:
    found = re.fullmatch(rf"{PREFIX}:(.+?)(\(.*\))?", text, re.DOTALL)
    if found is None:
        raise UsageError(f"expected {PREFIX}:FOLDER, got {text!r}.")
    options = Spec.parse(f"options{found[2]}").options if found[2] else ()
    for key, _ in options:
        if key not in _OPTIONS:
            raise unknown("option", key, _OPTIONS)
    folder = Path(found[1].strip()).expanduser()
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is not a folder (looked from {Path.cwd()}). Download the repository first: "
            f"`hf download USER/NAME --repo-type dataset --local-dir {folder}`."
        )
    return _Asked(text, folder, {key: str(value) for key, value in options})


def _load(asked: _Asked) -> dict[str, Any]:
    """Return the splits by their names."""
    datasets: Any = library("datasets", EXTRA)
    if int(datasets.__version__.split(".")[0]) < _SAFE:
        raise UsageError(
            f"{asked.text}: datasets {datasets.__version__} can run code that lies in a data set. "
            f'Run `pip install "datasets>={_SAFE}"`.'
        )
    place, config = str(asked.folder), asked.options.get("config")
    try:
        with quiet(), _no_bars(datasets):
            if any((asked.folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
                found = datasets.load_from_disk(place)
            else:
                # A card may name addresses as its files: only what lies here is read.
                local = datasets.DownloadConfig(local_files_only=True)
                found = datasets.load_dataset(place, config, download_config=local)
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"{asked.text} cannot be read: {failure(error)}. Expected a data set of the hub as it "
            "is downloaded, or what save_to_disk wrote; for plain folders of images, folder:PATH."
        ) from error
    return dict(found) if isinstance(found, dict) else {"": found}


@contextmanager
def _no_bars(datasets: Any) -> Iterator[None]:
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _split(asked: _Asked, splits: dict[str, Any], split: str) -> Any:
    named = asked.options.get("split")
    if named is not None:
        if named not in splits:
            raise unknown(f"split of {asked.folder}", named, filter(None, splits))
        return splits[named]
    for name in _SPLITS[split]:
        if name in splits:
            return splits[name]
    if len(splits) == 1 and (split == "test" or "" in splits):
        return next(iter(splits.values()))
    raise UsageError(
        f"{asked.text}: expected a split {' or '.join(_SPLITS[split])}, got "
        f"{', '.join(sorted(splits))}. Name one: {PREFIX}:{asked.folder}(split=NAME)."
    )


def _columns(asked: _Asked, features: Any) -> tuple[str, str]:
    """Return the columns of images and labels."""
    kinds = {name: type(kind).__name__ for name, kind in features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    whole = [n for n in kinds if str(getattr(features[n], "dtype", "")).startswith(("int", "uint"))]
    labels = labels or [name for name in whole if name in _NAMES]
    wholes = list(dict.fromkeys([*labels, *whole]))
    return _one(asked, "image", images, images), _one(asked, "label", labels, wholes)


def _one(asked: _Asked, what: str, candidates: list[str], allowed: list[str]) -> str:
    named = asked.options.get(what)
    if named is not None:
        if named not in allowed:
            raise unknown(f"{what} column", named, allowed)
        return named
    if len(candidates) != 1:
        got = ", ".join(candidates) or "none"
        raise UsageError(
            f"{asked.text}: expected one column of {what}s, got {got}. Name it: "
            f"{PREFIX}:{asked.folder}({what}=COLUMN)."
        )
    return candidates[0]


def _labels(asked: _Asked, rows: Any, label: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return all labels [n], and the names of the classes where there are any."""
    listed = rows.select_columns([label]).to_dict()[label]
    if not listed:
        raise UsageError(f"{asked.text}: expected at least one image, got an empty split.")
    if any(value is None or value < 0 for value in listed):
        raise UsageError(
            f"{asked.text}: expected labels from 0 on, got {min(v or 0 for v in listed)}: the "
            "labels of this split are hidden. Name another: (split=validation)."
        )
    names = getattr(rows.features[label], "names", None) or ()
    return np.array(listed, dtype=np.int64), tuple(map(str, names))


def _encoded(asked: _Asked, place: Path, item: Any, index: int) -> bytes | Path:
    """Return the encoded image, or the file it lies in; outside the folder none is opened."""
    if item is not None and item["bytes"]:
        return bytes(item["bytes"])
    path = Path(item["path"]) if item is not None and item["path"] else None
    file = None if path is None else (place / path).resolve()
    if file is None or not file.is_relative_to(place) or not file.is_file():
        raise UsageError(
            f"{asked.text}: image {index}: expected its bytes or a file in {place}, got {path}. "
            "Download the whole repository."
        )
    return file
