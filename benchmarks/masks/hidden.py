"""Masks inside the network: hidden features that are flattened or dropped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.masks.mask import Mask, Masked, mask, straight
from robustkit.core.types import Model
from robustkit.data.dataset import Dataset
from robustkit.models.architectures import small_cnn


class Band(nn.Module):
    """Features within `width` standard deviations of their mean over the training data become it.

    Statistics are by channel, or by unit where there are no channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, width: float) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.width = width

    def forward(self, f: Tensor) -> Tensor:
        """[b, c, ...] -> the same."""
        return torch.where((f - self.mean).abs() <= self.width * self.std, self.mean, f)


class MeanSparseNet(Masked):
    """The layers of a sequential model with a band before every ReLU."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, k]."""
        logits: Tensor = self.layers(x)
        return logits

    def experts(self) -> dict[str, Model]:
        """The model without bands; with them, and the identity as their backward pass."""
        return {
            "bare": partial(self._run, inside=lambda band, f: f),
            "straight": partial(self._run, inside=lambda band, f: straight(band(f), f)),
        }

    def _run(self, x: Tensor, inside: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        for layer in self.layers:
            x = inside(layer, x) if isinstance(layer, Band) else layer(x)
        return x


@mask("mean_sparse", "Amini et al. 2024, arXiv:2406.05927", learns=False)
@dataclass(frozen=True)
class MeanSparse(Mask):
    """Features within a band around their training mean are set to it, after training.

    The width of the bands, in standard deviations, is the largest of `widths` that costs at most
    half a point of accuracy on training data.
    Differs from the paper: one width is tried at a time for all layers, on a small CNN.
    """

    widths: tuple[float, ...] = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
    sample: int = 4000

    def wrap(self, bare: nn.Module, learned: nn.Module | None, data: Dataset) -> MeanSparseNet:
        """Measure the features of `bare` on the first training points, and choose the width."""
        x, y = data.fetch(np.arange(min(self.sample, len(data))))
        found = MeanSparseNet(banded(bare, x, self.widths[0]))
        with torch.no_grad():
            allowed = _accuracy(bare, x, y) - 0.005
            for width in self.widths[1:]:
                wider = MeanSparseNet(banded(bare, x, width))
                if _accuracy(wider, x, y) < allowed:
                    break
                found = wider
        return found


def banded(bare: nn.Module, x: Tensor, width: float) -> list[nn.Module]:
    """Return the layers of a sequential model with a band before every ReLU.

    Args:
        x: inputs [b, *f] whose features are measured.
        width: of the bands, in standard deviations.
    """
    layers = list[nn.Module]()
    with torch.no_grad():
        for layer in bare.children():
            if isinstance(layer, nn.ReLU):
                axes = [i for i in range(x.ndim) if i != 1]
                mean, std = x.mean(axes, keepdim=True), x.std(axes, keepdim=True)
                layers.append(Band(mean, std, width))
            x = layer(x)
            layers.append(layer)
    return layers


def _accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((model(x).argmax(1) == y).float().mean())


class Winners(nn.Module):
    """The largest `share` of each input's features pass, the others are zero."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def least(self, f: Tensor) -> Tensor:
        """Return the smallest feature that passes, by input."""
        flat = f.flatten(1)
        k = max(1, round(self.share * flat.shape[1]))
        least: Tensor = flat.topk(k, dim=1, sorted=False).values.amin(1)
        return least.view(-1, *[1] * (f.ndim - 1))

    def forward(self, f: Tensor) -> Tensor:
        """[b, ...] -> the same."""
        return f * (f >= self.least(f))


class KWinnersNet(Masked):
    """A network whose activations are `Winners`."""

    noise: Tensor

    def __init__(self, net: nn.Module, noise: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("noise", noise)

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, k]."""
        logits: Tensor = self.net(x)
        return logits

    def experts(self) -> dict[str, Model]:
        """Soft thresholds; the mean logits over noise, whose gradient is of the smoothed model."""
        return {"soft": self._soft, "smoothed": self._smoothed}

    def _soft(self, x: Tensor) -> Tensor:
        for layer in self.net.children():
            if isinstance(layer, Winners):
                scale = x.detach().flatten(1).std(1).view(-1, *[1] * (x.ndim - 1))
                x = straight(layer(x), x * torch.sigmoid((x - layer.least(x)) / (0.2 * scale)))
            else:
                x = layer(x)
        return x

    def _smoothed(self, x: Tensor) -> Tensor:
        near = x + self.noise[:, None].to(x)
        logits: Tensor = self.net(near.flatten(0, 1))
        return logits.reshape(*near.shape[:2], -1).mean(0)


@mask("k_winners", "Xiao et al. 2020, arXiv:1905.10510")
@dataclass(frozen=True)
class KWinners(Mask):
    """Of every layer's features the largest fifth pass; adversarially trained.

    Differs from the paper: the share is fixed from the start of the training.
    """

    share: float = 0.2

    def network(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """The small CNN with winners in place of ReLU."""
        layers = small_cnn(shape, classes, self.width).children()
        return nn.Sequential(
            *(Winners(self.share) if isinstance(layer, nn.ReLU) else layer for layer in layers)
        )

    def wrap(self, bare: nn.Module, learned: nn.Module | None, data: Dataset) -> KWinnersNet:
        """Wear nothing: the network is the mask."""
        assert learned is not None
        drawn = torch.Generator().manual_seed(0)
        return KWinnersNet(learned, 0.02 * torch.randn(8, *data.shape, generator=drawn))
