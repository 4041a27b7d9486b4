"""Folders that users' own files import their helpers from, kept apart.

Two model files of one command may import helpers of one name (`a/helper.py`, `b/helper.py`), and
Python holds one module by a name. So before code of a folder runs, at import or in a pass, the
folder is made the active one: modules of other folders whose names it has files for step aside, and
its own come back. Where no two folders have a name in common, nothing is moved.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any


class _Folder:
    """A folder, what its files added to the search path, and its modules that stepped aside."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.front: list[str] = []  # entries that its files put before all others
        self.back = [path]
        self.aside: dict[str, ModuleType] = {}

    @property
    def entries(self) -> list[str]:
        return [*self.front, *self.back]

    def offers(self, name: str) -> str | None:
        """Return the first entry that holds a module or package of this name."""
        for entry in self.entries:
            place = os.path.join(entry, name)
            if os.path.isfile(f"{place}.py") or os.path.isdir(place):
                return entry
        return None


_known: dict[str, _Folder] = {}
_active: list[_Folder] = []  # at most one


def activate(path: Path) -> None:
    """Make a folder importable, last in the search path, and its modules those that are found."""
    name = str(path)
    here = _known.setdefault(name, _Folder(name))
    if _active == [here] and name in sys.path:
        return
    _active[:] = [here]
    if len(_known) == 1:
        sys.path += [entry for entry in here.back if entry not in sys.path]
        return
    _step_aside(here)
    for module, content in here.aside.items():
        sys.modules.setdefault(module, content)
    here.aside.clear()
    others = [entry for folder in _known.values() for entry in folder.entries]
    present = [_absolute(entry) for entry in sys.path]
    rest = [raw for raw, full in zip(sys.path, present, strict=True) if full not in others]
    mine = here.entries
    elsewhere = [entry for entry in dict.fromkeys(present) if entry in others and entry not in mine]
    sys.path[:] = [*here.front, *rest, *here.back, *elsewhere]


@contextmanager
def running(path: Path) -> Iterator[None]:
    """Run code of a folder: what it adds to the search path belongs to the folder."""
    activate(path)
    here, before = _known[str(path)], list(sys.path)
    try:
        yield
    finally:
        known = {*map(_absolute, before), *here.entries}
        first = next((i for i, entry in enumerate(sys.path) if entry in before), len(sys.path))
        for place, entry in enumerate(sys.path):
            if _absolute(entry) not in known:
                (here.front if place < first else here.back).append(_absolute(entry))


def folder_of(function: Any) -> Path | None:
    """Return the known folder that the code of a function or of a callable object is from."""
    while isinstance(function, partial):
        function = function.func
    code = inspect.unwrap(getattr(function, "__func__", function))
    if not hasattr(code, "__globals__"):
        code = getattr(type(code), "__call__", None)  # noqa: B004  # its code, not whether it has one
    file = getattr(code, "__globals__", {}).get("__file__")
    if not isinstance(file, str):
        return None
    return next((up for up in Path(file).parents if str(up) in _known), None)


def mixed(path: Path) -> bool:
    """Whether code of a folder ran with modules of another whose names it has files for.

    It happens when the code itself extends the search path: run it once more, from `activate` on.
    """
    clashes = _clashes(_known[str(path)])
    if clashes:
        _active.clear()
    return bool(clashes)


def _clashes(here: _Folder) -> dict[str, _Folder]:
    """Return what other folders imported under names that `here` has, and which folder did."""
    owners = {entry: f for f in _known.values() if f is not here for entry in f.entries}
    found = {}
    for name, module in [*sys.modules.items()]:
        parent = _parent(module) if "." not in name else ""
        offered = here.offers(name) if parent in owners else None
        if offered is not None and offered != parent:
            found[name] = owners[parent]
    return found


def _step_aside(here: _Folder) -> None:
    for name, owner in _clashes(here).items():
        for other in [n for n in sys.modules if n.partition(".")[0] == name]:
            owner.aside[other] = sys.modules.pop(other)


def _parent(module: ModuleType) -> str:
    """Return the entry of the search path that a top-level module or package was found in."""
    file = getattr(module, "__file__", None)
    if isinstance(file, str):
        folder, name = os.path.split(file)
        return os.path.dirname(folder) if name.startswith("__init__.") else folder
    try:  # a package without an __init__.py
        return os.path.dirname(next(iter(module.__path__), ""))
    except (AttributeError, TypeError):
        return ""


def _absolute(entry: str) -> str:
    return os.path.abspath(entry)
