"""Values of one tensor with the gradient of another, and gradients for tensors that can have none.

A tensor of integers, of truth values or of 16 bits carries a shadow: a differentiable tensor of the
same shape in float32 that follows what is done to it, until a float32 result comes out again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_SHADOW, _CHOICE, _ROOT = "_robustkit_shadow", "_robustkit_choice", "_robustkit_root"
_OWN = ("torch", "robustkit")  # packages whose backward passes are believed
_FULL = (torch.float32, torch.float64)


class Inside:
    """Autograd inside the forward pass: whether it runs right now; shared with its threads.

    Attributes:
        wanted: the model has asked for gradients, so that autograd may run later.
    """

    def __init__(self) -> None:
        self.active = self.wanted = False

    def gate(self, gradients: tuple[Tensor | None, ...], _: Any) -> tuple[Tensor | None, ...]:
        """Let gradients of a custom function pass inside alone: of none, it may make some."""
        return gradients if self.active else tuple(g if g is None else 0 * g for g in gradients)


class StraightThrough(torch.autograd.Function):
    """The value of `hard` with the gradient of `soft`.

    Autograd inside the forward pass still gets the gradient of `hard`: it shapes values.
    """

    @staticmethod
    def forward(ctx: Any, hard: Tensor, soft: Tensor, inside: Inside) -> Tensor:
        ctx.inside = inside
        return hard.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        return (grads[0], None, None) if ctx.inside.active else (None, grads[0], None)


class Guard(torch.autograd.Function):
    """The identity; a gradient that is not finite becomes zero, but for autograd inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inside: Inside) -> Tensor:
        ctx.inside = inside
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return (grads[0] if ctx.inside.active else grads[0].nan_to_num(0, 0, 0)), None


def full(tensor: Tensor) -> bool:
    """Tell whether gradients of `tensor` are computed in 32 bits or more."""
    return tensor.dtype in _FULL


def finish(hard: Tensor, soft: Tensor | None, inside: Inside) -> Tensor:
    """Return `hard` with the gradient of `soft`, or with it as a shadow; as it is for None."""
    if soft is None or not soft.requires_grad or soft.shape != hard.shape:
        return hard
    soft = soft.to(hard.device)
    if full(hard):
        return StraightThrough.apply(hard, soft, inside)  # type: ignore[no-any-return]
    attach(hard, soft if full(soft) else soft.float())
    return hard


def attach(tensor: Tensor, soft: Tensor) -> None:
    """Let `tensor` carry the shadow `soft`, until it is changed in place."""
    setattr(tensor, _SHADOW, (soft, tensor._version))


def shadow(tensor: Any) -> Tensor | None:
    """Return the shadow of `tensor`, if it has one that is still right."""
    held = getattr(tensor, _SHADOW, None) if isinstance(tensor, Tensor) else None
    if held is None or held[1] != tensor._version or held[0].shape != tensor.shape:
        return None
    soft: Tensor = held[0]
    return soft


def choose(index: Tensor, weights: Tensor) -> None:
    """Let `index` [*i] remember that it came about by `weights` [*i, k] over what it points to.

    As a number it has the mean place by these weights for a shadow.
    """
    if weights.requires_grad and weights.shape[:-1] == index.shape:
        places = torch.arange(weights.shape[-1], dtype=weights.dtype, device=weights.device)
        attach(index, (weights * places).sum(-1))
        setattr(index, _CHOICE, (weights, index._version))


def choice(index: Any) -> Tensor | None:
    """Return the weights that `index` came about by, if they are still right."""
    held = getattr(index, _CHOICE, None) if isinstance(index, Tensor) else None
    if held is None or held[1] != index._version or held[0].shape[:-1] != index.shape:
        return None
    weights: Tensor = held[0]
    return weights


def floats(value: Any) -> Any:
    """Replace tensors that carry shadows by these, in arguments and lists of them.

    Where any was replaced, 16-bit tensors beside it become float32.
    """
    if isinstance(value, Tensor):
        soft = shadow(value)
        if soft is not None:
            return soft
        return value.float() if value.is_floating_point() and not full(value) else value
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(floats(item) for item in value)
    if isinstance(value, dict):
        return {key: floats(item) for key, item in value.items()}
    return value


def shadowed(value: Any) -> bool:
    """Tell whether any tensor among the arguments carries a shadow."""
    if isinstance(value, Tensor):
        return shadow(value) is not None
    if isinstance(value, (list, tuple)):
        return any(shadowed(item) for item in value)
    return isinstance(value, dict) and any(shadowed(item) for item in value.values())


def keep(tensor: Tensor, root: Tensor | None = None) -> Tensor:
    """Let `tensor` remember how it came about, should a custom function put itself in between.

    What the forward pass of a custom function returns is given that function as its only past.
    """
    if tensor.requires_grad:
        setattr(tensor, _ROOT, (tensor.view_as(tensor) if root is None else root, tensor._version))
    return tensor


def exposed(value: Any, inside: Inside) -> Any:
    """Return what came out of a custom autograd function with the gradient of its forward pass.

    Its own backward pass may be anything; autograd inside the model still gets that one.
    """
    if isinstance(value, Tensor):
        node = value.grad_fn
        if not isinstance(node, torch.autograd.function.BackwardCFunction):
            return value
        kind: Any = node
        if kind._forward_cls.__module__.split(".")[0] in _OWN:
            return value
        held = getattr(value, _ROOT, None)
        root = held[0] if held is not None and held[1] == value._version else value._base
        if root is None or not root.requires_grad or root.shape != value.shape:
            return value
        if not inside.wanted:
            return finish(value.detach(), root, inside)
        kind.register_hook(inside.gate)
        return finish(value, root, inside)
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(exposed(item, inside) for item in value)
    return value
