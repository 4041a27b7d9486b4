"""A traced network as plain data: what a proof is about, without any code of this package."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from robustkit.certify.activations import Activation
from robustkit.certify.affine import AverageOp, ConvOp, LinearOp, ScaleOp
from robustkit.certify.graph import Graph
from robustkit.certify.operations import Input, Join, Sum
from robustkit.errors import UsageError


def plain(graph: Graph) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Return the operations of a network in float64, and their numbers by node.

    Raises:
        UsageError: naming an operation that proofs do not know.
    """
    listed, tensors = list[dict[str, Any]](), dict[str, Tensor]()
    for at, node in enumerate(graph.nodes):
        shapes = [graph.nodes[i].shape for i in node.inputs]
        facts, numbers = _operation(node.op, shapes, node.shape)
        listed.append({**facts, "inputs": list(node.inputs), "shape": list(node.shape)})
        tensors |= {f"{at}.{key}": _small(part) for key, part in numbers.items()}
    if not graph.relu_inputs():
        raise _refused("a network without ReLUs")
    return listed, tensors


def _refused(name: str) -> UsageError:
    return UsageError(
        "--save-proofs: expected a network of linear layers, convolutions, scales, sums, "
        f"concatenations, average pooling, reshapes and ReLUs, got {name}. Leave --save-proofs out."
    )


def _operation(
    op: object, shapes: list[tuple[int, ...]], shape: tuple[int, ...]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if isinstance(op, Input):
        return {"op": "input"}, {}
    if isinstance(op, Activation) and op.name == "relu":
        return {"op": "relu"}, {}
    if isinstance(op, Sum):
        return {"op": "add", "sign": op.sign}, {}
    if isinstance(op, Join):
        return {"op": "concat", "axis": op.axis}, {}
    if isinstance(op, LinearOp):
        return {"op": "linear"}, {"weight": op.layer.weight, "bias": op.offset(_eye(shape))[0]}
    if isinstance(op, ConvOp):
        c = op.layer
        facts = {"stride": list(c.stride), "padding": [int(p) for p in c.padding],
                 "dilation": list(c.dilation), "groups": c.groups}  # fmt: skip
        bias = c.weight.new_zeros(len(c.weight)) if c.bias is None else c.bias
        return {"op": "conv", **facts}, {"weight": c.weight, "bias": bias}
    if isinstance(op, ScaleOp) and op.terms <= 8:
        parts = {"weight": op.read()[0], "bias": op.read()[1], "bulk": op.size()}
        return {"op": "scale"}, {
            key: part.double().expand(1, *shape)[0] if part.ndim > len(shape) else part.double()
            for key, part in parts.items()
        }
    if isinstance(op, AverageOp):
        return _averaging(op, shapes[0], shape)
    raise _refused(getattr(op, "name", type(op).__name__))


def _eye(shape: tuple[int, ...]) -> Tensor:
    return torch.eye(prod(shape), dtype=torch.float64)[None]


def _averaging(
    op: AverageOp, source: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read an average off its values at the units of one channel; a reshape keeps the order."""
    x = torch.rand(3, *source, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if not op.terms and torch.equal(op.forward(x).flatten(1), x.flatten(1)):
        return {"op": "reshape"}, {}
    if len(source) == 3 and shape[0] == source[0]:
        pixels = prod(source[1:])
        units = torch.eye(pixels, dtype=torch.float64).view(pixels, 1, *source[1:])
        weight = op.forward(units.expand(-1, source[0], -1, -1))[:, 0].flatten(1).t().contiguous()
        if torch.allclose((x.flatten(2) @ weight.t()).flatten(1), op.forward(x).flatten(1)):
            return {"op": "average"}, {"weight": weight}
    raise _refused(f"an average or a reordering of {list(source)} to {list(shape)}")


def _small(part: Tensor) -> Tensor:
    """Keep float32 where nothing is lost."""
    part = part.detach().cpu().contiguous()
    return part.float() if torch.equal(part.float().double(), part.double()) else part
