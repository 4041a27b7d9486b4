"""What the environment is, what is broken in it, and the command that cures it."""

from __future__ import annotations

import base64
import hashlib
import importlib
import importlib.util
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import torch

from robustkit import registry
from robustkit.data import data_root
from robustkit.download import cache_root
from robustkit.errors import RobustkitError

State: TypeAlias = Literal["ok", "absent", "warning", "broken"]
_LIBRARIES = (
    *("click", "jaxtyping", "numpy", "pandas", "pillow", "pydantic", "rich", "safetensors"),
    *("scipy", "torch"),
)
_EXTRAS = ("torchvision", "pyautoattack", "torchattacks", "robustbench", "matplotlib", "jinja2")
_RESTORE = "pip install --force-reinstall --no-deps robustbench=={}"


class Finding(NamedTuple):
    """One line of the diagnosis. `cure` is empty where nothing needs one."""

    name: str
    state: State
    detail: str
    cure: str = ""


def examine(root: Path | None = None) -> list[Finding]:
    """Look at everything. Nothing is changed, and nothing is downloaded.

    Args:
        root: the data root to look at; the default one if not given.
    """
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _versions,
        _devices,
        _core,
        _extras,
        _robustbench,
        _pins,
        _folders,
        lambda: _data(data_root(root)),
    )
    return [finding for check in checks for finding in _guarded(check)]


def installed(name: str) -> Distribution | None:
    """Return the metadata of an installed distribution."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def altered(dist: Distribution) -> list[str]:
    """Name the files of a distribution that are missing or differ from its own list of digests."""
    found = []
    for file in dist.files or ():
        if file.hash is None or file.hash.mode != "sha256":
            continue
        path = Path(str(dist.locate_file(file)))
        if not path.is_file() or _urlsafe(path.read_bytes()) != file.hash.value:
            found.append(str(file))
    return found
