"""What no function mode sees: custom autograd functions, arrays of NumPy, hooks of modules.

While a model runs with stand-ins, three entry points lead here. They are put back when the last
such run ends, after an error too, and concern only the thread that runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.standins.graft import finish, full
from robustkit.standins.likeness import follow, origin
from robustkit.standins.mode import Bypassing

_LOCK = threading.Lock()
_RUNS: list[Bypassing] = []  # of all threads: while there are any, the entry points are replaced
_HERE = threading.local()
_APPLY: Any = torch.autograd.Function.__dict__["apply"]
_FROM_NUMPY: Any = torch.from_numpy
_OWN = ("torch", "robustkit")  # packages whose backward passes are believed
_HOOKS = ("_backward_hooks", "_backward_pre_hooks")


@contextmanager
def watched(mode: Bypassing, model: Any) -> Iterator[None]:
    """Run a model with the three entry points replaced."""
    with ExitStack() as stack:
        stack.callback(_leave, mode)
        _enter(mode)
        if isinstance(model, nn.Module):
            stack.enter_context(_tame_hooks(mode, model))
        yield


def _enter(mode: Bypassing) -> None:
    with _LOCK:
        _RUNS.append(mode)
        torch.autograd.Function.apply = classmethod(_apply)
        torch.from_numpy = _from_numpy
    _HERE.modes = [*_modes(), mode]


def _leave(mode: Bypassing) -> None:
    _HERE.modes = [other for other in _modes() if other is not mode]
    with _LOCK:
        _RUNS[:] = [other for other in _RUNS if other is not mode]
        if not _RUNS:
            torch.autograd.Function.apply = _APPLY
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
        source = origin(out, mode.left) if out.ndim else None
        return out if source is None else follow(out, source, mode.inside)


def _apply(kind: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply a custom autograd function; on the way back, its forward pass is differentiated.

    Its own backward pass may be anything. Where its forward pass has no derivative even with
    stand-ins, but returns nearly what it was given, it counts as the identity.
    """
    original = _APPLY.__get__(None, kind)
    modes = _modes()
    if not modes or kind.__module__.split(".")[0] in _OWN or kwargs:
        return original(*args, **kwargs)
    mode, tensors = modes[-1], [value for value in args if isinstance(value, Tensor)]
    versions, before = [value._version for value in tensors], _random(tensors)
    with torch._C.DisableTorchFunction():
        hard = original(*args)
    after = _random(tensors)
    if [value._version for value in tensors] != versions:  # it works in place: once is enough
        return hard
    try:
        _restore(before)
        with torch.enable_grad():
            soft = _again(kind, args)
    except Exception:  # of foreign code, run with a context that is not the real one
        soft = None
    finally:
        _restore(after)
    with torch._C.DisableTorchFunction(), torch.enable_grad():
        if isinstance(hard, Tensor):
            return _joined(mode, hard, soft, tensors)
        if isinstance(hard, tuple):
            softs = (
                soft if isinstance(soft, tuple) and len(soft) == len(hard) else [None] * len(hard)
            )
            return tuple(_joined(mode, *pair, tensors) for pair in zip(hard, softs, strict=True))
    return hard


def _joined(mode: Bypassing, hard: Any, soft: Any, tensors: list[Tensor]) -> Any:
    if not isinstance(hard, Tensor):
        return hard
    if isinstance(soft, Tensor) and soft.requires_grad and soft.shape == hard.shape:
        return finish(hard, soft, mode.inside)
    moving = [value for value in tensors if value.requires_grad and value.shape == hard.shape]
    return follow(hard, moving[0], mode.inside) if moving and full(hard) else hard


def _again(kind: Any, args: tuple[Any, ...]) -> Any:
    """Run the forward pass of a custom function where autograd sees it."""
    if kind.setup_context is not torch.autograd.Function.setup_context:
        return kind.forward(*args)
    return kind.forward(_Context(args), *args)


class _Context:
    """What a forward pass may want of its context."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.saved_tensors: tuple[Any, ...] = ()
        self.needs_input_grad = tuple(getattr(value, "requires_grad", False) for value in args)

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith(("mark_", "set_", "save_")):
            return lambda *_, **__: None
        raise AttributeError(name)


def _random(tensors: list[Tensor]) -> list[tuple[Any, Tensor]]:
    """Note the states of the global generators that a function may draw from."""
    states: list[tuple[Any, Tensor]] = [(torch.set_rng_state, torch.get_rng_state())]
    for device in {value.device for value in tensors if value.is_cuda}:
        state = torch.cuda.get_rng_state(device)
        states.append((lambda s, d=device: torch.cuda.set_rng_state(s, d), state))
    return states


def _restore(states: list[tuple[Any, Tensor]]) -> None:
    for put, state in states:
        put(state)


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
