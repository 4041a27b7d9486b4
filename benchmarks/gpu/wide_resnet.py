"""Wide residual networks (Zagoruyko & Komodakis, 2016), with random weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions behind batch norms, and a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
        self.rest = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
        )
        same = before == after
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the shortcut; where the shape changes, both start behind the norm."""
        inner = self.first(x)
        beside: Tensor = self.shortcut(x if isinstance(self.shortcut, nn.Identity) else inner)
        branch: Tensor = self.rest(inner)
        return branch + beside


def wide_resnet(depth: int, width: int, classes: int = 10) -> nn.Module:
    """Return WRN-`depth`-`width` for 32x32 images, always with the same random weights."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False)]
    before = 16
    for stage, base in enumerate((16, 32, 64)):
        for number in range((depth - 4) // 6):
            stride = 2 if stage and not number else 1
            layers.append(Block(before, base * width, stride))
            before = base * width
    layers += [nn.BatchNorm2d(before), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(before, classes)).eval()
