"""The network of a proof, read as plain data: W x, |W| x and a W of every operation, in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

SCHEMA = "robustkit/proof-network/1"
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

    @property
    def terms(self) -> int:
        """Summands behind one output, for the rounding error of float32."""
        if self.op in ("scale", "reshape"):
            return {"scale": 8, "reshape": 0}[self.op]
        return self.weight[0].numel() + 1

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
        if self.op != "conv":
            flat = a.flatten(2) @ self.weight if self.op == "average" else a
            return flat.reshape(-1, *shape)
        o, kernel = self.options, self.weight.shape[2:]
        rest = [
            size - ((out - 1) * stride - 2 * pad + dilation * (k - 1) + 1)
            for size, out, stride, pad, dilation, k in zip(
                shape[1:], a.shape[2:], o["stride"], o["padding"], o["dilation"], kernel,
                strict=True,
            )
        ]  # fmt: skip
        return F.conv_transpose2d(
            a, self.weight, None, o["stride"], o["padding"], rest, o["groups"], o["dilation"]
        )


class Network(NamedTuple):
    """Nodes in order: the first is the input, the last returns the logits.

    `spans`: by node that feeds a ReLU, its place among the inputs of all ReLUs, in order.
    """

    nodes: list[Node]
    spans: dict[int, slice]
    width: int

    def values(self, x: Tensor) -> list[Tensor]:
        """Evaluate every node at x [b, *f]."""
        values = [x]
        for node in self.nodes[1:]:
            got = [values[i] for i in node.inputs]
            if node.op in AFFINE:
                values.append(node.push(got[0], node.weight) + node.bias)
            elif node.op == "relu":
                values.append(got[0].relu())
            elif node.op == "add":
                values.append(got[0] + node.options["sign"] * got[1])
            else:
                values.append(torch.cat(got, node.options["axis"]))
        return values


def build(listed: list[dict[str, Any]], tensors: dict[str, Tensor]) -> Network:
    """Make a network of plain data; a ValueError says what does not fit."""
    nodes, feeds = list[Node](), set[int]()
    for at, given in enumerate(listed):
        options = {key: v for key, v in given.items() if key not in ("op", "inputs", "shape")}
        inputs, shape = tuple(given["inputs"]), tuple(given["shape"])
        parts = [tensors.get(f"{at}.{key}", torch.zeros(())) for key in ("weight", "bias", "bulk")]
        weight, bias, bulk = (part.double() for part in parts)
        bulk = torch.maximum(bulk, bias.abs())
        if given["op"] == "conv":
            bias, bulk = bias.reshape(-1, 1, 1), bulk.reshape(-1, 1, 1)
        if given["op"] == "scale":
            weight, bias, bulk = (part.expand(shape) for part in (weight, bias, bulk))
        counts = {"input": 0, "add": 2, "concat": len(inputs)}
        if given["op"] not in KINDS or (given["op"] == "input") != (at == 0):
            raise ValueError(f"node {at} is a {given['op']}")
        if len(inputs) != counts.get(given["op"], 1) or not all(0 <= i < at for i in inputs):
            raise ValueError(f"node {at} reads {list(inputs)}")
        if options.get("sign", 1) not in (1, -1) or not all(
            bool(part.isfinite().all()) for part in (weight, bulk)
        ):
            raise ValueError(f"node {at} has numbers that are not allowed")
        nodes.append(Node(given["op"], inputs, shape, options, weight, bias, bulk))
        feeds |= set(inputs) if given["op"] == "relu" else set()
    spans, width = dict[int, slice](), 0
    for at in sorted(feeds):
        size = torch.Size(nodes[at].shape).numel()
        spans[at], width = slice(width, width + size), width + size
    net = Network(nodes, spans, width)
    for at, value in enumerate(net.values(torch.zeros(2, *nodes[0].shape, dtype=torch.float64))):
        alike = nodes[at].op not in ("add", "relu")
        same = alike or {nodes[i].shape for i in nodes[at].inputs} == {nodes[at].shape}
        if value.shape != (2, *nodes[at].shape) or not same:
            raise ValueError(f"node {at} returns {tuple(value.shape[1:])}, not {nodes[at].shape}")
    return net


def read(folder: Path) -> Network:
    """Read `network.json` and `network.safetensors`."""
    listed = json.loads((folder / "network.json").read_text(encoding="utf-8"))
    if listed["schema"] != SCHEMA:
        raise ValueError(f"expected {SCHEMA}, got {listed['schema']!r}")
    return build(listed["nodes"], load_file(folder / "network.safetensors"))
