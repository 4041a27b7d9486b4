"""From a module to a list of operations that bounds are known for, by torch.fx."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from robustkit.certify.activations import Activation
from robustkit.certify.affine import Statistics
from robustkit.certify.operations import (
    BATCH_STATISTICS,
    Call,
    Input,
    Join,
    MaxPool,
    Op,
    Sum,
    operation,
)
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
            got = [values[index] for index in inputs]
            if isinstance(op, Input):
                values.append(x)
            elif isinstance(op, Activation):
                values.append(op.function(got[0]))
            elif isinstance(op, Sum):
                values.append(got[0] + op.sign * got[1])
            elif isinstance(op, Join):
                values.append(torch.cat(got, op.axis))
            elif isinstance(op, MaxPool):
                values.append(F.max_pool2d(got[0], **op.options))
            else:
                values.append(op.forward(got[0]))
        return values


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
        with torch.no_grad():
            graph = _Reader(model, shape).read(traced)
            _compare(model, graph, shape)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return graph


def _compare(model: nn.Module, graph: Graph, shape: tuple[int, ...]) -> None:
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
        alike = torch.allclose(read, answer, rtol=1e-3, atol=1e-4 * (1 + float(answer.abs().max())))
    except (RuntimeError, TypeError, ValueError, IndexError):
        alike, answer, again = False, x, x
    fine = 64 * torch.finfo(answer.dtype).eps * (1 + float(answer.abs().max()))
    if not torch.allclose(again, answer, rtol=0, atol=fine):
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


class _Reader:
    """Lowers the nodes of torch.fx one by one, evaluating them on an example for the shapes."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        self.model, self.nodes = model, list[Node]()
        first = next(iter(model.parameters()), torch.zeros(()))
        # In the dtype of the weights: certificates trace a float64 copy.
        self.example = torch.zeros(1, *shape, dtype=first.dtype, device=first.device)
        self.place: dict[fx.Node, int] = {}
        self.value: dict[fx.Node, Any] = {}

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
            self._append(node, Input(), (), self.example)
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
        query = args[1] if name == "getattr" else name
        if not sources or query in _QUERIES:
            self.value[node] = result
            return
        op = None
        # What has lost the batch axis mixes points, or reads values: no bounds.
        if isinstance(result, Tensor) and len(result) == 1:
            shapes = [self.nodes[self.place[s]].shape for s in sources]
            first = bool(node.args) and node.args[0] is sources[0]
            call = Call(name, module, args, kwargs, shapes, first, tuple(result.shape[1:]))
            op = operation(call)
        if op is None:
            raise self._refusal(
                f"none are known for the operation {name} ({node.name}) as it is used. Known: "
                "linear, convolution, batch normalization, pooling, reshapes, sums, concatenation, "
                "constants, and the usual activations. Attack it, or smooth it"
            )
        self._append(node, op, tuple(self.place[s] for s in sources), result)

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
            return [tree] if tree in self.place else []
        if isinstance(tree, dict):
            tree = list(tree.values())
        if isinstance(tree, (tuple, list)):
            return [found for item in tree for found in self._sources(item)]
        return []

    def _append(self, node: fx.Node, op: Op, inputs: tuple[int, ...], value: Tensor) -> None:
        self.place[node] = len(self.nodes)
        self.value[node] = value
        self.nodes.append(Node(op, inputs, tuple(value.shape[1:])))

    def _values(self, tree: Any) -> Any:
        return fx.node.map_arg(tree, lambda n: self.value[n])


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
