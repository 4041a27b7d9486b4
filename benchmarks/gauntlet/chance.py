"""Wrappers with randomness or hidden state; their randomness is torch's own, as in the wild.

Sources: random resizing and padding (Xie et al. 2018, arXiv:1711.01991), noise at inference (He et
al. 2019), stochastic activation pruning (Dhillon et al. 2018), random switching among networks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, interpolate, pad

from benchmarks.gauntlet.gradients import Flipped, Zeroed
from benchmarks.gauntlet.wrapper import Wrapper, split, wrapper


@wrapper("resize_pad", "randomness", truth="at most", moved=0.06, random=True)
class ResizePad(Wrapper):
    """Resized to as it is or one pixel less, then padded at a random side."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        less = int(torch.randint(2, ()))
        if not less:
            return self.smooth(x)
        small = interpolate(x, (height - 1, width - 1), mode="bilinear", align_corners=False)
        top, left = (int(torch.randint(2, ())) for _ in range(2))
        return self.smooth(pad(small, (left, 1 - left, top, 1 - top)))


@wrapper("input_noise", "randomness", truth="at most", moved=0.08, random=True)
class InputNoise(Wrapper):
    """Gaussian noise of 0.04 on every pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return self.smooth(x + 0.04 * torch.randn_like(x))


@wrapper("rounded_noise", "randomness", truth="at most", moved=0.08, random=True)
class RoundedNoise(Wrapper):
    """Dithering: noise, then rounding to 16 levels; no gradient, and no two passes alike."""

    def forward(self, x: Tensor) -> Tensor:
        return self.smooth((x * 15 + torch.rand_like(x) - 0.5).round() / 15)


@wrapper("dropout", "randomness", truth="at most", moved=0.02, random=True)
class Dropout(Wrapper):
    """A tenth of the last hidden layer's features dropped at every pass."""

    def __init__(self, bare: nn.Module) -> None:
        super().__init__(bare)
        self.body, self.head = split(bare, -1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(dropout(self.body(x), 0.1, training=True))
        return logits


@wrapper("permuted_channels", "randomness", random=True)
class PermutedChannels(Wrapper):
    """Hidden channels in random order and back in place; the order back is lost to the gradient."""

    def __init__(self, bare: nn.Module) -> None:
        super().__init__(bare)
        self.body, self.head = split(bare, 0)

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        order = torch.randperm(features.shape[1], device=x.device)
        mixed = features[:, order]
        back = mixed.detach()[:, order.argsort()]
        logits: Tensor = self.head(back + (mixed - mixed.detach()))
        return logits


@wrapper("random_scale", "randomness", random=True)
class RandomScale(Wrapper):
    """Logits times a random factor between 1e-3 and 1e3, drawn at every pass."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.smooth(x)
        return logits * 10 ** torch.empty_like(logits[:, :1]).uniform_(-3, 3)


@wrapper("shuffled_losers", "randomness", random=True)
class ShuffledLosers(Wrapper):
    """The leading logit stays; those of the other classes trade places at random."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.smooth(x)
        lead = logits.argmax(1, keepdim=True)
        losers = torch.arange(logits.shape[1], device=x.device).expand_as(logits)
        losers = losers[losers != lead].reshape(len(x), -1)
        drawn = losers.gather(1, torch.rand(losers.shape, device=x.device).argsort(1))
        return logits.scatter(1, losers, logits.gather(1, drawn))


@wrapper("random_copies", "randomness", random=True)
class RandomCopies(Wrapper):
    """One of three equal copies answers: true gradient, flipped, and none."""

    def forward(self, x: Tensor) -> Tensor:
        copy = int(torch.randint(3, ()))
        return self.smooth(x if copy == 0 else (Flipped, Zeroed)[copy - 1].apply(x))


@wrapper("alternating", "randomness", random=True)
class Alternating(Wrapper):
    """Hidden state: a counter flips the gradient at every other pass that has one."""

    count: Tensor

    def __init__(self, bare: nn.Module) -> None:
        super().__init__(bare)
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            self.count += 1
        return self.smooth(Flipped.apply(x) if int(self.count) % 2 else x)


@wrapper("fading", "randomness", random=True)
class Fading(Wrapper):
    """Hidden state: logits grow with every pass, until cross-entropy saturates."""

    count: Tensor

    def __init__(self, bare: nn.Module) -> None:
        super().__init__(bare)
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.smooth(x) * min(float(self.count), 1e4)
