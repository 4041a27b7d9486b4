"""The few small architectures that the bundled defenses share. Inputs [b, c, h, w] in [0, 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_STATISTICS = {1: ((0.2860,), (0.3530,)), 3: ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))}


class Normalize(nn.Module):
    """(x − mean) / std per channel, inside the model, so that eps stays in input units.

    Args:
        mean, std: of each channel, or of each feature of a vector.
        axes: of one input, beside that of its channels: 0 for vectors, 2 for images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], axes: int = 2) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, *[1] * axes))
        self.register_buffer("std", torch.tensor(std).view(1, -1, *[1] * axes))

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, *f] -> [b, c, *f]."""
        return (x - self.mean) / self.std


def normalize(channels: int) -> Normalize:
    """Return the normalization of the grayscale or the color data sets: 1 or 3 channels."""
    return Normalize(*_STATISTICS[channels])


def small_cnn(shape: tuple[int, int, int], classes: int, width: int = 32) -> nn.Sequential:
    """Three strided convolutions and two linear layers, without batch coupling: 0.2 M weights.

    At width 32 and 28 × 28 one forward pass is about 4 million multiply-adds.
    """
    channels, height, size = shape[0], shape[1], 2 * width
    flat = size * math.ceil(height / 2 / 2 / 2) ** 2
    return nn.Sequential(
        normalize(channels),
        nn.Conv2d(channels, width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, size, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(size, size, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(flat, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def cnn3(shape: tuple[int, int, int], classes: int, width: int = 16) -> nn.Sequential:
    """Two strided convolutions and one linear layer: 25 thousand weights at 28 × 28.

    CNN3 of CTBench (Mao et al. 2025): convolutions of 5 × 5 and 4 × 4, stride 2.
    """
    layers, flat = _two_convolutions(shape, width, 5)
    return nn.Sequential(*layers, nn.Linear(flat, classes))


def cnn_a(shape: tuple[int, int, int], classes: int, width: int = 16) -> nn.Sequential:
    """Two strided convolutions and two linear layers: 167 thousand weights at 28 × 28.

    CNN-A of the verification literature (Dathathri et al. 2020, arXiv:2010.11645): convolutions of
    4 × 4, stride 2, then 100 hidden units; 4,804 ReLUs at 28 × 28.
    """
    layers, flat = _two_convolutions(shape, width, 4)
    return nn.Sequential(*layers, nn.Linear(flat, 100), nn.ReLU(), nn.Linear(100, classes))


def _two_convolutions(
    shape: tuple[int, int, int], width: int, kernel: int
) -> tuple[list[nn.Module], int]:
    """Return convolutions of `kernel` and 4, stride 2, flattened, and the number of features."""
    channels, *sizes = shape
    pad = (kernel - 1) // 2
    flat = 2 * width * math.prod(((n + 2 * pad - kernel) // 2 + 1) // 2 for n in sizes)
    return [
        *([normalize(channels)] if channels == 3 else []),
        nn.Conv2d(channels, width, kernel, stride=2, padding=pad),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
    ], flat


def cnn7(shape: tuple[int, int, int], classes: int, width: int = 64) -> nn.Sequential:
    """Five convolutions with batch normalization and two linear layers: 13 M weights at 28 × 28.

    CNN7 of Shi et al. 2021 and CTBench. About 200 million multiply-adds per 28 × 28 image: for a
    GPU.
    """
    channels, height, size = shape
    layers: list[nn.Module] = [normalize(channels)] if channels == 3 else []
    plan = [(width, 1), (width, 1), (2 * width, 2), (2 * width, 1), (2 * width, 1)]
    before = channels
    for after, stride in plan:
        layers += [
            nn.Conv2d(before, after, 3, stride=stride, padding=1),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]
        before = after
    flat, hidden = before * math.ceil(height / 2) * math.ceil(size / 2), 8 * width
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(flat, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )
