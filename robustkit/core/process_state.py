"""What foreign code can change for the whole process: remembered before it runs, put back after.

PyTorch and NumPy are looked at only where they are imported already, so that this file is light.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple


class ProcessState(NamedTuple):
    """Settings of the process that results may depend on; None where they cannot be read."""

    folder: str | None
    dtype: Any = None
    gradients: bool | None = None
    threads: int | None = None
    deterministic: tuple[bool, bool] | None = None
    device: Any = None


# Those that a verdict may depend on; the others are put back without a word.
_WEIGHTY = {
    "dtype": "the default dtype",
    "gradients": "whether gradients are recorded",
    "deterministic": "whether algorithms are deterministic",
    "device": "the default device",
}


def read() -> ProcessState:
    """Read the settings: some microseconds."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return ProcessState(_folder())
    return ProcessState(
        _folder(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        torch.empty(0).device,  # a seventh of the time of get_default_device
    )


def put_back(before: ProcessState) -> list[str]:
    """Restore the settings, and name those that had changed and that a verdict may depend on."""
    now = read()
    if now == before:
        return []
    changed = [
        key
        for key, old, new in zip(before._fields, before, now, strict=True)
        if old is not None and old != new
    ]
    for key in changed:
        _restore(key, before)
    return [_WEIGHTY[key] for key in changed if key in _WEIGHTY]


def _restore(key: str, before: ProcessState) -> None:
    torch: Any = sys.modules.get("torch")
    if before.folder is not None and key == "folder":
        os.chdir(before.folder)
    elif before.deterministic is not None and key == "deterministic":
        enabled, warns = before.deterministic
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
    elif key == "dtype":
        torch.set_default_dtype(before.dtype)
    elif key == "gradients":
        torch.set_grad_enabled(before.gradients)
    elif key == "threads":
        torch.set_num_threads(before.threads)
    elif key == "device":
        plain = str(before.device) == "cpu"  # what it is where none was ever set
        torch.set_default_device(None if plain else before.device)


def generators() -> dict[str, Any]:
    """Return the states of the global random generators, by library."""
    torch: Any = sys.modules.get("torch")
    numpy: Any = sys.modules.get("numpy")
    found: dict[str, Any] = {"Python": random.getstate()}
    if numpy is not None and hasattr(numpy, "random"):
        kind, keys, *rest = numpy.random.get_state()
        found["NumPy"] = (kind, tuple(keys.tolist()), *rest)
    if torch is not None and hasattr(torch, "get_rng_state"):
        found["PyTorch"] = torch.get_rng_state()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            found["CUDA"] = torch.cuda.get_rng_state_all()
    return found


def same(a: Any, b: Any) -> bool:
    """Whether two states of one generator are equal."""
    if isinstance(a, (list, tuple)) and type(a) is type(b):
        if a and isinstance(a[0], int) and isinstance(a[-1], int):
            return bool(a == b)  # the 625 numbers of Python's own, many times a look
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    equal: Any = a == b
    return bool(equal.all() if hasattr(equal, "all") else equal)


def set_generators(states: Mapping[str, Any]) -> None:
    """Restore the states that `generators` returned, or some of them."""
    torch: Any = sys.modules.get("torch")
    numpy: Any = sys.modules.get("numpy")
    setters: dict[str, Callable[[Any], object]] = {
        "Python": random.setstate,
        "NumPy": lambda state: numpy.random.set_state(state),
        "PyTorch": lambda state: torch.set_rng_state(state),
        "CUDA": lambda state: torch.cuda.set_rng_state_all(state),
    }
    for library, state in states.items():
        setters[library](state)


@contextmanager
def kept() -> Iterator[None]:
    """Run foreign code inside: settings and global random generators are put back afterwards."""
    before, states = read(), generators()
    try:
        yield
    finally:
        put_back(before)
        set_generators(states)


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None
