"""ONNX graphs as torch modules that bounds can read: shapes are static, one point at a time.

Networks of the verification competition are written for a batch of one, baked into their reshapes,
and in old operator sets. Here the shapes of one point are inferred, what does not depend on the
input is computed once by the reference implementation, and every other node becomes a module or a
function of torch over a batch of points.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustkit.core.optional import library, quiet
from robustkit.errors import UsageError
from robustkit.models.agreement import OTHER_ORDER, difference
from robustkit.models.onnx_operators import LINEAR, Compute, Operator, Refused, Shape, build, matrix

_OPSET = 13  # older graphs are converted to it, as some operators had other meanings
_TESTED = 8  # points of the comparison
_TABLED = 4096  # numbers before a node that becomes a matrix


class OnnxNetwork(nn.Module):
    """[b, n] of flat inputs, in the order of the graph -> [b, k] of flat outputs."""

    def __init__(
        self, steps: list[tuple[str, Compute, list[str]]], given: Shape, ends: str
    ) -> None:
        super().__init__()
        self.given, self.ends = given, ends
        self.steps = steps
        # Registered, so that weights follow .double() and .to().
        self.parts = nn.ModuleList([step for _, step, _ in steps if isinstance(step, nn.Module)])

    def forward(self, x: Tensor) -> Tensor:
        """[b, n] -> [b, k]."""
        values = {"": x.reshape(x.shape[0], *self.given) if len(self.given) != 1 else x}
        for name, compute, sources in self.steps:
            values[name] = compute(*(values[source] for source in sources))
        answer = values[self.ends]
        return answer if self.flat else answer.flatten(1)

    flat = True


class Onnx:
    """A graph of one input and one output, with its runtime.

    Attributes:
        shape: of the input as the graph declares it, with 1 for sizes that are left open.
        network: the same in torch.
        size: numbers of one output.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        self.path, self._content = path, content
        self._onnx: Any = library("onnx", "onnx")
        try:
            with quiet():
                self._model = self._onnx.load_from_string(content)
                self._onnx.checker.check_model(self._model)
        except Exception as error:  # a damaged file fails in many ways
            raise self._error(
                f"expected an ONNX file, got one that cannot be read ({error})"
            ) from error
        held = {weight.name for weight in self._model.graph.initializer}
        inputs = [entry for entry in self._model.graph.input if entry.name not in held]
        if len(inputs) != 1 or len(self._model.graph.output) != 1:
            raise self._error(
                f"expected one input and one output, got {len(inputs)} and "
                f"{len(self._model.graph.output)}; several are not supported"
            )
        self.name = inputs[0].name
        sizes = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim]
        if any(size < 1 for size in sizes[1:]):
            raise self._error(f"expected sizes of the input beyond the batch, got {sizes}")
        self.shape: Shape = tuple(max(1, size) for size in sizes)
        self._session: Any = None
        self.size = int(self.answer(np.zeros(self.shape, dtype=np.float32)).size)

    def _error(self, message: str) -> UsageError:
        return UsageError(f"{self.path}: {message}.")

    def answer(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Return the outputs [k] for one input, by onnxruntime or the reference implementation."""
        point = np.asarray(x, dtype=np.float32).reshape(self.shape)
        with quiet():
            if self._session is None:
                self._session = self._started()
            (found,) = self._session.run(None, {self.name: point})
        return np.asarray(found, dtype=np.float32).reshape(-1)

    def _started(self) -> Any:
        if importlib.util.find_spec("onnxruntime") is not None:
            runtime: Any = library("onnxruntime", "onnx")
            return runtime.InferenceSession(self._content, providers=["CPUExecutionProvider"])
        evaluator: Any = library("onnx.reference", "onnx")
        return evaluator.ReferenceEvaluator(self._model)

    def network(self) -> OnnxNetwork:
        """Return the graph in torch, compared with the runtime on random points.

        Raises:
            UsageError: for an operator that is not known, by name, or outputs that differ.
        """
        # A batch of one in front is taken for the batch axis where every value has one.
        reasons = []
        for lead in (1, 0):
            try:
                found = _Converter(self._onnx, self._model, self.name, self.shape, lead).network()
            except Refused as error:
                reasons.append(str(error))
                continue
            if reason := self._differs(found):
                reasons.append(reason)
                continue
            return found
        raise self._error("cannot be read for bounds: " + "; ".join(dict.fromkeys(reasons)))

    def _differs(self, network: OnnxNetwork) -> str:
        """Say how far the network is from the runtime, or nothing where they agree."""
        draw = np.random.default_rng(0)
        points = draw.uniform(-1, 1, (_TESTED, *self.shape)).astype(np.float32)
        wanted = np.stack([self.answer(point) for point in points])
        try:
            with torch.no_grad():
                got = network(torch.from_numpy(points).flatten(1))
        except (RuntimeError, ValueError, IndexError) as error:
            return f"it fails in torch ({error})"
        return difference(got, torch.from_numpy(wanted), OTHER_ORDER)


class _Converter:
    """Turns nodes into steps, one after the other."""

    def __init__(self, onnx: Any, model: Any, given: str, shape: Shape, lead: int) -> None:
        if lead and (len(shape) < 2 or shape[0] != 1):
            raise Refused("its input has no batch of one")
        self.onnx, self.given, self.lead = onnx, given, lead
        self.shape = shape
        self.model = self._prepared(model)
        graph = self.model.graph
        self.constants: dict[str, NDArray[Any]] = {
            weight.name: onnx.numpy_helper.to_array(weight) for weight in graph.initializer
        }
        with quiet():
            known = onnx.shape_inference.infer_shapes(self.model, data_prop=True).graph
        self.shapes: dict[str, Shape] = {
            value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
            for value in (*known.input, *known.value_info, *known.output)
        }
        self.steps: list[tuple[str, Compute, list[str]]] = []

    def _prepared(self, model: Any) -> Any:
        """Return a copy in operator set 13 or later, with a batch of one and no open size."""
        version = max(
            (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
            default=1,
        )
        copy = type(model)()
        copy.CopyFrom(model)
        held = {weight.name for weight in copy.graph.initializer}
        kept = [entry for entry in copy.graph.input if entry.name not in held]
        for dim, size in zip(kept[0].type.tensor_type.shape.dim, self.shape, strict=True):
            dim.dim_value = size
        # What was inferred for other sizes would contradict these.
        del copy.graph.value_info[:]
        copy.graph.output[0].type.tensor_type.ClearField("shape")
        try:
            with quiet():
                if version < _OPSET:
                    copy = self.onnx.version_converter.convert_version(copy, _OPSET)
        except Exception as error:
            raise Refused(
                f"operator set {version} cannot be converted to {_OPSET} ({error})"
            ) from error
        # Old files list their weights among the inputs, as the conversion wants them.
        kept = [entry for entry in copy.graph.input if entry.name == self.given]
        del copy.graph.input[:]
        copy.graph.input.extend(kept)
        copy.ir_version = max(copy.ir_version, 4)
        return copy

    def network(self) -> OnnxNetwork:
        for node in self.model.graph.node:
            self._add(node)
        ends = self.model.graph.output[0].name
        if ends in self.constants:
            raise Refused("its output does not depend on its input")
        found = OnnxNetwork(self.steps, self._of_point(self.given), ends).eval()
        found.flat = len(self._of_point(ends)) == 1
        return found

    def _add(self, node: Any) -> None:
        name = f"the operator {node.op_type}" + (f" ({node.name})" if node.name else "")
        sources = [source for source in node.input if source]
        if node.op_type == "Shape" and sources[0] not in self.constants:
            self.constants[node.output[0]] = np.array(self._sized(sources[0]), dtype=np.int64)
            return
        if all(source in self.constants for source in sources):
            self._fold(node, name)
            return
        places = {self.given: ""} | {made: made for made, _, _ in self.steps}
        live = [places[source] for source in sources if source not in self.constants]
        if node.op_type in LINEAR and len(live) == 1:
            self._tabulate(node, name, live)
            return
        inputs = [self._tensor(source) for source in node.input]
        shapes = [self._of_point(s) if s in self.shapes and s not in self.constants else ()
                  for s in (*node.input, node.output[0])]  # fmt: skip
        options = {a.name: self.onnx.helper.get_attribute_value(a) for a in node.attribute}
        try:
            compute = build(Operator(node.op_type, options, shapes, inputs, self.lead))
        except Refused as error:
            raise Refused(f"{name}: {error}") from None
        self.steps.append((node.output[0], compute, live))

    def _tabulate(self, node: Any, name: str, live: list[str]) -> None:
        """Turn a node that is affine in its one live input into matrices, one for each output."""
        (source,) = {s for s in node.input if s and s not in self.constants}
        shape = self._sized(source)
        n = math.prod(shape)
        if n > _TABLED:
            raise Refused(f"{name}: expected at most {_TABLED} numbers before it, got {n}")
        run = self._alone(node, name)
        shift = run({source: np.zeros(shape, dtype=np.float32)})
        columns = [run({source: one.reshape(shape)}) for one in np.eye(n, dtype=np.float32)]
        for place, made in enumerate(node.output):
            bias = shift[place].reshape(-1)
            weight = np.stack([column[place].reshape(-1) - bias for column in columns], axis=1)
            step = matrix(
                torch.from_numpy(weight.copy()), torch.from_numpy(bias.copy()), self._of_point(made)
            )
            self.steps.append((made, step, live))

    def _fold(self, node: Any, name: str) -> None:
        """Compute a node whose inputs are all constant."""
        for made, found in zip(node.output, self._alone(node, name)({}), strict=False):
            self.constants[made] = np.asarray(found)

    def _alone(self, node: Any, name: str) -> Callable[[dict[str, NDArray[Any]]], list[Any]]:
        """Return what runs one node by the reference implementation, given its live inputs."""
        make, evaluator = self.onnx.helper, library("onnx.reference", "onnx")
        sources = sorted({source for source in node.input if source})
        held = {source: self.constants[source] for source in sources if source in self.constants}
        ends = [[make.make_empty_tensor_value_info(s) for s in names]
                for names in (sources, node.output)]  # fmt: skip
        with quiet():
            single: Any = evaluator.ReferenceEvaluator(
                make.make_model(
                    make.make_graph([node], "alone", *ends), opset_imports=self.model.opset_import
                )
            )

        def run(live: dict[str, NDArray[Any]]) -> list[Any]:
            try:
                with quiet():
                    return list(single.run(None, {**held, **live}))
            except Exception as error:
                raise Refused(f"{name} cannot be computed: {error}") from error

        return run

    def _tensor(self, source: str) -> Tensor | None:
        value = self.constants.get(source)
        if value is None:
            return None
        tensor = torch.from_numpy(np.array(value))
        return tensor.float() if tensor.is_floating_point() else tensor

    def _sized(self, name: str) -> Shape:
        shape = self.shapes.get(name)
        if shape is None or any(size < 1 for size in shape):
            raise Refused(f"the value {name!r} has no fixed shape")
        return shape

    def _of_point(self, name: str) -> Shape:
        shape = self._sized(name)
        if self.lead and (not shape or shape[0] != 1):
            raise Refused(f"the value {name!r} has the shape {list(shape)}, without a batch of one")
        return shape[self.lead :]
