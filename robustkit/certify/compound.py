"""Nodes that stand for several operations on several values: products, attention, normalization."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from robustkit.certify.affine import AverageOp, LinearOp, ScaleOp
from robustkit.certify.functional import given
from robustkit.certify.nonlinear import LogSoftmax, MatMul, Product, Softmax
from robustkit.certify.standardize import Standardize

if TYPE_CHECKING:
    from robustkit.certify.operations import Call, Op

Shape = tuple[int, ...]


class Step(NamedTuple):
    """An operation of a node; `inputs` count the sources first, then the steps before it."""

    op: Op
    inputs: tuple[int, ...]


class Plan:
    """Steps in order, and the shapes of what they return."""

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self.shapes, self.steps = list(shapes), list[Step]()

    def add(self, op: Op, shape: Shape, *inputs: int) -> int:
        """Append an operation; return its number."""
        self.steps.append(Step(op, inputs))
        self.shapes.append(shape)
        return len(self.shapes) - 1

    def expand(self, at: int, result: Shape) -> int:
        """Broadcast a value, if it has another shape than `result`."""
        shape = self.shapes[at]
        if shape == result:
            return at
        repeats = math.prod(result) // math.prod(shape)
        view = (*[1] * (len(result) - len(shape)), *shape)

        def spread(x: Tensor) -> Tensor:
            return x.reshape(len(x), *view).expand(len(x), *result)

        return self.add(AverageOp(spread, shape, terms=repeats), result, at)

    def move(self, at: int, function: Any) -> int:
        """Append a reshape or transpose."""
        shape = self.shapes[at]
        result = tuple(function(torch.empty(1, *shape, device="meta")).shape[1:])
        return self.add(AverageOp(function, shape), result, at)

    def linear(self, at: int, layer: Any) -> int:
        """Append a linear layer over the last axis."""
        return self.add(LinearOp(layer), (*self.shapes[at][:-1], layer.out_features), at)

    def scale(self, at: int, read: Callable[[], tuple[Tensor, Tensor]]) -> int:
        """Append w · x + b, broadcast."""
        return self.add(ScaleOp(read), self.shapes[at], at)

    def attend(self, query: int, key: int, value: int, scale: float | None) -> int:
        """Append softmax(scale · q kᵀ) v over the last two axes of each."""
        width = self.shapes[query][-1]
        factor = torch.tensor(width**-0.5 if scale is None else scale, dtype=torch.float64)
        pair = factor, torch.zeros_like(factor)
        turned = self.move(key, lambda x: x.mT)
        shape = (*self.shapes[query][:-1], self.shapes[turned][-1])
        scores = self.scale(self.add(MatMul(), shape, query, turned), lambda: pair)
        weights = self.add(Softmax(len(shape)), shape, scores)
        out = (*shape[:-1], self.shapes[value][-1])
        return self.add(MatMul(mixes=True), out, weights, value)


def compound(name: str, call: Call) -> list[Step] | None:
    """Return the steps of a node; None where no bounds are known for it."""
    if name in ("matmul", "bmm") and len(call.sources) == 2:
        return _matmul(call)
    if name in ("square", "pow") and len(call.sources) == 1 and call.first:
        exponent = 2 if name == "square" else [*call.args[1:], *call.kwargs.values()][0]
        return [Step(Product(square=True), (0, 0))] if exponent == 2 else None
    if name == "scaled_dot_product_attention" and len(call.sources) == 3:
        return _attention(call)
    if isinstance(call.module, nn.MultiheadAttention) and len(call.sources) == 3:
        return _multihead(call.module, call)
    if len(call.sources) != 1 or not call.first:
        return None
    if name in ("softmax", "log_softmax", "logsoftmax"):
        return _softmax(name, call)
    if name in ("layernorm", "layer_norm", "groupnorm", "group_norm", "instancenorm2d"):
        return _normalization(name, call)
    return None


def _matmul(call: Call) -> list[Step] | None:
    one, two = call.sources
    # Batch axes apart from the first must agree: no broadcasting, no vectors.
    if len(one) < 2 or len(one) != len(two) or one[:-2] != two[:-2] or call.kwargs:
        return None
    return [Step(MatMul(), (0, 1))]


def _attention(call: Call) -> list[Step] | None:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    options = given(names, call.args, call.kwargs)
    masked = options.get("attn_mask") is not None or options.get("is_causal")
    if masked or options.get("enable_gqa") or options.get("dropout_p"):
        return None
    if any(len(s) != len(call.sources[0]) or len(s) < 2 for s in call.sources):
        return None
    plan = Plan(call.sources)
    plan.attend(0, 1, 2, options.get("scale"))
    return plan.steps if plan.shapes[-1] == call.result else None


def _multihead(layer: nn.MultiheadAttention, call: Call) -> list[Step] | None:
    names = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")
    options = given(names, call.args, call.kwargs)
    masked = any(options.get(n) is not None for n in ("key_padding_mask", "attn_mask"))
    extra = layer.bias_k is not None or layer.add_zero_attn or options.get("is_causal")
    if masked or extra or not layer.batch_first or any(len(s) != 2 for s in call.sources):
        return None
    heads, plan = layer.num_heads, Plan(call.sources)

    def by_head(x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)

    q, k, v = (plan.move(plan.linear(at, _Projection(layer, at)), by_head) for at in range(3))
    joined = plan.move(plan.attend(q, k, v, None), lambda x: x.transpose(1, 2).flatten(2))
    plan.linear(joined, layer.out_proj)
    return plan.steps


class _Projection:
    """The linear layer of queries, keys or values; it reads its weights when it is asked."""

    def __init__(self, layer: nn.MultiheadAttention, part: int) -> None:
        self.layer, self.part = layer, part
        self.out_features = layer.embed_dim
        self.in_features = (layer.embed_dim, layer.kdim, layer.vdim)[part]

    @property
    def weight(self) -> Tensor:
        """Return its third of what is stored together, or what is stored apart."""
        whole: Tensor | None = self.layer._parameters["in_proj_weight"]
        if whole is not None:
            return whole.chunk(3)[self.part]
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        apart: Tensor = getattr(self.layer, names[self.part])
        return apart

    @property
    def bias(self) -> Tensor | None:
        """Return its third of the bias."""
        whole: Tensor | None = self.layer.in_proj_bias
        return None if whole is None else whole.chunk(3)[self.part]


def _softmax(name: str, call: Call) -> list[Step] | None:
    options = given(("input", "dim"), call.args[:2], call.kwargs)
    dim, rank = options.get("dim"), len(call.sources[0]) + 1
    dim = getattr(call.module, "dim", None) if call.module is not None else dim
    if dim is None and rank == 2:
        dim = 1  # what torch takes, with a warning
    if options.get("dtype") is not None or not isinstance(dim, int) or dim % rank == 0:
        return None
    if name == "softmax":
        return [Step(Softmax(dim % rank), (0,))]
    return [Step(LogSoftmax(dim % rank), (0,))]


def _normalization(name: str, call: Call) -> list[Step] | None:
    """Standardize groups of values, and scale what comes out."""
    shape, module = call.sources[0], call.module
    if module is not None:
        options = {key: getattr(module, key, None) for key in ("weight", "bias", "eps")}
        options |= {"num_groups": getattr(module, "num_groups", None)}
        options |= {"normalized_shape": getattr(module, "normalized_shape", None)}
        if getattr(module, "running_mean", None) is not None:
            return None
    else:
        second = "normalized_shape" if name == "layer_norm" else "num_groups"
        options = given(("input", second, "weight", "bias", "eps"), call.args, call.kwargs)
    weight, bias = options.get("weight"), options.get("bias")
    groups: int
    if name in ("layernorm", "layer_norm"):
        axes: Any = options["normalized_shape"]
        groups = math.prod(shape[: len(shape) - (1 if isinstance(axes, int) else len(axes))])
    else:
        groups = int(options.get("num_groups") or shape[0])
    trailing = [] if name in ("layernorm", "layer_norm") else [1] * (len(shape) - 1)
    plan = Plan([shape])
    grouped = plan.move(0, lambda x: x.reshape(len(x), groups, -1))
    eps = options.get("eps")
    standard = plan.add(Standardize(1e-5 if eps is None else eps), plan.shapes[grouped], grouped)
    back = plan.move(standard, lambda x: x.reshape(len(x), *shape))
    known = weight if weight is not None else bias
    if known is None:
        return plan.steps

    def read() -> tuple[Tensor, Tensor]:
        w = torch.ones_like(known) if weight is None else weight
        b = torch.zeros_like(known) if bias is None else bias
        return w.view(*w.shape, *trailing), b.view(*b.shape, *trailing)

    plan.scale(back, read)
    return plan.steps
