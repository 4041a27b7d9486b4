"""ONNX files: `onnx:model.onnx`, turned into a differentiable module by onnx2torch."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustkit.core.optional import library
from robustkit.errors import UsageError
from robustkit.models.agreement import OTHER_BATCH, difference
from robustkit.models.onnx_network import Onnx
from robustkit.models.zoo.base import Ask, Found, building, prepare

_OLD = 11  # operator sets before it hold operators that onnx2torch does not know
_MOST = 2**30  # numbers of one value of the graph, for two inputs: 4 GiB


class _First(nn.Module):
    """The first of several outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> logits [b, k]."""
        answer: Tensor = self.model(x)[0]
        return answer


def load(ask: Ask) -> Found:
    """Convert an ONNX graph with one input [b, c, h, w] and logits [b, k] as its first output.

    The conversion is accepted only if its outputs agree with those of onnxruntime, or of the
    reference implementation in the package onnx where that is not installed. Option: `resize=224`.
    Normalization is left to --mean and --std.

    Raises:
        UsageError: when a package is absent, the file cannot be read, an operator has no
            counterpart, or the outputs differ.
    """
    ask.refuse_weights()
    resize, ask = ask.option("resize", int)
    ask.refuse_options()
    path = ask.file()
    onnx: Any = library("onnx", "onnx")
    with building(ask, "Expected a file written by an ONNX exporter."):
        graph = onnx.load(str(path))
        _refuse_huge(ask, graph, onnx.shape_inference, resize)
    if _of_one_point(graph) or _opset(graph) < _OLD:
        return _read(ask, path, resize)
    converter: Any = library("onnx2torch", "onnx")
    with building(ask, "Only operators that onnx2torch knows can be converted."):
        model: nn.Module = converter.convert(graph).eval()
    if len(graph.graph.output) > 1:
        model = _First(model).eval()
    _compare(ask, path, graph, model, resize)
    notes = [f"graph: {path}, converted by onnx2torch, answers compared"]
    return Found(prepare(model, notes, resize=resize), tuple(notes))


class _Flat(nn.Module):
    """A network over the flat numbers of an image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> logits [b, k]."""
        answer: Tensor = self.model(x.flatten(1))
        return answer


def _of_one_point(graph: Any) -> bool:
    """Whether the graph takes one point: flat, or as a batch of one, as in the competition."""
    held = {weight.name for weight in graph.graph.initializer}
    shapes = [entry.type.tensor_type.shape.dim for entry in graph.graph.input
              if entry.name not in held]  # fmt: skip
    return len(shapes) == 1 and (len(shapes[0]) != 4 or shapes[0][0].dim_value == 1)


def _opset(graph: Any) -> int:
    versions = (one.version for one in graph.opset_import if one.domain in ("", "ai.onnx"))
    return max(versions, default=1)


def _read(ask: Ask, path: Path, resize: int | None) -> Found:
    """Read a graph of one point by our own operators, for batches of points of the data's shape."""
    onnx = Onnx(path, path.read_bytes())
    shape = ask.shape if resize is None else (ask.shape[0], resize, resize)
    size, given = math.prod(onnx.shape), math.prod(shape)
    if size != given:
        raise UsageError(
            f"{ask.text}: expected an input of the {given} numbers of {list(shape)} images, "
            f"got one of {size} ({list(onnx.shape)}): name the data it was trained on."
        )
    notes = [f"graph: {path}, read operator by operator, answers compared"]
    return Found(prepare(_Flat(onnx.network()), notes, resize=resize), tuple(notes))


def _refuse_huge(ask: Ask, graph: Any, inference: Any, resize: int | None) -> None:
    """Refuse a graph whose declared shapes ask for more memory than a classifier needs.

    The shapes follow from those of the input without computing anything: a few bytes of a file may
    ask for any number of zeros.
    """
    fixed, held = type(graph)(), {weight.name for weight in graph.graph.initializer}
    fixed.CopyFrom(graph)
    for entry in fixed.graph.input:
        dims = entry.type.tensor_type.shape.dim
        if entry.name not in held and len(dims) == 4:
            shape = ask.shape if resize is None else (ask.shape[0], resize, resize)
            for dim, size in zip(dims, (2, *shape), strict=True):
                dim.dim_value = size
    known = inference.infer_shapes(fixed, data_prop=True).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*known.value_info, *known.output)
    }
    shapes |= {weight.name: list(weight.dims) for weight in known.initializer}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    for name, size in sizes.items():
        if size > _MOST or min(shapes[name], default=0) < 0:
            raise UsageError(
                f"{ask.text}: the value {name!r} of the graph has the shape {shapes[name]}, with "
                f"{size:,} numbers for two inputs; expected at most {_MOST:,}. Export the model "
                "again for inputs of the size of the data."
            )


def _compare(ask: Ask, path: Path, graph: Any, model: nn.Module, resize: int | None) -> None:
    shape = ask.shape if resize is None else (ask.shape[0], resize, resize)
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    with building(ask, f"The graph was run on inputs {[2, *shape]}, with a batch of 2."):
        with torch.no_grad():
            mine = model(x)
        theirs = torch.from_numpy(_reference(path, graph, x.numpy()))
    if told := difference(mine, theirs, OTHER_BATCH):
        raise UsageError(
            f"{ask.text}: the outputs of the converted module are not those of the graph ({told}): "
            "it cannot be evaluated."
        )


def _reference(path: Path, graph: Any, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    held = {weight.name for weight in graph.graph.initializer}
    (name,) = [entry.name for entry in graph.graph.input if entry.name not in held]
    if importlib.util.find_spec("onnxruntime") is not None:
        runtime: Any = library("onnxruntime", "onnx")
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        answers = session.run(None, {name: x})
    else:
        evaluator: Any = library("onnx.reference", "onnx")
        answers = evaluator.ReferenceEvaluator(graph).run(None, {name: x})
    return np.asarray(answers[0], dtype=np.float32)
