"""What `robustkit verify` answers: the networks as ONNX, a property in VNN-LIB for every point."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from benchmarks.planted.setting import CLASSES, SHAPE, THREAT, Planted
from robustkit.certify.vnnlib.instance import Instance, answer
from robustkit.certify.vnnlib.write import robustness
from robustkit.core import files, json_files

ANSWERS = "answers.json"


def answer_all(planted: Planted, name: str, seconds: float, place: Path) -> None:
    """Write network and properties beside `place`, and there the verdict on every point."""
    folder = place.parent
    files.make_folder(folder)
    network = folder / f"{name}.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no other package is the old one
        torch.onnx.export(
            planted.net, (torch.zeros(1, *SHAPE),), network, dynamo=False, opset_version=13,
            input_names=["X"], output_names=["Y"],
        )  # fmt: skip
    verdicts = []
    for number, (x, y) in enumerate(zip(planted.x.double(), planted.y.tolist(), strict=True)):
        low, high = (x - THREAT.eps).clamp_min(0), (x + THREAT.eps).clamp_max(1)
        text = robustness(
            low.flatten().numpy(), high.flatten().numpy(), y, CLASSES, f"{name}, point {number}"
        )
        path = folder / f"{number}.vnnlib"
        files.write(text.encode(), path)
        verdicts.append(answer(Instance(network, path, seconds))[1].verdict)
    json_files.write(verdicts, place)
