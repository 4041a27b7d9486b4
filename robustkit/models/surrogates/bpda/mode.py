"""The function mode under which a model runs unchanged, with a gradient where it has none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from robustkit.models.surrogates.bpda import boolean, selection
from robustkit.models.surrogates.bpda.rule import BackwardRule, Call, names
from robustkit.models.surrogates.bpda.rules import RULES
from robustkit.models.surrogates.bpda.similarity import follow, traced
from robustkit.models.surrogates.bpda.straight_through import (
    Guard,
    Inside,
    StraightThrough,
    attach,
    choice,
    exposed,
    finish,
    floats,
    full,
    keep,
    shadow,
    shadowed,
)

_RANDOM = ("dropout", "bernoulli", "rand", "normal", "uniform", "multinomial", "rrelu", "gumbel")
_TENSOR: Any = torch.Tensor
_DATA, _READS = _TENSOR.data.__get__, (_TENSOR.grad.__get__, _TENSOR.data.__get__)
_SETS_GRAD = _TENSOR.requires_grad.__set__
# What has its derivative, or none that matters, unless a shadow goes in.
_WITH_SHADOWS = names(
    "where masked_fill and or xor invert dequantize logical_and logical_or logical_xor "
    "logical_not bitwise_and bitwise_or bitwise_xor bitwise_not"
)
_SINGULAR = names("sqrt rsqrt pow norm vector_norm log acos asin atan2 reciprocal std var xlogy")
_LEAVES = ("numpy", "__array__", "tolist")
_ARRIVES = ("tensor", "as_tensor", "asarray")
_FAILURES = (RuntimeError, TypeError, IndexError, ValueError)


class Bypassing(TorchFunctionMode):
    """Runs torch functions as they are, and puts differentiable stand-ins on the way back.

    Values stay those of the model, bit by bit. Gradients are recorded inside `no_grad` and
    `inference_mode` too; autograd that the model runs itself gets the true gradients.

    Attributes:
        front: the input, where results that follow it closely count as the input itself.
        rows: length of the batch whose results [b, k] are kept in `seen`; 0 for none.
        sought: what the model itself asks gradients of.
        left: tensors that left torch, as arrays or lists.
    """

    def __init__(self, manner: BackwardRule, front: Tensor | None = None, rows: int = 0) -> None:
        super().__init__()
        self.manner, self.inside, self.front, self.rows = manner, Inside(), front, rows
        self.sought: list[Tensor] = []
        self.left: list[Tensor] = []
        self.seen: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Answer one call."""
        kwargs = kwargs or {}
        if func is torch._C._set_grad_enabled:
            return func(*args, **kwargs)
        off = not torch.is_grad_enabled()
        self.inside.wanted |= kwargs.get("requires_grad") is True
        with contextlib.ExitStack() as stack:
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            args, kwargs = self._exposed(func, args, kwargs)
            out = self._answer(func, args, kwargs)
            if func in _READS or not isinstance(out, Tensor) or any(out is value for value in args):
                return out
            if self.front is not None and out.shape == self.front.shape:
                out = follow(out, self.front, self.inside)
            if off:
                out = self._off(out)
            if self.rows and out.ndim == 2 and len(out) == self.rows and out.requires_grad:
                self.seen.append(out)
        return out

    def _answer(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        name = func.__name__
        if not args:
            return func(**kwargs)
        if name in ("grad", "backward"):
            return self._differentiate(func, args, kwargs)
        if func == _DATA:
            return args[0].view_as(args[0])
        if name in _LEAVES:
            return self._leave(func, args, kwargs)
        if name == "requires_grad_" or func == _SETS_GRAD:
            return self._seek(func, args, kwargs)
        if name == "detach_":
            return args[0]
        if name == "register_hook":
            return func(args[0], self.only_inside(args[1]))
        if name == "__setitem__":
            return self._put(func, *args)
        if _changes(name):
            return self._in_place(func, name, args, kwargs)
        if name in _SINGULAR:
            args = tuple(self._guarded(value) for value in args)
        out = func(*args, **kwargs)
        if name in _ARRIVES and isinstance(out, Tensor) and not out.requires_grad and out.ndim:
            return traced(out, self.left, self.inside)
        name = name[2:-2] if name.startswith("__") else name
        return self._finished(func, name, args, kwargs, out)

    def _guarded(self, value: Any) -> Any:
        """Keep what is not a number, in a derivative at a singular point, from all before it."""
        if isinstance(value, Tensor) and value.requires_grad and full(value):
            return Guard.apply(value, self.inside)
        return value

    def _leave(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Hand values to what is outside of torch, and remember whose they were."""
        held = shadow(args[0])
        if (source := args[0] if held is None else held).requires_grad:
            self.left.append(source)
        return func(args[0].detach(), *args[1:], **kwargs)

    def _finished(
        self, func: Callable[..., Any], name: str, args: Any, kwargs: Any, out: Any
    ) -> Any:
        """Give the true result of an operation its stand-in."""
        call = Call(args, kwargs, self.manner, self.inside)
        if name in selection.SELECTS:
            try:
                return selection.select(name, call, out)
            except _FAILURES:
                return out
        if not isinstance(out, Tensor):
            return self._many(func, name, args, kwargs, out)
        soft = self._stand_in(func, name, call, out)
        if name in selection.RESHAPES and choice(args[0]) is not None:
            selection.carried(args[0], out)
        return boolean.settled(call, out, soft)

    def _stand_in(
        self, func: Callable[..., Any], name: str, call: Call, out: Tensor
    ) -> Tensor | None:
        try:
            if (
                name in selection.LOOKS
                and (found := selection.looked_up(name, call, out)) is not None
            ):
                return found
            touched = shadowed(call.args) or shadowed(call.kwargs)
            rule = RULES.get(name)
            plain = name in ("div", "divide") and call.kwargs.get("rounding_mode") is None
            if rule is not None and not plain and (touched or name not in _WITH_SHADOWS):
                found = rule(call, out)
                if found is not None or not touched:
                    return found
            if touched and not any(word in name for word in _RANDOM):
                soft = func(*call.soft, **floats(call.kwargs))
                return soft if isinstance(soft, Tensor) else None
        except _FAILURES:  # no stand-in for this use: the result stays as it is
            return None
        return None

    def _many(self, func: Callable[..., Any], name: str, args: Any, kwargs: Any, out: Any) -> Any:
        """Give several results of a call with shadows theirs."""
        if not isinstance(out, (tuple, list)) or not (shadowed(args) or shadowed(kwargs)):
            return out
        try:
            softs = func(*floats(args), **floats(kwargs))
        except _FAILURES:
            return out
        pairs = [
            finish(hard, soft, self.inside) if isinstance(hard, Tensor) else hard
            for hard, soft in zip(out, softs, strict=True)
        ]
        return type(out)(pairs)

    def _in_place(self, func: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
        """Change a tensor in place, with the stand-in of the operation that does not."""
        old, base = args[0], getattr(torch.Tensor, name[:-1], None)
        bound = isinstance(old, Tensor) and old.is_leaf and old.requires_grad
        if bound or not isinstance(old, Tensor):
            with torch.no_grad():
                return func(*args, **kwargs)
        touched = shadowed(args) or shadowed(kwargs) or choice(_at(args, 2)) is not None
        if name == "copy_" and (touched or not full(old)):
            soft = floats(args[1])
            func(*args, **kwargs)
            if soft.requires_grad:
                self._replace(old, soft.expand_as(old))
            return old
        if base is None or not (touched or name[:-1] in RULES):
            return func(*args, **kwargs)
        before = old.clone()  # stand-ins may keep it for the way back
        if (held := shadow(old)) is not None:
            attach(before, held)
        hard, call = base(before, *args[1:], **kwargs), (before, *args[1:])
        soft = self._stand_in(base, name[:-1], Call(call, kwargs, self.manner, self.inside), hard)
        if soft is None:
            return func(*args, **kwargs)
        with torch.no_grad():
            func(old.detach(), *args[1:], **kwargs)
        self._replace(old, soft)
        return old

    def _replace(self, old: Tensor, soft: Tensor) -> None:
        """Let `old`, whose value is right already, have the gradient of `soft` from now on."""
        if full(old):
            old.copy_(StraightThrough.apply(old.detach(), soft, self.inside))
        else:
            attach(old, soft if full(soft) else soft.float())

    def _put(self, func: Callable[..., Any], old: Tensor, index: Any, value: Any) -> None:
        """Assign to a part of a tensor."""
        mask = shadow(index)
        scalar = not isinstance(value, Tensor) or value.ndim == 0
        if mask is not None and index.dtype == torch.bool and scalar and full(old):
            wide = index.view(*index.shape, *[1] * (old.ndim - index.ndim))
            jump = (value - old.detach()) * (mask - mask.detach()).view_as(wide)
            soft = torch.where(wide, value, old) + jump
            with torch.no_grad():
                func(old.detach(), index, value)
            return self._replace(old, soft)
        soft = floats(value)
        if not full(old) and isinstance(soft, Tensor) and soft.requires_grad:
            canvas = (old.float() if (held := shadow(old)) is None else held).clone()
            canvas[index] = soft.to(canvas.dtype)
            func(old, index, value)
            return attach(old, canvas)
        if full(old) and isinstance(value, Tensor) and shadow(value) is not None:
            value = finish(value.to(old.dtype), soft, self.inside)
        func(old, index, value)
        return None

    def _seek(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Take note that the model asks for gradients of a tensor."""
        self.inside.wanted = True
        tensor, wanted = args[0], _at(args, 1)
        wanted = kwargs.get("requires_grad", True) if wanted is None else wanted
        if tensor.is_leaf:
            return func(*args, **kwargs)
        if wanted:
            tensor.retain_grad()
            self.sought.append(tensor)
        return tensor

    def _differentiate(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run autograd inside the forward pass, with true gradients, leaving the graph usable."""
        if func is torch.Tensor.backward and self.sought and not kwargs.get("inputs"):
            kwargs = {**kwargs, "inputs": self.sought}
        places = {"grad": 3, "backward": 2}
        if len(args) <= places[func.__name__]:
            kwargs = {**kwargs, "retain_graph": True}
        before, self.inside.active = self.inside.active, True
        try:
            return func(*args, **kwargs)
        finally:
            self.inside.active = before

    def only_inside(self, hook: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        """Let a hook that changes gradients act in the model's own autograd alone."""
        return lambda gradient: hook(gradient) if self.inside.active else None

    def _exposed(self, func: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, Any]:
        """See through custom autograd functions, in the arguments of a call."""
        fresh = exposed(tuple(args), self.inside)
        if _changes(func.__name__) and args and fresh[0] is not args[0]:
            args[0].copy_(fresh[0])  # the tensor itself is wanted: it gets the other past
            fresh = (args[0], *fresh[1:])
        return fresh, {name: exposed(value, self.inside) for name, value in kwargs.items()}

    def _off(self, out: Tensor) -> Tensor:
        """What came about under `no_grad` is a constant to the model's own autograd."""
        if not out.requires_grad or not full(out) or out.is_leaf:
            return out
        if out._is_view():
            return keep(out)
        return keep(StraightThrough.apply(out.detach(), out, self.inside), out)


def _changes(name: str) -> bool:
    """Tell whether a function of this name changes its first argument."""
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def _at(args: Any, place: int) -> Any:
    return args[place] if len(args) > place else None
