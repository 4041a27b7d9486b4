"""Classifiers inside a defense: the model that a wrapper wraps, the members of an ensemble."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.core.types import Model
from robustkit.models.guard import GuardedFunction

_DEEP = 8  # levels of nesting that are searched


def within(model: Any) -> dict[str, nn.Module]:
    """Return the modules inside `model` by their paths, most weights first, without itself.

    Layers of PyTorch are left out, except linear ones, which can be classifiers. Modules that
    PyTorch does not register are found too: in lists, dicts, attributes of plain objects, and
    variables that a function has closed over.
    """
    if isinstance(model, GuardedFunction):
        model = model.function
    found: dict[str, nn.Module] = {}
    seen = {id(model)}
    waiting = [("", model, 0)]
    while waiting:
        path, holder, depth = waiting.pop(0)
        for name, item in _held(holder):
            place = f"{path}.{name}" if path else name
            if id(item) in seen or depth >= _DEEP or not _may_hold(item):
                continue
            seen.add(id(item))
            waiting.append((place, item, depth + 1))
            if isinstance(item, nn.Module) and not _is_layer(item):
                found[place] = item
    order = sorted(found, key=lambda place: -_size(found[place]))  # stable: outer ones come first
    return {place: found[place] for place in order}


def hookable(module: nn.Module) -> bool:
    """Whether what goes through a module can be seen from outside: not in TorchScript."""
    return not isinstance(module, torch.jit.ScriptModule)


def part(model: Model, place: str) -> Model | None:
    """Return the module at a path that `within` names; None when there is none."""
    return within(model).get(place)


def _held(holder: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(holder, nn.Module):
        yield from holder.named_children()
    if isinstance(holder, Mapping):
        yield from ((str(key), item) for key, item in holder.items())
    elif isinstance(holder, (list, tuple)):
        yield from ((str(number), item) for number, item in enumerate(holder))
    elif isinstance(holder, partial):
        yield from _held({"func": holder.func, "args": holder.args, "keywords": holder.keywords})
    elif (code := getattr(holder, "__code__", None)) is not None:
        cells = getattr(holder, "__closure__", None) or ()
        for name, cell in zip(code.co_freevars, cells, strict=True):
            yield name, _content(cell)
    elif (owner := getattr(holder, "__self__", None)) is not None:
        yield "self", owner
    else:
        own = getattr(holder, "__dict__", {})
        yield from ((name, item) for name, item in own.items() if not name.startswith("_"))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _may_hold(item: Any) -> bool:
    if isinstance(item, (Tensor, str, bytes, int, float, complex, type, type(None))):
        return False
    module = type(item).__module__.split(".")[0]
    return isinstance(item, (nn.Module, list, tuple, Mapping)) or (
        callable(item) and module != "numpy"
    )


def _is_layer(module: nn.Module) -> bool:
    """Whether it is a layer of PyTorch, or a container of it that cannot be called."""
    own = type(module).__module__.startswith("torch.nn.")
    return own and not isinstance(module, (nn.Sequential, nn.Linear))


def _size(module: nn.Module) -> int:
    return sum(weights.numel() for weights in module.parameters())
