"""What a record leaves undecided, as instances of the verification competition."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from robustkit.certify.vnnlib.write import robustness
from robustkit.core import files
from robustkit.core.imports import failure
from robustkit.core.text import slug
from robustkit.core.types import Model
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError
from robustkit.gate.baseline import Baseline
from robustkit.models.agreement import OTHER_ORDER, difference
from robustkit.models.onnx_network import Onnx
from robustkit.models.readiness import private_copy
from robustkit.record.evidence import refuse_altered

_OPSET, _COMPARED = 13, 8


class Exported(NamedTuple):
    """What was written: the points, and the list of instances."""

    points: tuple[int, ...]
    path: Path


def export_instances(
    baseline: Baseline, model: Model | nn.Module, data: Dataset, folder: Path, seconds: float
) -> Exported:
    """Write the network and a property for every point that is neither broken nor proved.

    `folder` then holds onnx/, vnnlib/ and instances.csv. The network is compared with its runtime;
    the box of a property is that of the threat model, in float64.

    Raises:
        EvidenceAltered: when record and ledger do not bear each other out.
        UsageError: for a threat model that is no box, or a model that cannot be exported.
    """
    record, threat = baseline.record, baseline.threat
    if threat.norm != "linf":
        raise UsageError(
            f"{baseline.path}: expected a threat model in linf, whose ball is a box of inputs, got "
            f"{threat}: VNN-LIB has linear bounds alone."
        )
    if threat.criterion.suffix:
        raise UsageError(
            f"{baseline.path}: expected a record whose points any wrong decision breaks, got the "
            f"criterion {threat.criterion}: the properties written here ask for that alone."
        )
    refuse_altered(record, baseline.path)
    open_points = [index for index, status in zip(record.points.index, record.points.status,
                                                  strict=True) if status == "robust"]  # fmt: skip
    name = slug(record.defense)
    network = Path("onnx") / f"{name}.onnx"
    content = _exported(model, data, record.points.index[:_COMPARED], record.defense)
    files.make_folder(folder / "onnx")
    files.make_folder(folder / "vnnlib")
    files.write(content, folder / network)
    lines = []
    for index in open_points:
        x, y = data.fetch([index])
        point = x.flatten().double().numpy()
        low = np.maximum(point - threat.eps, threat.lower)
        high = np.minimum(point + threat.eps, threat.upper)
        comment = f"{record.data.name}, point {index}, {threat}, {record.defense}"
        text = robustness(low, high, int(y[0]), record.data.classes, comment)
        place = Path("vnnlib") / f"{name}-{index}.vnnlib"
        files.write(text.encode(), folder / place)
        lines.append(f"{network.as_posix()},{place.as_posix()},{seconds:g}\n")
    files.write("".join(lines).encode(), folder / "instances.csv")
    return Exported(tuple(open_points), folder / "instances.csv")


def _exported(model: Model | nn.Module, data: Dataset, points: list[int], name: str) -> bytes:
    """Return the network as an ONNX file whose runtime answers like it."""
    if not isinstance(model, nn.Module):
        raise UsageError(f"{name}: expected an nn.Module to export, got a {type(model).__name__}.")
    private = private_copy(model, torch.device("cpu"), name)
    assert isinstance(private, nn.Module)
    example = torch.zeros(1, *data.shape)
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as room:
            path = Path(room) / "net.onnx"
            warnings.simplefilter("ignore")  # the exporter that needs no other package is the old
            torch.onnx.export(
                private, (example,), path, dynamo=False, opset_version=_OPSET,
                input_names=["X"], output_names=["Y"],
            )  # fmt: skip
            content = path.read_bytes()
    except Exception as error:  # operators without a counterpart fail in many ways
        raise UsageError(f"{name} cannot be exported to ONNX: {failure(error)}.") from error
    onnx = Onnx(Path(f"{slug(name)}.onnx"), content)
    x, _ = data.fetch(points)
    with torch.no_grad():
        wanted = private(x)
    got = torch.from_numpy(np.stack([onnx.answer(one) for one in x.numpy()]))
    if told := difference(got, wanted, OTHER_ORDER):
        raise UsageError(
            f"{name}: exported to ONNX it is another function ({told}), as randomized models and "
            "those that depend on the batch are: nothing was written."
        )
    return content
