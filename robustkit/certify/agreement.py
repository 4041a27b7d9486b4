"""Whether the operations that were read compute what the network computes, in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from robustkit.errors import UsageError

if TYPE_CHECKING:
    from robustkit.certify.graph import Graph

WIDE = (torch.float32, torch.float64)


def compare(model: nn.Module, graph: Graph, shape: tuple[int, ...]) -> None:
    """Refuse a graph that does not compute what the network computes.

    Operations in place, views and dependence on the batch do not show in single nodes. Noise drawn
    in the forward pass is traced as a constant: two passes must agree.
    """
    first = next(iter(model.parameters()), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, *shape, generator=generator)
    # Far outside [0, 1] too: a clamp or a branch that is inactive on images must show.
    x = torch.cat([x, 4 * x.flip(0) - 2]).to(first)
    try:
        answer, read = model(x.clone()), graph.values(x)[-1]
        again = model(x.clone())
        # An offset that all logits share says nothing of how far the margins may be apart.
        spread = 1 + float((answer - answer.mean(1, keepdim=True)).abs().max())
        near = (1e-4 if answer.dtype is torch.float32 else 1e-6) * spread
        alike = torch.allclose(read, answer, rtol=0, atol=near + 1024 * _unit(answer))
    except (RuntimeError, TypeError, ValueError, IndexError):
        alike, answer, again = False, x, x
    if not torch.allclose(again, answer, rtol=0, atol=64 * _unit(answer)):
        raise UsageError(
            f"no bounds for {type(model).__name__}: two passes over the same input differ. Bounds "
            "need a network without randomness and memory; attack it, or smooth it."
        )
    if not alike:
        raise UsageError(
            f"no bounds for {type(model).__name__}: evaluated operation by operation, it "
            "returns other logits than when it is called. Avoid operations in place on values that "
            "are used again, and dependence on other points of the batch."
        )


def _unit(answer: Tensor) -> float:
    """What one rounding of the largest number may lose."""
    return torch.finfo(answer.dtype).eps * (1 + float(answer.abs().max()))


class _Mode(TorchDispatchMode):
    """Sees every operation, and does not import the compiler of PyTorch for that.

    PyTorch wraps the method of a mode, so that torch.compile leaves it alone, and the first call
    imports the compiler: 2 s, in every process that looks whether a network can be certified. The
    modes below end with calls of operations; nothing is lost where one of them is compiled.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class KeepsDouble(_Mode):
    """Leaves float64 as it is where the network casts to float32, which it computes in.

    Bounds are computed with a copy in float64, in which `.float()` would be a change of precision.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        cast = func is torch.ops.aten._to_copy.default and kwargs.get("dtype") is torch.float32
        if cast and args[0].dtype is torch.float64:
            return args[0].clone()
        return func(*args, **kwargs)


class _Types(_Mode):
    """Notes the first operation that returns numbers of less precision than float32."""

    found = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and not self.found and _narrow(leaf):
                self.found = f"{func} returns {str(leaf.dtype).removeprefix('torch.')}"
        return result


def _narrow(value: Tensor) -> bool:
    numbers = value.dtype.is_floating_point or value.is_quantized
    return numbers and value.dtype not in WIDE


def refuse_less_precision(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Refuse a network that computes in less than float32: bounds would be of another function.

    Bounds are computed with a copy in float64, in which autocast and casts do not show.

    Raises:
        UsageError: naming the operation.
    """
    narrow = next((key for key, value in model.state_dict().items() if _is_narrow(value)), "")
    found = f"{narrow} is not float32" if narrow else _quantized(model)
    if not found:
        first = next(iter(model.parameters()), torch.zeros(()))
        with torch.no_grad(), _Types() as types:  # type: ignore[no-untyped-call]
            try:
                model(torch.full((1, *shape), 0.5, dtype=torch.float32, device=first.device))
            except (RuntimeError, TypeError, ValueError, IndexError):
                return  # what it cannot run is refused with its reason when it is traced
        found = types.found
    if found:
        raise UsageError(
            f"no bounds for {type(model).__name__}: expected a forward pass in float32, but "
            f"{found}. Remove autocast, casts and quantization, or smooth it."
        )


def _quantized(model: nn.Module) -> str:
    """Name the first module that quantizes; it may keep its weights where no state shows them."""
    for name, module in model.named_modules():
        if ".quantized." in type(module).__module__ or hasattr(module, "fake_quant_enabled"):
            return f"{name or 'it'} is a quantized {type(module).__name__}"
    return ""


def _is_narrow(value: Any) -> bool:
    return isinstance(value, Tensor) and _narrow(value)
