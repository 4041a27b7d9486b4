"""What no function mode sees: tensors made of arrays of NumPy, and backward hooks of modules.

Both are changed while a model runs with stand-ins, and put back when the last such run ends, after
an error too. `torch.from_numpy` acts otherwise in the thread that runs alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.models.surrogates.bpda.mode import Bypassing
from robustkit.models.surrogates.bpda.similarity import traced
from robustkit.models.surrogates.bpda.straight_through import keep

_LOCK = threading.Lock()
_RUNS: list[Bypassing] = []  # of all threads: while there are any, the entry point is replaced
_HERE = threading.local()
_FROM_NUMPY: Any = torch.from_numpy
_HOOKS = ("_backward_hooks", "_backward_pre_hooks")


@contextmanager
def watched(mode: Bypassing, model: Any) -> Iterator[None]:
    """Run a model with both changed."""
    with ExitStack() as stack:
        stack.callback(_leave, mode)
        _enter(mode)
        if isinstance(model, nn.Module):
            stack.enter_context(_tame_hooks(mode, model))
        yield


def _enter(mode: Bypassing) -> None:
    with _LOCK:
        _RUNS.append(mode)
        torch.from_numpy = _from_numpy
    _HERE.modes = [*_modes(), mode]


def _leave(mode: Bypassing) -> None:
    _HERE.modes = [other for other in _modes() if other is not mode]
    with _LOCK:
        _RUNS[:] = [other for other in _RUNS if other is not mode]
        if not _RUNS:
            torch.from_numpy = _FROM_NUMPY


def _modes() -> list[Bypassing]:
    modes: list[Bypassing] = getattr(_HERE, "modes", [])
    return modes


def _from_numpy(ndarray: Any) -> Tensor:
    """Make a tensor of an array; where it follows a tensor that had left, so does its gradient."""
    out: Tensor = _FROM_NUMPY(ndarray)
    return returned(_modes()[-1], out) if _modes() else out


def returned(mode: Bypassing, out: Tensor) -> Tensor:
    """Give a tensor that came from outside of torch the gradient of the one that had left."""
    with torch._C.DisableTorchFunction(), torch.enable_grad():
        return keep(traced(out, mode.left, mode.inside)) if out.ndim else out


@contextmanager
def _tame_hooks(mode: Bypassing, model: nn.Module) -> Iterator[None]:
    """Let backward hooks of modules change the gradients of the model's own autograd alone."""
    held = [
        (hooks, dict(hooks))
        for module in model.modules()
        for hooks in (getattr(module, name) for name in _HOOKS)
        if hooks
    ]
    try:
        for hooks, old in held:
            hooks.update({key: mode.only_inside(hook) for key, hook in old.items()})
        yield
    finally:
        for hooks, old in held:
            hooks.clear()
            hooks.update(old)
