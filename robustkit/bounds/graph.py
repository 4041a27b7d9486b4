"""From a module to a list of operations that bounds can pass through, by torch.fx."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, fx, nn

from robustkit.bounds.activations import Activation
from robustkit.bounds.affine import Affine, AverageOp, ConvOp, LinearOp, ScaleOp
from robustkit.bounds.operations import (
    MaxPool,
    activation,
    batch_norm,
    clean_statistics,
    constant,
    max_pool,
    reshaping,
)
from robustkit.errors import UsageError
from robustkit.nets import Normalize

__all__ = ["Graph", "MaxPool", "clean_statistics", "trace"]


class Input(NamedTuple):
    """The input of the network."""


class Sum(NamedTuple):
    """a + sign · b."""

    sign: int


class Join(NamedTuple):
    """Concatenation along a feature axis, counted with the batch axis."""

    axis: int


Op: TypeAlias = "Input | Sum | Join | MaxPool | Activation | Affine"


class Node(NamedTuple):
    """One operation, the indices of its inputs, and the shape of what it returns for a point."""

    op: Op
    inputs: tuple[int, ...]
    shape: tuple[int, ...]


class Graph(NamedTuple):
    """Operations in order; node 0 is the input and the last one returns the logits."""

    nodes: list[Node]

    def relu_inputs(self) -> list[int]:
        """Return the nodes that feed a ReLU."""
        return [n.inputs[0] for n in self.nodes if getattr(n.op, "name", "") == "relu"]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Normalize) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module, shape: tuple[int, ...]) -> Graph:
    """Read a network for inputs of `shape` [c, h, w]; weights stay where they are.

    Raises:
        UsageError: naming the operation that no bounds are known for.
    """
    try:
        traced = _Tracer().trace(model)
    except Exception as error:  # control flow on values fails in many ways
        raise UsageError(
            f"no bounds for {type(model).__name__}: torch.fx cannot read it ({error}). Bounds need "
            "a network without branches on values; attack it, or smooth it."
        ) from error
    return _Reader(model, shape).read(traced)


class _Reader:
    """Lowers the nodes of torch.fx one by one, running an example along for the shapes."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        self.model, self.nodes = model, list[Node]()
        first = next(iter(model.parameters()), torch.zeros(()))
        self.example = torch.zeros(1, *shape, dtype=first.dtype, device=first.device)
        self.place: dict[fx.Node, int] = {}
        self.value: dict[fx.Node, Any] = {}

    def read(self, traced: fx.Graph) -> Graph:
        modes = {m: m.training for m in self.model.modules()}
        for module in modes:
            module.training = False
        try:
            with torch.no_grad():
                for node in traced.nodes:
                    if node.op == "output":
                        return self._finish(node)
                    self._lower(node)
        finally:
            for module, mode in modes.items():
                module.training = mode
        raise UsageError(f"no bounds for {type(self.model).__name__}: it returns nothing.")

    def _finish(self, node: fx.Node) -> Graph:
        result = node.args[0]
        if not isinstance(result, fx.Node) or self.place.get(result) != len(self.nodes) - 1:
            raise UsageError(
                f"no bounds for {type(self.model).__name__}: it must return the logits alone, made "
                "by its last operation."
            )
        return Graph(self.nodes)

    def _lower(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self._append(node, Input(), (), self.example)
            return
        if node.op == "get_attr":
            self.value[node] = operator.attrgetter(str(node.target))(self.model)
            return
        args, kwargs = self._values(node.args), self._values(node.kwargs)
        sources = [a for a in node.all_input_nodes if a in self.place]
        target: Any = node.target
        if node.op == "call_module":
            module = self.model.get_submodule(str(target))
            result = module(*args, **kwargs)
            name = type(module).__name__.lower()
        else:
            module = None
            name = str(target if node.op == "call_method" else target.__name__)
            result = (
                getattr(args[0], name)(*args[1:], **kwargs)
                if node.op == "call_method"
                else target(*args, **kwargs)
            )
        if not sources or not isinstance(result, Tensor):
            self.value[node] = result
            return
        op = self._operation(node, name.strip("_"), module, args, kwargs, sources)
        if op is None:
            kind = type(module).__name__ if module is not None else name
            raise UsageError(
                f"no bounds are known for the operation {kind} ({node.name}) of "
                f"{type(self.model).__name__}. Known: linear, convolution, batch normalization, "
                "pooling, reshapes, sums, concatenation, and the usual activations."
            )
        self._append(node, op, tuple(self.place[s] for s in self._order(node)), result)

    def _order(self, node: fx.Node) -> list[fx.Node]:
        flat = fx.node.map_aggregate(node.args, lambda a: a)
        listed: list[fx.Node] = []

        def visit(value: Any) -> None:
            if isinstance(value, fx.Node):
                if value in self.place:
                    listed.append(value)
            elif isinstance(value, (tuple, list)):
                for item in value:
                    visit(item)

        visit(flat)
        return listed

    def _append(self, node: fx.Node, op: Op, inputs: tuple[int, ...], value: Tensor) -> None:
        self.place[node] = len(self.nodes)
        self.value[node] = value
        self.nodes.append(Node(op, inputs, tuple(value.shape[1:])))

    def _values(self, tree: Any) -> Any:
        return fx.node.map_arg(tree, lambda n: self.value[n])

    def _operation(
        self,
        node: fx.Node,
        name: str,
        module: nn.Module | None,
        args: Any,
        kwargs: Any,
        sources: list[fx.Node],
    ) -> Op | None:
        shape = self.nodes[self.place[sources[0]]].shape
        if isinstance(module, nn.Linear):
            return LinearOp(module)
        if isinstance(module, nn.Conv2d):
            zeros = module.padding_mode == "zeros" and not isinstance(module.padding, str)
            return ConvOp(module, shape) if zeros else None
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            return batch_norm(module, len(shape)) if module.running_var is not None else None
        if isinstance(module, Normalize):
            return ScaleOp(lambda: (1 / module.std, -module.mean / module.std))
        if known := activation(name, module, kwargs):
            return known
        if name in ("identity", "dropout", "dropout2d", "contiguous"):
            return AverageOp(lambda x: x, shape)
        if name in ("add", "sub") and len(self._order(node)) == 2:
            return Sum(1 if name == "add" else -1)
        if name in ("cat", "concat"):
            axis = int(kwargs.get("dim", args[1] if len(args) > 1 else 0))
            rank = len(shape) + 1
            return Join(axis % rank) if axis % rank else None
        if name == "maxpool2d" or name == "max_pool2d":
            return max_pool(module, args, kwargs)
        if (linear := constant(name, node, args, self.place)) is not None:
            return linear
        return reshaping(name, module, args, kwargs, shape)
