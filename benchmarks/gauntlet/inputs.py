"""Wrappers of the input and of hidden layers: hard transformations that move few decisions.

Sources: feature squeezing (Xu et al. 2018, arXiv:1704.01155), thermometer coding (Buckman et al.
2018), JPEG and the like (Guo et al. 2018, arXiv:1711.00117), k-winners (Xiao et al. 2020,
arXiv:1905.10510); broken by BPDA (Athalye et al. 2018, arXiv:1802.00420).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, pad, unfold

from benchmarks.gauntlet.wrapper import Wrapper, split, wrapper
from robustkit.models.architectures import Normalize


@wrapper("quantized", "inputs", truth="at most", moved=0.02)
class Quantized(Wrapper):
    """Inputs rounded to 64 levels."""

    def forward(self, x: Tensor) -> Tensor:
        return self.smooth((x * 63).round() / 63)


@wrapper("byte_pixels", "inputs", truth="at most", moved=0.02)
class BytePixels(Wrapper):
    """Inputs cast to bytes, for a net that takes 0 to 255: no part of it takes images in [0, 1]."""

    def __init__(self, bare: nn.Module) -> None:
        nn.Module.__init__(self)
        layers = list(bare.children())
        if not (isinstance(bare, nn.Sequential) and isinstance(layers[0], Normalize)):
            raise ValueError(f"expected a Sequential that normalizes, got {type(bare).__name__}")
        mean, std = ((255 * t.flatten()).tolist() for t in (layers[0].mean, layers[0].std))
        self.net = nn.Sequential(Normalize(tuple(mean), tuple(std)), *layers[1:])

    def smooth(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(255 * x)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net((255 * x).round().to(torch.uint8))
        return logits


@wrapper("thermometer", "inputs", truth="at most", moved=0.02)
class Thermometer(Wrapper):
    """Each pixel as 40 comparisons with thresholds; the model sees their mean."""

    def forward(self, x: Tensor) -> Tensor:
        steps = (torch.arange(40, device=x.device) + 0.5) / 40
        return self.smooth((x[..., None] > steps).float().mean(-1))


@wrapper("jpeg", "inputs", truth="at most", moved=0.06)
class Jpeg(Wrapper):
    """The cosine transform of 4 × 4 blocks, rounded coarser with rising frequency."""

    basis: Tensor
    step: Tensor

    def __init__(self, bare: nn.Module) -> None:
        super().__init__(bare)
        at, wave = torch.arange(4.0)[None], torch.arange(4.0)[:, None]
        basis = torch.cos(math.pi * (at + 0.5) * wave / 4) * math.sqrt(0.5)
        basis[0] /= math.sqrt(2)
        self.register_buffer("basis", basis)
        self.register_buffer("step", 0.03 * (1 + wave + at))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        blocks = x.reshape(b, c, h // 4, 4, w // 4, 4).transpose(3, 4)
        waves = self.basis @ blocks @ self.basis.T
        waves = (waves / self.step).round() * self.step
        back = (self.basis.T @ waves @ self.basis).transpose(3, 4).reshape(x.shape)
        return self.smooth(back.clamp(0, 1))


@wrapper("median_filter", "inputs", truth="at most", moved=0.06)
class MedianFilter(Wrapper):
    """The median of 3 × 3 at twice the resolution, and back: a filter that spares fine detail."""

    def forward(self, x: Tensor) -> Tensor:
        fine = pad(interpolate(x, scale_factor=2), (1, 1, 1, 1), mode="replicate")
        windows = unfold(fine.flatten(0, 1)[:, None], 3).median(1).values
        return self.smooth(avg_pool2d(windows.reshape(*x.shape[:2], 2 * x.shape[2], -1), 2))


@wrapper("k_winners", "inputs", truth="at most", moved=0.06)
class KWinners(Wrapper):
    """Of the last hidden layer, the 32 largest features alone, the rest are zero."""

    def __init__(self, bare: nn.Module) -> None:
        super().__init__(bare)
        self.body, self.head = split(bare, -1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        least = features.kthvalue(features.shape[1] - 31, dim=1, keepdim=True).values
        logits: Tensor = self.head(features * (features >= least))
        return logits


@wrapper("shattered", "inputs", moved=0.002)
class Shattered(Wrapper):
    """Inputs floored at 1/65,536: the identity to four digits, with a gradient of zero."""

    def forward(self, x: Tensor) -> Tensor:
        return self.smooth((x * 65536).floor() / 65536)


@wrapper("integer_pixels", "inputs", moved=0.002)
class IntegerPixels(Wrapper):
    """Inputs cast to integers of 20 bits and back."""

    def forward(self, x: Tensor) -> Tensor:
        return self.smooth((x * 2**20).long().float() / 2**20)


@wrapper("sorted_pixels", "inputs")
class SortedPixels(Wrapper):
    """Pixels looked up in their own sorted list, by rank: the identity, as an index."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        values, order = flat.detach().sort(1)
        ranks = order.argsort(1)
        return self.smooth(values.gather(1, ranks).reshape(x.shape) + 0 * x)
