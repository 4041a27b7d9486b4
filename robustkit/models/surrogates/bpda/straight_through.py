"""Values of one tensor with the gradient of another, and gradients for tensors that can have none.

Autograd knows no gradient of integers and booleans, and rounds one of 16-bit floats. Such a tensor
carries a *proxy* instead: a float32 tensor of the same shape that is differentiable, and to which
the same operations are applied until a float32 result comes out again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_PROXY, _WEIGHTS, _ROOT = "_robustkit_proxy", "_robustkit_weights", "_robustkit_root"
_TRUSTED = ("torch", "robustkit")  # packages whose backward passes are true derivatives
_FULL = (torch.float32, torch.float64)


class InnerAutograd:
    """Whether autograd that the model itself runs inside its forward pass is at work.

    One object per pass, shared with the autograd threads: a model that purifies its input by
    gradient descent must get its true gradients, or its outputs would change.

    Attributes:
        active: such a backward pass runs right now.
        wanted: the model has asked for gradients, so that one may run later in the pass.
    """

    def __init__(self) -> None:
        self.active = self.wanted = False

    def only_inner(self, gradients: tuple[Tensor | None, ...], _: Any) -> tuple[Tensor | None, ...]:
        """Let a custom function's gradients pass to the model's own autograd alone."""
        # A hook after the custom backward, not before it: from a zero gradient it may make another.
        return gradients if self.active else tuple(g if g is None else 0 * g for g in gradients)


class StraightThrough(torch.autograd.Function):
    """The value of `hard` with the gradient of `soft` (straight-through estimator).

    Bengio et al. 2013 (arXiv:1308.3432). Autograd that the model runs inside its forward pass still
    gets the gradient of `hard`, since the model's outputs depend on it.
    """

    @staticmethod
    def forward(ctx: Any, hard: Tensor, soft: Tensor, inner: InnerAutograd) -> Tensor:
        ctx.inner = inner
        return hard.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        return (grads[0], None, None) if ctx.inner.active else (None, grads[0], None)


class FiniteGradient(torch.autograd.Function):
    """The identity; a gradient that is not finite becomes zero, but for the model's own autograd.

    sqrt, norm or log at a singular point return inf or NaN, and 0 · inf further back is NaN: one
    such pixel would erase the gradient of the whole input.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, inner: InnerAutograd) -> Tensor:
        ctx.inner = inner
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return (grads[0] if ctx.inner.active else grads[0].nan_to_num(0, 0, 0)), None


def is_full_float(tensor: Tensor) -> bool:
    """Whether autograd computes gradients of `tensor` in 32 bits or more."""
    return tensor.dtype in _FULL


def with_gradient_of(hard: Tensor, soft: Tensor | None, inner: InnerAutograd) -> Tensor:
    """Return `hard` with the gradient of `soft`, as a proxy where `hard` can have none.

    Unchanged where `soft` is None, has no gradient or another shape.
    """
    if soft is None or not soft.requires_grad or soft.shape != hard.shape:
        return hard
    soft = soft.to(hard.device)
    if is_full_float(hard):
        return StraightThrough.apply(hard, soft, inner)  # type: ignore[no-any-return]
    attach_proxy(hard, soft if is_full_float(soft) else soft.float())
    return hard


def attach_proxy(tensor: Tensor, soft: Tensor) -> None:
    """Let `tensor` carry the proxy `soft`, until it is changed in place."""
    # The version counter is PyTorch's own record of changes in place: a proxy of an older version
    # describes a value that is gone.
    setattr(tensor, _PROXY, (soft, tensor._version))


def proxy(tensor: Any) -> Tensor | None:
    """Return the proxy of `tensor`, if it has one of its present value."""
    held = getattr(tensor, _PROXY, None) if isinstance(tensor, Tensor) else None
    if held is None or held[1] != tensor._version or held[0].shape != tensor.shape:
        return None
    soft: Tensor = held[0]
    return soft


def attach_weights(index: Tensor, weights: Tensor) -> None:
    """Store with `index` [*i] the soft selection `weights` [*i, k] over the k places it may name.

    Its proxy, for arithmetic on the index as a number, is the mean place by these weights.
    """
    if weights.requires_grad and weights.shape[:-1] == index.shape:
        places = torch.arange(weights.shape[-1], dtype=weights.dtype, device=weights.device)
        attach_proxy(index, (weights * places).sum(-1))
        setattr(index, _WEIGHTS, (weights, index._version))


def index_weights(index: Any) -> Tensor | None:
    """Return the weights stored with `index` [*i, k], if they are of its present value."""
    held = getattr(index, _WEIGHTS, None) if isinstance(index, Tensor) else None
    if held is None or held[1] != index._version or held[0].shape[:-1] != index.shape:
        return None
    weights: Tensor = held[0]
    return weights


def with_proxies(value: Any) -> Any:
    """Replace tensors by their proxies, in arguments and lists of them.

    16-bit tensors without one become float32: an operation wants all its arguments in one dtype.
    """
    if isinstance(value, Tensor):
        soft = proxy(value)
        if soft is not None:
            return soft
        return value.float() if value.is_floating_point() and not is_full_float(value) else value
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(with_proxies(item) for item in value)
    if isinstance(value, dict):
        return {key: with_proxies(item) for key, item in value.items()}
    return value


def has_proxy(value: Any) -> bool:
    """Whether any tensor among the arguments carries a proxy."""
    if isinstance(value, Tensor):
        return proxy(value) is not None
    if isinstance(value, (list, tuple)):
        return any(has_proxy(item) for item in value)
    return isinstance(value, dict) and any(has_proxy(item) for item in value.values())


def remember_graph(tensor: Tensor, root: Tensor | None = None) -> Tensor:
    """Store with `tensor` the graph behind it, in case a custom autograd function replaces it.

    PyTorch gives what a custom function returns that function as its only past; `root` (by default
    a view of `tensor`) still leads back through the operations of its forward pass.
    """
    if tensor.requires_grad:
        setattr(tensor, _ROOT, (tensor.view_as(tensor) if root is None else root, tensor._version))
    return tensor


def undo_custom_backward(value: Any, inner: InnerAutograd) -> Any:
    """Return what a custom autograd function returned with the gradient of its forward pass.

    Its backward pass is the author's claim, and defenses have put zeros or noise there. Autograd
    that the model runs itself still gets the author's.
    """
    if isinstance(value, Tensor):
        node = value.grad_fn
        if not isinstance(node, torch.autograd.function.BackwardCFunction):
            return value
        # BackwardCFunction: the node of a torch.autograd.Function that is written in Python.
        kind: Any = node
        if kind._forward_cls.__module__.split(".")[0] in _TRUSTED:
            return value
        held = getattr(value, _ROOT, None)
        root = held[0] if held is not None and held[1] == value._version else value._base
        if root is None or not root.requires_grad or root.shape != value.shape:
            return value
        # Where the model runs no autograd, the custom node can be dropped from the graph at once.
        if not inner.wanted:
            return with_gradient_of(value.detach(), root, inner)
        kind.register_hook(inner.only_inner)
        return with_gradient_of(value, root, inner)
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(undo_custom_backward(item, inner) for item in value)
    return value
