"""Networks of the sizes that are attacked in practice, for timings: made in the run, from a seed.

`cnn100k` and `cnn700k` are trained adversarially on the points that they are attacked on, so that
most points survive and every attack spends its whole budget; what they would do on other points is
not the question here. `resnet18` is the one that ships inside pyautoattack.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustkit.core.threat import Threat
from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Dataset
from robustkit.models.adversarial_training import perturb, ramp
from robustkit.models.load import Subject, load_model

_WIDTHS = {"cnn100k": (16, 60), "cnn700k": (32, 192)}  # of the first convolution, of the head
_EPOCHS, _BATCH, _STEPS = 14, 100, 3


def load_subject(name: str, data: Dataset, threat: Threat) -> Subject:
    """Return a network of this file, or a registered model."""
    if name in _WIDTHS:
        return Subject(name, _trained(_cnn(name, data), data, threat))
    return resnet18() if name == "resnet18" else load_model(name, data=data)


def resnet18() -> Subject:
    """Load the robust CIFAR-10 ResNet-18 that ships inside pyautoattack."""
    import pyautoattack

    from robustkit.core.imports import load_attribute

    folder = Path(pyautoattack.__file__).parent / "examples"
    network: Any = load_attribute(f"{folder / 'resnet.py'}:ResNet18")()
    state = torch.load(folder / "model_test.pt", map_location="cpu", weights_only=True)
    network.load_state_dict(state)
    return Subject("resnet18", network.eval())


def in_color(data: Dataset, model: nn.Module, n: int) -> Dataset:
    """Return `n` gray images of `data` as 3 x 32 x 32, labeled as the model sees them.

    For the cost of its passes, where no data set of its own is at hand.
    """
    x = data.fetch(range(n))[0]
    x = F.interpolate(x, size=(32, 32)).expand(-1, 3, -1, -1).contiguous()
    with torch.no_grad():
        y = torch.cat([model(part).argmax(1) for part in x.split(32)])
    return from_arrays("in color", np.asarray(x), np.asarray(y))


def _cnn(name: str, data: Dataset) -> nn.Sequential:
    """Three convolutions and two linear layers; 0.11 and 0.66 million weights at 28 x 28."""
    torch.manual_seed(0)
    width, hidden = _WIDTHS[name]
    channels, height, size = data.shape
    flat = 2 * width * -(-height // 4) * -(-size // 4)
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(flat, hidden),
        nn.ReLU(),
        nn.Linear(hidden, data.classes),
    )


def _trained(model: nn.Sequential, data: Dataset, threat: Threat) -> nn.Module:
    x, y = data.fetch(range(len(data)))
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for epoch in range(_EPOCHS):
        radius = Threat(threat.norm, ramp(threat.eps, epoch / _EPOCHS))
        for rows in torch.randperm(len(x), generator=generator).split(_BATCH):
            labels = y[rows]

            def loss(logits: Tensor, labels: Tensor = labels) -> Tensor:
                return F.cross_entropy(logits, labels, reduction="sum")

            hard = perturb(model, x[rows], loss, radius, steps=_STEPS, generator=generator)
            optimizer.zero_grad()
            loss(model(hard)).div(len(rows)).backward()
            optimizer.step()
    return model.eval()
