"""Operations in place under the BPDA mode: the model's values, the approximation's gradient.

Autograd forbids most changes in place of what a graph still needs. The value is changed as the
model asked; the gradient is that of the operation out of place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from robustkit.models.surrogates.bpda.rule import BackwardPolicy, Call
from robustkit.models.surrogates.bpda.rules import RULES
from robustkit.models.surrogates.bpda.straight_through import (
    InnerAutograd,
    StraightThrough,
    attach_proxy,
    has_proxy,
    index_weights,
    is_full_float,
    proxy,
    with_gradient_of,
    with_proxies,
)

Approximate: TypeAlias = Callable[[Callable[..., Any], str, Call, Tensor], "Tensor | None"]


def change(
    approximate: Approximate,
    func: Callable[..., Any],
    args: Any,
    kwargs: Any,
    policy: BackwardPolicy,
    inner: InnerAutograd,
) -> Any:
    """Call `func`, such as Tensor.add_, which changes its first argument.

    Args:
        approximate: returns the approximation of the operation out of place, or None.
    """
    name, old = func.__name__[:-1], args[0]
    base = getattr(torch.Tensor, name, None)
    leaf = isinstance(old, Tensor) and old.is_leaf and old.requires_grad
    if leaf or not isinstance(old, Tensor):  # autograd refuses to change a leaf that has a gradient
        with torch.no_grad():
            return func(*args, **kwargs)
    target = args[2] if len(args) > 2 else None
    touched = has_proxy(args) or has_proxy(kwargs) or index_weights(target) is not None
    if name == "copy" and (touched or not is_full_float(old)):
        soft = with_proxies(args[1])
        func(*args, **kwargs)
        if soft.requires_grad:
            set_gradient(old, soft.expand_as(old), inner)
        return old
    if base is None or not (touched or name in RULES):
        return func(*args, **kwargs)
    before = old.clone()  # approximations may save it for the backward pass
    if (held := proxy(old)) is not None:
        attach_proxy(before, held)
    hard, call = base(before, *args[1:], **kwargs), (before, *args[1:])
    approximation = approximate(base, name, Call(call, kwargs, policy, inner), hard)
    if approximation is None:
        return func(*args, **kwargs)
    with torch.no_grad():
        func(old.detach(), *args[1:], **kwargs)
    set_gradient(old, approximation, inner)
    return old


def set_gradient(old: Tensor, soft: Tensor, inner: InnerAutograd) -> None:
    """Let `old`, whose value is right already, have the gradient of `soft` from now on."""
    if is_full_float(old):
        # copy_ rebases the history of `old` and of every view of it, as an assignment could not.
        old.copy_(StraightThrough.apply(old.detach(), soft, inner))
    else:
        attach_proxy(old, soft if is_full_float(soft) else soft.float())


def assign(
    func: Callable[..., Any], old: Tensor, index: Any, value: Any, inner: InnerAutograd
) -> None:
    """Run `old[index] = value`."""
    mask = proxy(index)
    scalar = not isinstance(value, Tensor) or value.ndim == 0
    if mask is not None and index.dtype == torch.bool and scalar and is_full_float(old):
        # As `where(index, value, old)`: the gradient crosses the condition by the jump.
        wide = index.view(*index.shape, *[1] * (old.ndim - index.ndim))
        jump = (value - old.detach()) * (mask - mask.detach()).view_as(wide)
        soft = torch.where(wide, value, old) + jump
        with torch.no_grad():
            func(old.detach(), index, value)
        return set_gradient(old, soft, inner)
    soft = with_proxies(value)
    if not is_full_float(old) and isinstance(soft, Tensor) and soft.requires_grad:
        canvas = (old.float() if (held := proxy(old)) is None else held).clone()
        canvas[index] = soft.to(canvas.dtype)
        func(old, index, value)
        return attach_proxy(old, canvas)
    if is_full_float(old) and isinstance(value, Tensor) and proxy(value) is not None:
        value = with_gradient_of(value.to(old.dtype), soft, inner)
    func(old, index, value)
    return None
