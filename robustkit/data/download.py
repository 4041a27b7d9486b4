"""Downloading a data set with torchvision, and storing it as one npz."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from robustkit.errors import UsageError


def cache_root() -> Path:
    """The folder of downloads: `robustkit` in XDG_CACHE_HOME, or in ~/.cache without it."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "robustkit"


def download(name: str, original: str, missing: str) -> Path:
    """Download a data set and write `name`.npz into the cache root, whole or not at all.

    Args:
        name: of the data set.
        original: class in torchvision.datasets, whose checksums are verified.
        missing: the sentence that says what was looked for; errors begin with it.

    Returns:
        A file with x_train, y_train, x_test, y_test, uncompressed so that it can be mapped.

    Raises:
        UsageError: when torchvision is absent or broken, or the download fails, with the cure.
    """
    source = getattr(_torchvision(missing, put(f"{name}.npz")), original)
    target = cache_root() / f"{name}.npz"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{name}.partial.") as scratch:
            # Older torchvisions print to standard output, which is for results alone.
            with contextlib.redirect_stdout(sys.stderr):
                arrays = _arrays(source, scratch)
            partial = Path(scratch) / "whole.npz"
            np.savez(partial, **cast(Any, arrays))
            os.replace(partial, target)
    except Exception as error:
        raise UsageError(
            f"{missing} The download with torchvision failed ({type(error).__name__}: {error}); "
            f"nothing was kept. Try again, or {put(f'{name}.npz')}."
        ) from error
    return target


def put(file: str) -> str:
    """Say what helps without a network."""
    return f"put {file} into the data root, given by --data-root or ROBUSTKIT_DATA"


def _torchvision(missing: str, otherwise: str) -> ModuleType:
    cure = f"`pip install torchvision` (the build that matches torch {torch.__version__})"
    try:
        from torchvision import datasets
    except ImportError:
        raise UsageError(
            f"{missing} It cannot be downloaded without torchvision: {cure} "
            f"and try again, or {otherwise}."
        ) from None
    except Exception as error:  # a build for another torch fails in its own ways
        raise UsageError(
            f"{missing} It cannot be downloaded: torchvision is installed but broken "
            f"({type(error).__name__}: {error}). Run {cure} and try again, or {otherwise}."
        ) from error
    module: ModuleType = datasets
    return module


def _arrays(source: Any, folder: str) -> dict[str, NDArray[np.uint8]]:
    arrays = {}
    for split in ("train", "test"):
        data = source(folder, train=split == "train", download=True)
        arrays[f"x_{split}"] = np.asarray(data.data, dtype=np.uint8)
        arrays[f"y_{split}"] = np.asarray(data.targets, dtype=np.uint8)
    return arrays
