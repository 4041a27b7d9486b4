"""ONNX graphs are read as their runtime answers: operator set 8, flat inputs, a batch of one."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from robustkit.certify.graph import trace
from robustkit.data.dataset import Dataset, ImageSet
from robustkit.errors import UsageError
from robustkit.models.load import load_model
from robustkit.models.onnx_network import Onnx

onnx: Any = pytest.importorskip("onnx")
Nodes = list[tuple[str, list[str], list[str], dict[str, Any]]]


def write(
    path: Path,
    nodes: Nodes,
    held: dict[str, NDArray[Any]],
    given: list[int],
    made: list[int],
    opset: int = 8,
) -> Path:
    """Write a graph from x to y; weights are among the inputs, as old files have them."""
    make, kinds = onnx.helper, {"f": 1, "i": 7}
    value = make.make_tensor_value_info
    graph = make.make_graph(
        [make.make_node(kind, ins, outs, **options) for kind, ins, outs, options in nodes],
        "net",
        [value("x", 1, given)]
        + [value(name, kinds[array.dtype.kind], array.shape) for name, array in held.items()],
        [value("y", 1, made)],
        [onnx.numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", opset)], ir_version=3)
    onnx.save(model, str(path))
    return path


def weights(seed: int, **shapes: tuple[int, ...]) -> dict[str, NDArray[Any]]:
    """Draw weights by name."""
    draw = np.random.default_rng(seed)
    return {name: draw.normal(size=size).astype(np.float32) for name, size in shapes.items()}


def image_net(path: Path, seed: int = 0) -> Path:
    """Write a network over flat 2 x 4 x 4 images that normalizes, convolves, pools and joins."""
    held = weights(seed, m=(1, 2, 1, 1), w=(3, 2, 3, 3), b=(3,), v=(12, 3), c=(1, 3))
    held |= {"s": np.array([1, 2, 4, 4]), "flat": np.array([1, -1])}
    nodes: Nodes = [
        ("Reshape", ["x", "s"], ["i"], {}),
        ("Sub", ["i", "m"], ["d"], {}),
        ("Conv", ["d", "w", "b"], ["h"], {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}),
        ("Relu", ["h"], ["r"], {}),
        ("MaxPool", ["r"], ["p"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Reshape", ["p", "flat"], ["f"], {}),
        ("MatMul", ["f", "v"], ["t"], {}),
        ("Add", ["t", "c"], ["y"], {}),
    ]
    return write(path, nodes, held, [1, 32], [1, 3])


def opened(path: Path) -> Onnx:
    return Onnx(path, path.read_bytes())


def test_contest_graphs_are_read_for_batches(tmp_path: Path) -> None:
    runtime = opened(image_net(tmp_path / "net.onnx"))
    network = runtime.network()
    x = torch.rand(5, 32, generator=torch.Generator().manual_seed(0))
    wanted = np.stack([runtime.answer(point) for point in x.numpy()])
    torch.testing.assert_close(network(x), torch.from_numpy(wanted))
    graph = trace(network.double(), (32,))
    torch.testing.assert_close(graph.values(x.double())[-1].float(), torch.from_numpy(wanted))


@pytest.mark.parametrize(
    ("nodes", "made"),
    [
        ([("Slice", ["x", "a", "b", "t"], ["y"], {})], [2, 2]),
        ([("Transpose", ["x"], ["y"], {"perm": [1, 0]})], [3, 2]),
        ([("ReduceMean", ["x"], ["y"], {"axes": [0], "keepdims": 0})], [3]),
        ([("Gather", ["x", "t"], ["y"], {"axis": 1})], [2, 1]),
        ([("Split", ["x"], ["z", "y"], {"axis": 0})], [1, 3]),
        ([("Concat", ["x", "o"], ["y"], {"axis": 0})], [3, 3]),
    ],
)
def test_rearrangements_without_a_batch_are_matrices(
    nodes: Any, made: list[int], tmp_path: Path
) -> None:
    held = {"a": np.array([0]), "b": np.array([2]), "t": np.array([1])}
    held = {name: held[name] for name in held if name in nodes[0][1]}
    if "o" in nodes[0][1]:
        held["o"] = np.ones((1, 3), np.float32)
    runtime = opened(write(tmp_path / "n.onnx", nodes, held, [2, 3], made, opset=13))
    x = torch.arange(6.0)[None] + torch.tensor([[0.0], [10.0]])
    wanted = np.stack([runtime.answer(point) for point in x.numpy()])
    torch.testing.assert_close(runtime.network()(x), torch.from_numpy(wanted))


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "n.onnx", [("Erf", ["x"], ["y"], {})], {}, [1, 3], [1, 3], 13)
    with pytest.raises(UsageError, match="operator Erf: it is not known"):
        opened(path).network()


def test_a_reading_that_differs_is_refused_with_the_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_net(tmp_path / "net.onnx")
    monkeypatch.setitem(
        vars(import_module("robustkit.models.onnx_operators"))["_PLAIN"],
        "Relu", lambda op: torch.nn.LeakyReLU(0.5),
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"outputs differ by up to [\d.]+, where they reach"):
        opened(tmp_path / "net.onnx").network()


def test_no_onnx_file_and_two_inputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    with pytest.raises(UsageError, match="expected an ONNX file"):
        opened(tmp_path / "bad.onnx")
    held = weights(0, w=(2, 2))
    path = write(tmp_path / "n.onnx", [("Add", ["x", "z"], ["y"], {})], held, [1, 2], [1, 2])
    model = onnx.load(str(path))
    model.graph.input[1].name = "z"
    del model.graph.initializer[:]
    onnx.save(model, str(path))
    with pytest.raises(UsageError, match="expected one input and one output, got 2 and 1"):
        opened(path)


def images(blobs: Dataset) -> ImageSet:
    """Return data of the shape that `image_net` was written for."""
    assert isinstance(blobs, ImageSet)
    draw = np.random.default_rng(0).random((len(blobs), 2, 4, 4), dtype=np.float32)
    return replace(blobs, shape=(2, 4, 4), read=lambda places: draw[places])


def test_a_flat_graph_is_evaluated_on_images(blobs: Dataset, tmp_path: Path) -> None:
    path = image_net(tmp_path / "net.onnx")
    model = load_model(f"onnx:{path}", data=images(blobs)).model
    x = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    wanted = np.stack([opened(path).answer(point) for point in x.numpy()])
    torch.testing.assert_close(model(x), torch.from_numpy(wanted))
    assert model(x.requires_grad_(True)).sum().requires_grad


def test_a_graph_for_another_size_is_refused(blobs: Dataset, tmp_path: Path) -> None:
    path = image_net(tmp_path / "net.onnx")
    with pytest.raises(UsageError, match=r"numbers of \[.*\] images, got one of 32 \(\[1, 32\]\)"):
        load_model(f"onnx:{path}", data=blobs)


def test_an_old_operator_set_with_an_open_batch_is_read(blobs: Dataset, tmp_path: Path) -> None:
    held = weights(0, w=(36, 4), b=(4,))
    nodes: Nodes = [("Flatten", ["x"], ["f"], {}), ("Gemm", ["f", "w", "b"], ["y"], {})]
    given: Any = ["n", 1, 6, 6]
    path = write(tmp_path / "net.onnx", nodes, held, given, [1, 4])
    model = load_model(f"onnx:{path}", data=blobs).model
    x = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    wanted = x.flatten(1) @ torch.from_numpy(held["w"]) + torch.from_numpy(held["b"])
    torch.testing.assert_close(model(x), wanted)
