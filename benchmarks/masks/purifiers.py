"""Masks before the network: what an adversary adds is to be taken out again."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import mse_loss, pixel_shuffle, pixel_unshuffle
from torch.utils.checkpoint import checkpoint

from benchmarks.masks.mask import Mask, Masked, mask, mean_probability, one_hot_vote, straight
from robustkit.core.types import Model
from robustkit.data.dataset import Dataset
from robustkit.models.training import Step


class Denoiser(nn.Module):
    """Predicts the noise in an image from the image and the noise's size; at half resolution."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        inner = 4 * channels
        self.layers = nn.Sequential(
            nn.Conv2d(inner + 1, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, inner, 3, padding=1),
        )

    def forward(self, x: Tensor, size: Tensor) -> Tensor:
        """Images [b, c, h, w] with noise of standard deviation `size` [b] -> clean ones."""
        halved = pixel_unshuffle(x, 2)
        told = size.view(-1, 1, 1, 1).expand(-1, 1, *halved.shape[2:])
        noise = pixel_shuffle(self.layers(torch.cat([halved, told], 1)), 2)
        return x - size.view(-1, 1, 1, 1) * noise


@dataclass(frozen=True)
class Purifier(Mask):
    """A mask that denoises the input of the bare model.

    Attributes:
        least, most: standard deviation of the noise that its network learns to remove.
    """

    least: float = 0.02
    most: float = 0.4

    def network(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """The denoiser."""
        return Denoiser(shape[0], self.width)

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Squared error of the image, in units of the noise."""
        drawn = torch.rand(len(x), generator=step.generator)
        size = (self.least * (self.most / self.least) ** drawn).to(x)
        noise = torch.randn(x.shape, generator=step.generator).to(x)
        spread = size.view(-1, 1, 1, 1)
        return mse_loss(model(x + spread * noise, size) / spread, x / spread)


class DenoisedNet(Masked):
    """A classifier of denoised images."""

    def __init__(self, bare: nn.Module, denoiser: nn.Module, size: float) -> None:
        super().__init__()
        self.bare, self.denoiser, self.size = bare, denoiser, size

    def purify(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> images in [0, 1]; twice through the denoiser."""
        for _ in range(2):
            x = self.denoiser(x, x.new_full((len(x),), self.size)).clamp(0, 1)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, k]."""
        logits: Tensor = self.bare(self.purify(x))
        return logits

    def experts(self) -> dict[str, Model]:
        """The classifier behind the identity; behind the purifier, with the identity's gradient."""
        return {"bare": self.bare, "straight": lambda x: self.bare(straight(self.purify(x), x))}


@mask("denoiser", "Meng & Chen 2017, arXiv:1705.09064")
@dataclass(frozen=True)
class Denoised(Purifier):
    """A denoising autoencoder before the bare model.

    Differs from the paper: no detector, and the classifier is adversarially trained.
    """

    size: float = 0.1

    def wrap(self, bare: nn.Module, learned: nn.Module | None, data: Dataset) -> DenoisedNet:
        """Put the denoiser before the bare model."""
        assert learned is not None
        return DenoisedNet(bare, learned, self.size)


class DiffusionNet(Masked):
    """A classifier of images that were noised and denoised in many steps; draws vote.

    The noise of every draw is fixed, so that the model answers alike twice.
    """

    noise: Tensor

    def __init__(self, bare: nn.Module, denoiser: nn.Module, noise: Tensor,
                 sizes: list[float]) -> None:  # fmt: skip
        super().__init__()
        self.bare, self.denoiser, self.sizes = bare, denoiser, sizes
        self.register_buffer("noise", noise)  # [steps + 1, v, c, h, w]

    def draws(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> the logits of every draw [v, b, k].

        Steps are checkpointed: the backward pass runs them again instead of storing them.
        """
        v, b = self.noise.shape[1], len(x)
        z = (x + self.sizes[0] * self.noise[0][:, None]).flatten(0, 1)
        for step in range(len(self.sizes) - 1):
            if torch.is_grad_enabled():
                z = checkpoint(self._reverse, z, step, use_reentrant=False)
            else:
                z = self._reverse(z, step)
        logits: Tensor = self.bare(z.clamp(0, 1))
        return logits.reshape(v, b, logits.shape[1])

    def _reverse(self, z: Tensor, step: int) -> Tensor:
        """One ancestral step from the noise of one size to that of the next."""
        now, after = self.sizes[step : step + 2]
        clean = self.denoiser(z, z.new_full((len(z),), now))
        fresh = after * (1 - (after / now) ** 2) ** 0.5
        kept = (after**2 - fresh**2) ** 0.5
        noise = self.noise[step + 1][:, None].expand(-1, len(z) // self.noise.shape[1], -1, -1, -1)
        ancestral: Tensor = clean + kept * (z - clean) / now + fresh * noise.flatten(0, 1)
        return ancestral

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> shares of votes [b, k]."""
        return one_hot_vote(self.draws(x))

    def experts(self) -> dict[str, Model]:
        """The mean probability over the draws, through every step; the bare model."""
        return {"mean": lambda x: mean_probability(self.draws(x)), "bare": self.bare}


@mask("diffusion", "Nie et al. 2022, arXiv:2205.07460")
@dataclass(frozen=True)
class Diffusion(Purifier):
    """Noised, and denoised in `steps` ancestral steps; the majority of `votes` draws decides.

    Differs from the paper: a small network, steps of a discrete sampler, the same draws at every
    pass.
    """

    steps: int = 10
    votes: int = 3
    start: float = 0.2

    def wrap(self, bare: nn.Module, learned: nn.Module | None, data: Dataset) -> DiffusionNet:
        """Fix the noise of all draws."""
        assert learned is not None
        drawn = torch.Generator().manual_seed(0)
        noise = torch.randn(self.steps, self.votes, *data.shape, generator=drawn)
        falling = [self.start * (self.least / self.start) ** (i / (self.steps - 1))
                   for i in range(self.steps)]  # fmt: skip
        return DiffusionNet(bare, learned, torch.cat([noise, noise[:1]]), [*falling, 0.0])


class JpegNet(Masked):
    """A classifier of compressed images; Pillow compresses them, outside of autograd."""

    def __init__(self, bare: nn.Module, quality: int) -> None:
        super().__init__()
        self.bare, self.quality = bare, quality

    def compress(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> the same, compressed and read again."""
        pixels = (x.detach() * 255).round().byte().cpu().permute(0, 2, 3, 1).numpy()
        read = np.stack([_round_trip(image, self.quality) for image in pixels])
        return torch.from_numpy(read).view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2).to(x) / 255

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, k]."""
        logits: Tensor = self.bare(self.compress(x))
        return logits

    def experts(self) -> dict[str, Model]:
        """The bare model; compression with the identity's gradient."""
        return {"straight": partial(self._straight), "bare": self.bare}

    def _straight(self, x: Tensor) -> Tensor:
        logits: Tensor = self.bare(straight(self.compress(x), x))
        return logits


def _round_trip(image: Any, quality: int) -> Any:
    """Compress pixels [h, w, c] and read them again [h, w, c]."""
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
        buffer, "JPEG", quality=quality
    )
    return np.asarray(Image.open(buffer)).reshape(image.shape)


@mask("behind_jpeg", "Das et al. 2017, arXiv:1705.02900", learns=False)
@dataclass(frozen=True)
class BehindJpeg(Mask):
    """The bare model behind JPEG compression at `quality`, by Pillow."""

    quality: int = 60

    def wrap(self, bare: nn.Module, learned: nn.Module | None, data: Dataset) -> JpegNet:
        """Put the compression before the bare model."""
        return JpegNet(bare, self.quality)
