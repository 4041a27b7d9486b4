"""ONNX files: `onnx:model.onnx`, turned into a differentiable module by onnx2torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from robustkit.core.optional import library
from robustkit.errors import UsageError
from robustkit.models.zoo.base import Ask, Found, building, prepare

_TOLERANCE = 1e-3  # of the largest logit


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
    path = Path(ask.name).expanduser()
    if not path.is_file():
        raise UsageError(f"{ask.text}: there is no file {path} (looked from {Path.cwd()}).")
    onnx: Any = library("onnx", "onnx")
    converter: Any = library("onnx2torch", "onnx")
    with building(ask, "Only operators that onnx2torch knows can be converted."):
        graph = onnx.load(str(path))
        model: nn.Module = converter.convert(graph).eval()
    _compare(ask, path, graph, model, resize)
    notes = [f"graph: {path}, converted by onnx2torch, answers compared"]
    return Found(prepare(model, notes, resize=resize), tuple(notes))


def _compare(ask: Ask, path: Path, graph: Any, model: nn.Module, resize: int | None) -> None:
    shape = ask.shape if resize is None else (ask.shape[0], resize, resize)
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    with building(ask, f"The graph was run on inputs {[2, *shape]}, with a batch of 2."):
        with torch.no_grad():
            mine = model(x)
        theirs = torch.from_numpy(_reference(path, graph, x.numpy()))
    if mine.shape != theirs.shape or float((mine - theirs).abs().max()) > _TOLERANCE * float(
        theirs.abs().max()
    ):
        raise UsageError(
            f"{ask.text}: the outputs of the converted module are not those of the graph "
            f"({list(mine.shape)} against {list(theirs.shape)}): it cannot be evaluated."
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
