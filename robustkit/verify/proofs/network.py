"""The network of a proof, read as plain data: W x, |W| x and a W of every operation, in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

AFFINE = ("linear", "conv", "scale", "average", "reshape")
KINDS = ("input", "relu", "add", "concat", *AFFINE)


class Node(NamedTuple):
    """One operation: its kind, the indices of its inputs, the shape that it returns, its numbers.

    linear: W x + b. conv: likewise, with zero padding. scale: w · x + b, broadcast; `bulk` ≥ |b| is
    the size of b before anything cancels in it. average: x [c, h, w] times a matrix [out, h · w] in
    every channel. add: x + sign · y. concat: along `axis`, counted with the batch axis.
    """

    op: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    options: dict[str, Any]
    weight: Tensor
    bias: Tensor
    bulk: Tensor

    def terms(self, some: int) -> int:
        """Summands behind one output, where `some` inputs are not zero: adding 0 rounds nothing."""
        most: int = min(some, torch.atleast_1d(self.weight)[0].numel())
        return {"scale": 8, "reshape": 0}.get(self.op, most + 1)

    def push(self, x: Tensor, weight: Tensor) -> Tensor:
        """W x for x [b, *in], with these weights."""
        if self.op == "linear":
            return F.linear(x, weight)
        if self.op == "conv":
            return F.conv2d(x, weight, None, **self.options)
        if self.op == "scale":
            return x * weight
        return (x.flatten(2) @ weight.T if self.op == "average" else x).reshape(-1, *self.shape)

    def pull(self, a: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A W for a [b, *out], over inputs of `shape`."""
        if self.op == "linear":
            return a @ self.weight
        if self.op == "scale":
            return a * self.weight
        if self.op == "conv":
            return conv2d_input((len(a), *shape), self.weight, a, **self.options)  # type: ignore[no-any-return]
        return (a.flatten(2) @ self.weight if self.op == "average" else a).reshape(-1, *shape)


class Network(NamedTuple):
    """Nodes in order: the first is the input, the last returns the logits.

    `spans`: by node that feeds a ReLU, its place among the inputs of all ReLUs, in order.
    """

    nodes: list[Node]
    spans: dict[int, slice]
    width: int


def build(listed: list[dict[str, Any]], tensors: dict[str, Tensor]) -> Network:
    """Make a network of plain data; a ValueError says what does not fit."""
    nodes, spans, width = list[Node](), dict[int, slice](), 0
    for at, given in enumerate(listed):
        op, inputs, shape = given["op"], tuple(given["inputs"]), tuple(given["shape"])
        options = {key: v for key, v in given.items() if key not in ("op", "inputs", "shape")}
        weight, bias, bulk = (tensors.get(f"{at}.{key}", torch.zeros(())).double()
                              for key in ("weight", "bias", "bulk"))  # fmt: skip
        if op == "scale":
            weight, bias, bulk = (part.expand(shape) for part in (weight, bias, bulk))
        bias = bias.reshape(-1, 1, 1) if op == "conv" else bias
        counts = {"input": 0, "add": 2, "concat": len(inputs)}
        fits = op in KINDS and (op == "input") == (at == 0) and len(inputs) == counts.get(op, 1)
        fits = fits and all(0 <= i < at for i in inputs) and options.get("sign", 1) in (1, -1)
        fits = fits and all(bool(part.isfinite().all()) for part in (weight, bias, bulk))
        fits = fits and (op not in ("add", "relu") or {nodes[i].shape for i in inputs} == {shape})
        if not fits:
            raise ValueError(f"node {at} ({op}) of the network cannot be read")
        nodes.append(
            Node(op, inputs, shape, options, weight, bias, torch.maximum(bulk, bias.abs()))
        )
    for at in sorted({node.inputs[0] for node in nodes if node.op == "relu"}):
        size = torch.Size(nodes[at].shape).numel()
        spans[at], width = slice(width, width + size), width + size
    return Network(nodes, spans, width)
