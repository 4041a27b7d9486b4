"""What no function mode sees: `torch.from_numpy`, and backward hooks of modules.

Both are replaced while a model runs in the BPDA mode, and restored when the last such run ends,
after an error too. The replaced `torch.from_numpy` acts only in threads that run in the mode.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.models.surrogates.bpda.mode import BpdaMode
from robustkit.models.surrogates.bpda.similarity import reconnect
from robustkit.models.surrogates.bpda.straight_through import remember_graph

_LOCK = threading.Lock()
_RUNS: list[BpdaMode] = []  # of all threads: while there are any, torch.from_numpy is replaced
_THREAD = threading.local()
# No function mode is called for it, as it takes no tensor.
_FROM_NUMPY: Any = torch.from_numpy
_HOOKS = ("_backward_hooks", "_backward_pre_hooks")


@contextmanager
def patched(mode: BpdaMode, model: Any) -> Iterator[None]:
    """Run `model` inside with both replaced."""
    with ExitStack() as stack:
        stack.callback(_exit, mode)
        _enter(mode)
        if isinstance(model, nn.Module):
            stack.enter_context(_restrict_hooks(mode, model))
        yield


def _enter(mode: BpdaMode) -> None:
    with _LOCK:
        _RUNS.append(mode)
        torch.from_numpy = _from_numpy
    _THREAD.modes = [*_modes(), mode]


def _exit(mode: BpdaMode) -> None:
    _THREAD.modes = [other for other in _modes() if other is not mode]
    with _LOCK:
        _RUNS[:] = [other for other in _RUNS if other is not mode]
        if not _RUNS:
            torch.from_numpy = _FROM_NUMPY


def _modes() -> list[BpdaMode]:
    modes: list[BpdaMode] = getattr(_THREAD, "modes", [])
    return modes


def _from_numpy(ndarray: Any) -> Tensor:
    """Make a tensor of an array, with the gradient of the exported tensor that it resembles."""
    out: Tensor = _FROM_NUMPY(ndarray)
    return reconnected(_modes()[-1], out) if _modes() else out


def reconnected(mode: BpdaMode, out: Tensor) -> Tensor:
    """Give a tensor that came from NumPy the gradient of the exported one that it resembles."""
    # Plain torch: the mode would take these operations for the model's own.
    with torch._C.DisableTorchFunction(), torch.enable_grad():
        return (
            remember_graph(reconnect(out, mode.exported, mode.inner_autograd)) if out.ndim else out
        )


@contextmanager
def _restrict_hooks(mode: BpdaMode, model: nn.Module) -> Iterator[None]:
    """Let backward hooks of modules change the gradients of the model's own autograd alone.

    Defenses have used such hooks to zero or perturb the gradient that an attacker gets.
    """
    # Copies of the dictionaries: hooks that the model registers meanwhile are dropped with them.
    held = [
        (hooks, dict(hooks))
        for module in model.modules()
        for hooks in (getattr(module, name) for name in _HOOKS)
        if hooks
    ]
    try:
        for hooks, old in held:
            hooks.update({key: mode.only_inner(hook) for key, hook in old.items()})
        yield
    finally:
        for hooks, old in held:
            hooks.clear()
            hooks.update(old)
