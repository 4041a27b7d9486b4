"""What a training does to its images: mirror and shift."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from robustkit.data.dataset import Augment


def augmented(x: Tensor, augment: Augment, draw: Generator) -> Tensor:
    """Mirror half of the images; shift each by up to `crop` pixels over a zero border."""
    b, _, h, w = x.shape
    if augment.flip:
        mirrored = torch.rand(b, generator=draw) < 0.5
        x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)
    if crop := augment.crop:
        padded = nn.functional.pad(x, (crop,) * 4)
        top, left = torch.randint(0, 2 * crop + 1, (2, b), generator=draw)
        rows = (top[:, None] + torch.arange(h))[:, None, :, None]
        columns = (left[:, None] + torch.arange(w))[:, None, None, :]
        channels = torch.arange(x.shape[1])[None, :, None, None]
        x = padded[torch.arange(b)[:, None, None, None], channels, rows, columns]
    return x
