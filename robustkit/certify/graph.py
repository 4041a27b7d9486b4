"""From a module to a list of operations that bounds are known for, by torch.fx."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from robustkit.certify.activations import Activation
from robustkit.certify.affine import Statistics
from robustkit.certify.agreement import WIDE, KeepsDouble, compare
from robustkit.certify.compound import Step
from robustkit.certify.functional import BATCH_STATISTICS
from robustkit.certify.nonlinear import Nonlinear
from robustkit.certify.operations import (
    Call,
    Input,
    Join,
    MaxPool,
    Op,
    Sum,
    nearest,
    operations,
    plain_name,
)
from robustkit.certify.shapes import part_of, returns_parts
from robustkit.errors import UsageError
from robustkit.models.tracer import listed

_QUERIES = ("size", "dim", "shape", "ndim", "dtype", "device")


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

    def values(self, x: Tensor) -> list[Tensor]:
        """Run the operations on x [b, *f]: one tensor [b, *shape] per node."""
        values: list[Tensor] = []
        for op, inputs, _ in self.nodes:
            values.append(_value(op, [values[index] for index in inputs] or [x]))
        return values


def _value(op: Op, got: list[Tensor]) -> Tensor:
    if isinstance(op, Input):
        return got[0]
    if isinstance(op, (Activation, Nonlinear)):
        value: Tensor = op.function(*got)
        return value
    if isinstance(op, Sum):
        return got[0] + op.sign * got[1]
    if isinstance(op, Join):
        return torch.cat(got, op.axis)
    if isinstance(op, MaxPool):
        pooled: Tensor = F.max_pool2d(got[0], **op.options)
        return pooled
    return op.forward(got[0])


def trace(model: nn.Module, shape: tuple[int, ...]) -> Graph:
    """Trace a network for inputs of `shape` [c, h, w]; the graph uses the module's own weights.

    The network is traced in evaluation mode, and its modes are restored. Constants that it computes
    from its parameters are evaluated once, here.

    Raises:
        UsageError: naming the operation that no bounds are known for.
    """
    # Not model.eval(): restoring train(True) would put frozen submodules into training mode too.
    modes = {m: m.training for m in model.modules() if hasattr(m, "training")}  # frozen: none
    for module in modes:
        module.training = False
    try:
        try:
            traced = listed(model)
        except Exception as error:  # control flow on values fails in many ways
            raise UsageError(
                f"no bounds for {type(model).__name__}: torch.fx cannot read it ({error}). Bounds "
                "need a network without branches on values; attack it, or smooth it."
            ) from error
        with torch.no_grad(), KeepsDouble():  # type: ignore[no-untyped-call]
            graph = _Reader(model, shape).read(traced)
            compare(model, graph, shape)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return graph


class _Reader:
    """Lowers the nodes of torch.fx one by one, evaluating them on an example for the shapes."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        self.model, self.nodes = model, list[Node]()
        first = next(iter(model.parameters()), torch.zeros(()))
        # In the dtype of the weights: certificates trace a float64 copy.
        self.example = torch.zeros(1, *shape, dtype=first.dtype, device=first.device)
        self.place: dict[fx.Node, int] = {}
        self.value: dict[fx.Node, Any] = {}
        self.parts: dict[fx.Node, tuple[fx.Node, Callable[[Tensor], Any]]] = {}

    def read(self, traced: fx.Graph) -> Graph:
        for node in traced.nodes:
            if node.op == "output":
                return self._finish(node)
            self._lower(node)
        raise self._refusal("it returns nothing")

    def _refusal(self, reason: str) -> UsageError:
        return UsageError(f"no bounds for {type(self.model).__name__}: {reason}.")

    def _finish(self, node: fx.Node) -> Graph:
        result = node.args[0]
        if not isinstance(result, fx.Node) or self.place.get(result) != len(self.nodes) - 1:
            raise self._refusal("it must return the logits alone, made by its last operation")
        if len(self.nodes[-1].shape) != 1:
            raise self._refusal(f"expected logits [b, k], got [b, *{self.nodes[-1].shape}]")
        return Graph(self.nodes)

    def _lower(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            if self.nodes:
                raise self._refusal("its forward takes more than the images; wrap it")
            self.place[node], self.value[node] = 0, self.example
            self.nodes.append(Node(Input(), (), tuple(self.example.shape[1:])))
            return
        if node.op == "get_attr":
            self.value[node] = operator.attrgetter(str(node.target))(self.model)
            return
        args, kwargs = self._values(node.args), self._values(node.kwargs)
        name, module = self._name(node)
        try:
            result = self._run(node, module, args, kwargs)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise self._refusal(
                f"{node.name} fails on {list(self.example.shape)}: {error}"
            ) from None
        # Shapes and dtypes are the same for every input of this shape: constants to the bounds.
        sources = self._sources([*node.args, *node.kwargs.values()])
        if plain_name(name) in ("to", "type_as"):
            sources = sources[:1]  # another value gives its type alone
        query = args[1] if name == "getattr" else name
        if not sources or query in _QUERIES:
            self.value[node] = result
            return
        if returns_parts(plain_name(name)) and isinstance(result, (tuple, list)):
            # Which of them are used shows later, where they are taken apart.
            self.value[node] = result
            self.parts[node] = (sources[0], partial(self._run_on, node, module, args, kwargs))
            return
        whole = node.args[0] if node.args else None
        if isinstance(whole, fx.Node) and name == "getitem":
            if whole in self.parts:
                self._take_part(node, whole, args[1], result)
                return
            if isinstance(self.value[whole], tuple):
                self._take_first(node, whole, args[1], result)
                return
        outcome = result
        if isinstance(module, nn.MultiheadAttention):
            result = result[0]  # the weights may not be used: see `_take_first`
        steps = None
        # What has lost the batch axis mixes points, or reads values: no bounds.
        if isinstance(result, Tensor) and result.ndim and len(result) == 1:
            shapes = [self.nodes[self.place[s]].shape for s in sources]
            first, same = whole is sources[0], len(set(sources)) == 1
            items = whole if isinstance(whole, (tuple, list)) else ()
            varying = tuple(i for i, item in enumerate(items) if item in self.place)
            shape = tuple(result.shape[1:])
            call = Call(name, module, args, kwargs, shapes, first, shape, same, varying)
            steps = operations(call)
        if steps is None:
            raise self._unknown(node, name)
        if isinstance(outcome, Tensor) and outcome.dtype not in WIDE:  # whole numbers are rounded
            raise self._refusal(f"{node.name} returns {outcome.dtype}; expected float32 throughout")
        self._append_all(node, steps, sources, outcome)

    def _take_part(self, node: fx.Node, whole: fx.Node, index: Any, result: Any) -> None:
        source, call = self.parts[whole]
        if not isinstance(index, int) or not isinstance(result, Tensor) or len(result) != 1:
            raise self._unknown(node, "getitem")
        op = part_of(call, index, self.nodes[self.place[source]].shape)
        self._append_all(node, [Step(op, (0,))], [source], result)

    def _take_first(self, node: fx.Node, whole: fx.Node, index: Any, result: Any) -> None:
        """Take apart what attention returns: the values, and weights that nothing may use."""
        if index == 0:
            self.place[node], self.value[node] = self.place[whole], result
        elif node.users:
            raise self._unknown(node, "attention weights")

    def _run_on(self, node: fx.Node, module: Any, args: Any, kwargs: Any, x: Tensor) -> Any:
        return self._run(node, module, (x, *args[1:]), kwargs)

    def _append_all(
        self, node: fx.Node, steps: list[Step], sources: list[fx.Node], result: Any
    ) -> None:
        """Append the steps of a node, the last one of which returns its value."""
        at = [self.place[source] for source in sources]
        values: list[Tensor] = [self.value[source] for source in sources]
        for step in steps:
            values.append(_value(step.op, [values[index] for index in step.inputs]))
            inputs = tuple(at[index] for index in step.inputs)
            at.append(len(self.nodes))
            self.nodes.append(Node(step.op, inputs, tuple(values[-1].shape[1:])))
        self.place[node], self.value[node] = at[-1], result

    def _unknown(self, node: fx.Node, name: str) -> UsageError:
        where = f" in {found}" if (found := _module_path(node)) else ""
        return self._refusal(
            f"none are known for the operation {name} ({node.name}{where}) as it is used. "
            f"{nearest(plain_name(name))} Attack it, or smooth it"
        )

    def _name(self, node: fx.Node) -> tuple[str, nn.Module | None]:
        if node.op == "call_module":
            module = self.model.get_submodule(str(node.target))
            return type(module).__name__, module
        target: Any = node.target
        return str(target if node.op == "call_method" else target.__name__), None

    def _run(self, node: fx.Node, module: nn.Module | None, args: Any, kwargs: Any) -> Any:
        if module is not None:
            return module(*args, **kwargs)
        target: Any = node.target
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)

    def _sources(self, tree: Any) -> list[fx.Node]:
        """List the arguments that depend on the input, in order and with repetition."""
        if isinstance(tree, fx.Node):
            if tree in self.parts:
                return [self.parts[tree][0]]
            return [tree] if tree in self.place else []
        if isinstance(tree, dict):
            tree = list(tree.values())
        if isinstance(tree, (tuple, list)):
            return [found for item in tree for found in self._sources(item)]
        return []

    def _values(self, tree: Any) -> Any:
        return fx.node.map_arg(tree, lambda n: self.value[n])


def _module_path(node: fx.Node) -> str:
    """Return the module that a node is computed in, as in `named_modules`."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


@contextmanager
def clean_statistics(model: nn.Module) -> Iterator[None]:
    """Bound a network in training with the statistics of the latest forward pass, with gradient.

    Inside, every pass of `model` in training mode records the batch mean and (biased) variance of
    its batch normalization layers, and bounds use those instead of the running statistics (the
    convention of CTBench).
    """
    found: Statistics = {}

    def record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if layer.training:
            x = inputs[0]
            # Biased, as batch normalization itself computes it in training.
            axes = [axis for axis in range(x.ndim) if axis != 1]
            found[layer] = (x.mean(axes), x.var(axes, unbiased=False))

    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    layers = [m for m in model.modules() if isinstance(m, kinds)]
    hooks = [layer.register_forward_pre_hook(record) for layer in layers]
    BATCH_STATISTICS.append(found)
    try:
        yield
    finally:
        BATCH_STATISTICS.pop()
        for hook in hooks:
            hook.remove()
