"""The function mode under which a model runs unchanged, with a gradient where it has none.

PyTorch hands every call of a torch function to the innermost mode. This one runs the call as it is
and gives the result the gradient of a differentiable approximation (`rules.RULES`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from robustkit.models.surrogates.bpda import boolean, in_place, selection
from robustkit.models.surrogates.bpda.rule import BackwardPolicy, Call, names
from robustkit.models.surrogates.bpda.rules import RULES
from robustkit.models.surrogates.bpda.similarity import follow, reconnect
from robustkit.models.surrogates.bpda.straight_through import (
    FiniteGradient,
    InnerAutograd,
    StraightThrough,
    has_proxy,
    index_weights,
    is_full_float,
    proxy,
    remember_graph,
    undo_custom_backward,
    with_gradient_of,
    with_proxies,
)

# Run again for its gradient, a random function would draw other numbers than its value has.
_RANDOM = ("dropout", "bernoulli", "rand", "normal", "uniform", "multinomial", "rrelu", "gumbel")
_TENSOR: Any = torch.Tensor
_DATA, _READS = _TENSOR.data.__get__, (_TENSOR.grad.__get__, _TENSOR.data.__get__)
_SETS_GRAD = _TENSOR.requires_grad.__set__
# Rules for these are needed only where an argument carries a proxy: with float arguments alone
# autograd has the right derivative, and a rule would cost a second pass over the tensor.
_WITH_PROXIES = names(
    "where masked_fill and or xor invert dequantize logical_and logical_or logical_xor "
    "logical_not bitwise_and bitwise_or bitwise_xor bitwise_not"
)
# Derivatives that are inf or NaN at 0 or 1, where clipped pixels and saturated outputs lie.
_SINGULAR = names("sqrt rsqrt pow norm vector_norm log acos asin atan2 reciprocal std var xlogy")
_EXPORTS = ("numpy", "__array__", "tolist")
_IMPORTS = ("tensor", "as_tensor", "asarray")
# What an approximation may raise for a use of an operation that it does not know.
_FAILURES = (RuntimeError, TypeError, IndexError, ValueError)


class BpdaMode(TorchFunctionMode):
    """Runs torch functions as they are, with differentiable approximations on the backward pass.

    Values stay those of the model, bit by bit. Gradients are recorded inside `no_grad` and
    `inference_mode` too; autograd that the model runs itself gets the true gradients.

    Attributes:
        bypass_from: the input, where results that correlate with it are to have its gradient.
        rows: length of the batch whose results [b, k] are collected in `seen`; 0 for none.
        asked_for: tensors that the model itself wants gradients of.
        exported: tensors that left torch, as arrays or lists.
    """

    def __init__(
        self, policy: BackwardPolicy, bypass_from: Tensor | None = None, rows: int = 0
    ) -> None:
        super().__init__()
        self.policy, self.inner_autograd = policy, InnerAutograd()
        self.bypass_from, self.rows = bypass_from, rows
        self.asked_for: list[Tensor] = []
        self.exported: list[Tensor] = []
        self.seen: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run one call of a torch function."""
        kwargs = kwargs or {}
        # The model's own no_grad must go on telling it that gradients are off: see `off` below.
        if func is torch._C._set_grad_enabled:
            return func(*args, **kwargs)
        off = not torch.is_grad_enabled()
        self.inner_autograd.wanted |= kwargs.get("requires_grad") is True
        with contextlib.ExitStack() as stack:
            # Tensors made in inference mode can never enter a graph; it must be left, not nested.
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            args, kwargs = self._undo_custom(func, args, kwargs)
            out = self._dispatch(func, args, kwargs)
            # `.grad` and `.data` hand out tensors that belong to others: nothing is attached there.
            if func in _READS or not isinstance(out, Tensor) or any(out is value for value in args):
                return out
            if self.bypass_from is not None and out.shape == self.bypass_from.shape:
                out = follow(out, self.bypass_from, self.inner_autograd)
            if off:
                out = self._constant_to_model(out)
            if self.rows and out.ndim == 2 and len(out) == self.rows and out.requires_grad:
                self.seen.append(out)
        return out

    def _dispatch(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        name = func.__name__
        if not args:
            return func(**kwargs)
        if name in ("grad", "backward"):
            return self._differentiate(func, args, kwargs)
        if func == _DATA:
            return args[0].view_as(args[0])
        if name in _EXPORTS:
            return self._export(func, args, kwargs)
        if name == "requires_grad_" or func == _SETS_GRAD:
            return self._require_grad(func, args, kwargs)
        if name == "detach_":  # it would cut the tensor itself out of the graph, for good
            return args[0]
        if name == "register_hook":
            return func(args[0], self.only_inner(args[1]))
        if name == "__setitem__":
            return in_place.assign(func, args[0], args[1], args[2], self.inner_autograd)
        if _changes(name):
            return in_place.change(
                self._approximate, func, args, kwargs, self.policy, self.inner_autograd
            )
        if name in _SINGULAR:
            args = tuple(self._finite_gradient(value) for value in args)
        out = func(*args, **kwargs)
        if name in _IMPORTS and isinstance(out, Tensor) and not out.requires_grad and out.ndim:
            return reconnect(out, self.exported, self.inner_autograd)
        name = name[2:-2] if name.startswith("__") else name
        return self._attach(func, name, args, kwargs, out)

    def _finite_gradient(self, value: Any) -> Any:
        """Stop a gradient that is not finite at the argument of a singular function."""
        if isinstance(value, Tensor) and value.requires_grad and is_full_float(value):
            return FiniteGradient.apply(value, self.inner_autograd)
        return value

    def _export(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Hand values to NumPy or Python, and remember the tensor that they came from."""
        held = proxy(args[0])
        if (source := args[0] if held is None else held).requires_grad:
            self.exported.append(source)
        return func(args[0].detach(), *args[1:], **kwargs)

    def _attach(self, func: Callable[..., Any], name: str, args: Any, kwargs: Any, out: Any) -> Any:
        """Give the true result of an operation the gradient of its approximation."""
        call = Call(args, kwargs, self.policy, self.inner_autograd)
        if name in selection.SELECTS:
            try:
                return selection.select(name, call, out)
            except _FAILURES:
                return out
        if not isinstance(out, Tensor):
            return self._attach_each(func, args, kwargs, out)
        soft = self._approximate(func, name, call, out)
        if name in selection.RESHAPES and index_weights(args[0]) is not None:
            selection.carry_weights(args[0], out)
        return boolean.with_approximation(call, out, soft)

    def _approximate(
        self, func: Callable[..., Any], name: str, call: Call, out: Tensor
    ) -> Tensor | None:
        try:
            if (
                name in selection.INDEXING
                and (found := selection.by_index(name, call, out)) is not None
            ):
                return found
            touched = has_proxy(call.args) or has_proxy(call.kwargs)
            rule = RULES.get(name)
            # Division is under a rule for its rounding_mode; without one it has its derivative.
            plain = name in ("div", "divide") and call.kwargs.get("rounding_mode") is None
            if rule is not None and not plain and (touched or name not in _WITH_PROXIES):
                found = rule(call, out)
                if found is not None or not touched:
                    return found
            if touched and not any(word in name for word in _RANDOM):
                soft = func(*call.soft, **with_proxies(call.kwargs))
                return soft if isinstance(soft, Tensor) else None
        except _FAILURES:  # no approximation of this use: the result keeps its own gradient
            return None
        return None

    def _attach_each(self, func: Callable[..., Any], args: Any, kwargs: Any, out: Any) -> Any:
        """Give each of several results (split, unbind, ...) the gradient of its approximation."""
        if not isinstance(out, (tuple, list)) or not (has_proxy(args) or has_proxy(kwargs)):
            return out
        try:
            softs = func(*with_proxies(args), **with_proxies(kwargs))
        except _FAILURES:
            return out
        pairs = [
            with_gradient_of(hard, soft, self.inner_autograd) if isinstance(hard, Tensor) else hard
            for hard, soft in zip(out, softs, strict=True)
        ]
        return type(out)(pairs)

    def _require_grad(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Note that the model wants gradients of a tensor."""
        self.inner_autograd.wanted = True
        tensor, wanted = args[0], _at(args, 1)
        wanted = kwargs.get("requires_grad", True) if wanted is None else wanted
        if tensor.is_leaf:
            return func(*args, **kwargs)
        # To the model this is a leaf; in the recorded graph it is none, and requires_grad_ on an
        # inner tensor would raise.
        if wanted:
            tensor.retain_grad()
            self.asked_for.append(tensor)
        return tensor

    def _differentiate(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run the model's own autograd with true gradients, and leave the graph usable."""
        if func is torch.Tensor.backward and self.asked_for and not kwargs.get("inputs"):
            kwargs = {**kwargs, "inputs": self.asked_for}
        # The outer backward pass goes through the same graph later, so that it must be retained.
        places = {"grad": 3, "backward": 2}
        if len(args) <= places[func.__name__]:
            kwargs = {**kwargs, "retain_graph": True}
        before, self.inner_autograd.active = self.inner_autograd.active, True
        try:
            return func(*args, **kwargs)
        finally:
            self.inner_autograd.active = before

    def only_inner(self, hook: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        """Let a hook that changes gradients act in the model's own autograd alone."""
        return lambda gradient: hook(gradient) if self.inner_autograd.active else None

    def _undo_custom(self, func: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Replace results of custom autograd functions among the arguments of a call."""
        fresh = undo_custom_backward(tuple(args), self.inner_autograd)
        if _changes(func.__name__) and args and fresh[0] is not args[0]:
            args[0].copy_(fresh[0])  # changed in place: the tensor itself must get the new graph
            fresh = (args[0], *fresh[1:])
        return fresh, {k: undo_custom_backward(v, self.inner_autograd) for k, v in kwargs.items()}

    def _constant_to_model(self, out: Tensor) -> Tensor:
        """Make a result of `no_grad` a constant to the model's own autograd, and to it alone."""
        if not out.requires_grad or not is_full_float(out) or out.is_leaf:
            return out
        if out._is_view():  # it shares memory with its base, which a clone would break
            return remember_graph(out)
        return remember_graph(StraightThrough.apply(out.detach(), out, self.inner_autograd), out)


def _changes(name: str) -> bool:
    """Whether a function of this name changes its first argument."""
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def _at(args: Any, place: int) -> Any:
    return args[place] if len(args) > place else None
