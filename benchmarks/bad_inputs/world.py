"""A small project whose files are all valid: a model, data, weights, a run, a baseline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from robustkit.cli import main

MODEL = """
import torch
from torch import nn


def make():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(25, 2)).eval()
"""
CONFIG = """\
data = "npz:data.npz"
threat = "linf:0.1"
seed = 0
n = 4
device = "cpu"
baseline = "baseline"

[[models]]
model = "model.py:make"
weights = "weights.safetensors"
mean = [0.5]
std = [0.5]

[check]
tolerance = 0.01
metrics = ["robust", "flags"]
confidence = 0.95
claim = "points"
undecided = "error"
max-time = "5s"
max-forwards = 1000
"""
PUBLISHED = {
    "link": "https://arxiv.org/abs/1", "name": "A paper", "venue": "ICML 2020", "eps": "8/255",
    "architecture": "Linear", "clean_acc": "90.0", "autoattack_acc": "50.0", "external": "49.0",
    "reported": "51.0", "additional_data": False, "unreliable": False, "footnote": "none",
}  # fmt: skip
EVALUATE = ("evaluate", "model.py:make", "--data", "npz:data.npz", "--threat", "linf:0.1",
            "--attack", "fgsm", "--device", "cpu", "--out", "run")  # fmt: skip


def speak(*words: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, words, prog_name="robustkit")


def build(place: Path) -> None:
    """Make the project in the working directory, which is `place`."""
    draw = np.random.default_rng(0)
    x, y = draw.random((4, 1, 5, 5), dtype=np.float32), np.array([0, 1, 0, 1])
    np.savez("data.npz", x=x, y=y)
    np.savez_compressed("packed.npz", x=x, y=y, classes=2, layout="nchw")
    np.save("x.npy", x)
    for number, image in enumerate(x):
        folder = place / "images" / str(y[number])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image[0] * 255).astype("uint8")).save(folder / f"{number}.png")
    with torch.random.fork_rng():
        torch.manual_seed(2)  # robust on fewer points than the model that is the baseline
        model = nn.Sequential(nn.Flatten(), nn.Linear(25, 2))
    save_file(model.state_dict(), "weights.safetensors")
    torch.save({"state_dict": model.state_dict()}, "weights.pt")
    Path("model.py").write_text(MODEL)
    for words in (
        EVALUATE,
        (*EVALUATE[:-1], "curve", "--threat", "linf", "--eps-grid", "0.1,0.05"),
    ):
        result = speak(*words)
        assert result.exit_code == 0, result.output
    run = Path("run") / "model.py-make"
    shutil.copy(run / "record.json", "record.json")
    shutil.copytree(run, Path("baseline") / "model")
    published = Path("published") / "cifar10" / "Linf"
    published.mkdir(parents=True)
    (published / "Paper.json").write_text(json.dumps(PUBLISHED))
    Path("robustkit.toml").write_text(CONFIG)
