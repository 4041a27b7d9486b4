"""A stack of noisy copies of an image at several resolutions, drawn at every pass."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn

from robustkit.core.rng import generator as keyed
from robustkit.errors import UsageError

_LUMA = (0.2989, 0.587, 0.114)
_LEVELS = 100


class MultiResolution(nn.Module):
    """Every image as v copies: jittered, blurred to a lower resolution, noisy. [0, 1] in and out.

    Fort & Lakshminarayanan 2024 and the notebook of its authors. For every image and copy, with
    draws of its own: contrast, shift with wrap-around, mix with the mean of the channels, bicubic
    to the copy's resolution, noise there, bicubic back, noise again, clip. All of it is
    differentiable in the image.

    Differs from the paper: contrast is a factor of its own (the notebook overwrites it with the
    color factor), and the draws come from a generator. As in the notebook, and unlike the text,
    noise is uniform on [0, `noise`], so that it brightens the image by `noise` / 2 on average.

    Without a generator, pass number `calls` draws from (`seed`, `calls`): a deep copy goes on with
    the same numbers as its original.

    Attributes:
        resolutions: side of every copy as a fraction of the image's side; sides are rounded up.
        jitter: largest shift along either axis, in pixels.
        contrast: smallest and largest factor.
        color: smallest and largest weight of the colors against their mean.
        noise: largest value added to a pixel, in input units.
        seed: of the draws without a generator.
        calls: passes so far without a generator.

    Raises:
        UsageError: for options out of range.
    """

    def __init__(
        self,
        resolutions: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125),
        jitter: int = 3,
        contrast: tuple[float, float] = (0.7, 1.5),
        color: tuple[float, float] = (0.5, 1.0),
        noise: float = 0.2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not resolutions or not all(0 < r <= 1 for r in resolutions):
            raise UsageError(
                f"resolutions: expected fractions of the image's side above 0 and up to 1, got "
                f"{resolutions}. Write 0.5 for half of it."
            )
        if jitter < 0 or not (noise >= 0 and math.isfinite(noise)):
            raise UsageError(
                f"expected jitter and noise of 0 or more, got jitter={jitter}, noise={noise}. "
                "Use 0 to switch one off."
            )
        for name, (low, high) in (("contrast", contrast), ("color", color)):
            if not 0 <= low <= high < math.inf:
                raise UsageError(
                    f"{name}: expected two factors from 0 up, the smaller first, got "
                    f"{(low, high)}. Write (1.0, 1.0) to switch it off."
                )
        self.resolutions, self.jitter, self.noise = resolutions, jitter, noise
        self.contrast, self.color = contrast, color
        self.seed, self.calls = seed, 0

    def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """[b, c, h, w] -> [b, v · c, h, w], copy after copy; `generator` lives on the CPU."""
        if generator is None:
            generator = keyed(self.seed, 2, self.calls)
            self.calls += 1
        draws = torch.rand(len(x), sum(self._sizes(x)), generator=generator)
        draws = draws.to(x.device, x.dtype)
        settings = draws[:, : 4 * len(self.resolutions)].view(len(x), -1, 4)
        contrast, color = (
            _choice(settings[..., place], limits)[..., None, None, None]
            for place, limits in enumerate((self.contrast, self.color))
        )
        varied = _contrasted(x[:, None], contrast)
        if x.shape[1] > 1:  # of a single channel the mean is the channel
            varied = color * varied + (1 - color) * varied.mean(2, keepdim=True)
        turns = ((2 * self.jitter + 1) * settings[..., 2:]).floor().long()
        return self._stack(varied, turns, draws)

    def fixed(self, x: Tensor) -> Tensor:
        """Return the deterministic stack: no shift, factors 1, noise at its mean."""
        copies = len(self.resolutions)
        varied = x.clamp(0, 1)[:, None].expand(-1, copies, -1, -1, -1)
        still = torch.full((len(x), copies, 2), self.jitter, device=x.device)
        return self._stack(varied, still, x.new_full((1, sum(self._sizes(x))), 0.5))

    def _sides(self, x: Tensor) -> list[tuple[int, int]]:
        height, width = x.shape[-2:]
        return [(math.ceil(height * r), math.ceil(width * r)) for r in self.resolutions]

    def _sizes(self, x: Tensor) -> list[int]:
        """Random numbers per image: for its factors, and for the two noises of every copy."""
        channels, height, width = x.shape[-3:]
        low = [channels * h * w for h, w in self._sides(x)]
        return [4 * len(low), *low, *[channels * height * width] * len(low)]

    def _stack(self, varied: Tensor, turns: Tensor, draws: Tensor) -> Tensor:
        """Shift, resize and add noise to copies [b, v, c, h, w]; shifts are turns − `jitter`."""
        copies, channels, height, width = varied.shape[1:]
        ends = torch.tensor([0, *self._sizes(varied)]).cumsum(0).tolist()
        noises = [self.noise * draws[:, a:b] for a, b in pairwise(ends[1:])]
        stack = []
        # In 16 bits these products would round the image itself.
        with torch.autocast(varied.device.type, enabled=False):
            for i, (h, w) in enumerate(self._sides(varied)):
                # Shift and resizing are linear along each axis: one product for both of them.
                rows, columns = (
                    _shrinking(side, small, self.jitter, draws.device, draws.dtype)[turn][:, None]
                    for side, small, turn in (
                        (height, h, turns[:, i, 0]),
                        (width, w, turns[:, i, 1]),
                    )
                )
                low = rows @ varied[:, i] @ columns.mT + noises[i].view(-1, channels, h, w)
                if (h, w) != (height, width):
                    low = _resizing(h, height, low.device, low.dtype) @ low
                    low = low @ _resizing(w, width, low.device, low.dtype).mT
                stack.append(low + noises[copies + i].view(-1, channels, height, width))
            return torch.cat(stack, dim=1).clamp(0, 1)


def _choice(uniform: Tensor, limits: tuple[float, float]) -> Tensor:
    """Map uniform numbers to 100 evenly spaced levels from limit to limit, as in the notebook."""
    low, high = limits
    return low + (high - low) * (_LEVELS * uniform).floor() / (_LEVELS - 1)


def _contrasted(x: Tensor, factor: Tensor) -> Tensor:
    """Move [b, 1, c, h, w] from or to its mean brightness, clipped as torchvision does."""
    if x.shape[2] == len(_LUMA):
        gray = (x.mean((3, 4), keepdim=True) * x.new_tensor(_LUMA).view(-1, 1, 1)).sum(2, True)
    else:
        gray = x.mean((2, 3, 4), keepdim=True)
    return (factor * x + (1 - factor) * gray).clamp(0, 1)


@lru_cache
def _resizing(before: int, after: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return bicubic resizing along one axis as a matrix [after, before]."""
    with torch.inference_mode(False), torch.no_grad():
        columns = torch.eye(before, device=device, dtype=dtype)[None, None]
        return nn.functional.interpolate(columns, (after, before), mode="bicubic")[0, 0]


@lru_cache
def _shrinking(
    side: int, small: int, jitter: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return resizing after a shift with wrap-around by −jitter to jitter [2j + 1, small, side]."""
    with torch.inference_mode(False):
        matrix, places = _resizing(side, small, device, dtype), torch.arange(side, device=device)
        turned = [matrix[:, (places + shift) % side] for shift in range(-jitter, jitter + 1)]
        return torch.stack(turned)
