"""Small random networks for tests of branch and bound."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _mlp(seed: int, sizes: tuple[int, ...]) -> Any:
    """Linear layers with ReLUs between them."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return _centered(nn.Sequential(*layers[:-1]), sizes[:1])


def _centered(net: nn.Module, shape: tuple[int, ...]) -> Any:
    """Freeze a network, its classes made about as likely as each other."""
    net.eval().requires_grad_(False)
    last = [layer for layer in net.modules() if isinstance(layer, nn.Linear)][-1]
    last.bias -= net(torch.rand(256, *shape)).mean(0)
    return net


class _Residual(nn.Module):
    """Strides, a sum, a concatenation, pooling and batch normalization, over [1, 5, 5]."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.third = nn.Conv2d(6, 4, 3, stride=2, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(4, 3)
        self.norm.running_mean.uniform_(-0.2, 0.2)
        self.norm.running_var.uniform_(0.5, 1.5)
        _centered(self, (1, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        """[b, 1, 5, 5] -> [b, 3]."""
        a = F.relu(self.norm(self.first(x)))
        b = F.relu(self.second(a)) - a
        c = F.relu(self.third(torch.cat([a, b], 1)))
        return self.head(self.pool(c).flatten(1))


@pytest.fixture
def mlp() -> Callable[[int, tuple[int, ...]], nn.Sequential]:
    """Makes fully connected networks of a seed and sizes."""
    return _mlp


@pytest.fixture
def residual() -> Callable[[int], nn.Module]:
    """Makes residual networks of a seed."""
    return _Residual
