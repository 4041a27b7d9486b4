"""Wrappers of the way back alone: forward they are the bare model, bit by bit.

Sources: shattered, exploding and vanishing gradients (Athalye et al. 2018, arXiv:1802.00420),
honeypots (Shan et al. 2020, arXiv:1904.08554), and slips seen in published code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.gauntlet.wrapper import Wrapper, wrapper


class Zeroed(torch.autograd.Function):
    """The identity, with a gradient of zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.zeros_like(grads[0])


class Flipped(torch.autograd.Function):
    """The identity, with the sign of the gradient turned around."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return -grads[0]


class Noisy(torch.autograd.Function):
    """The identity; the gradient drowns in noise 100 times its size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        return grad + 100 * grad.abs().mean() * torch.randn_like(grad)


class Vanishing(torch.autograd.Function):
    """The identity; the gradient is multiplied by 1e-60, below what float32 holds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * 1e-30 * 1e-30


@wrapper("zeroed", "gradients")
class ZeroedGradient(Wrapper):
    """A custom autograd function returns zero on the way back."""

    def forward(self, x: Tensor) -> Tensor:
        return self.smooth(Zeroed.apply(x))


@wrapper("flipped", "gradients")
class FlippedGradient(Wrapper):
    """A custom autograd function flips the sign of the gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return self.smooth(Flipped.apply(x))


@wrapper("noisy", "gradients")
class NoisyGradient(Wrapper):
    """A custom autograd function adds noise to the gradient, 100 times its size."""

    def forward(self, x: Tensor) -> Tensor:
        return self.smooth(Noisy.apply(x))


@wrapper("vanishing", "gradients")
class VanishingGradient(Wrapper):
    """A custom autograd function scales the gradient below the smallest float."""

    def forward(self, x: Tensor) -> Tensor:
        return self.smooth(Vanishing.apply(x))


@wrapper("hooked", "gradients")
class Hooked(Wrapper):
    """A tensor hook on the input's copy keeps a hundredth of the gradient's entries."""

    def forward(self, x: Tensor) -> Tensor:
        inner = x * 1
        if inner.requires_grad:
            inner.register_hook(_sparse)
        return self.smooth(inner)


@wrapper("detached", "gradients")
class Detached(Wrapper):
    """The input is detached; what gradient is left comes through a term that is always zero."""

    def forward(self, x: Tensor) -> Tensor:
        return self.smooth(x.detach()) + 0 * x.flatten(1).sum(1, keepdim=True)


@wrapper("no_grad", "gradients")
class NoGrad(Wrapper):
    """The forward pass runs under torch.no_grad: no gradient at all."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.smooth(x)


@wrapper("numpy", "gradients")
class Numpy(Wrapper):
    """The input takes a round trip through numpy."""

    def forward(self, x: Tensor) -> Tensor:
        array = x.detach().cpu().numpy().astype("float64")
        return self.smooth(torch.from_numpy(array).to(x))


@wrapper("not_a_number", "gradients")
class NotANumber(Wrapper):
    """A term that is zero forward and not a number backward: the root of a square at zero."""

    def forward(self, x: Tensor) -> Tensor:
        nothing = ((x - x.detach()) ** 2).sqrt()
        return self.smooth(x + nothing)


@wrapper("honeypot", "gradients")
class Honeypot(Wrapper):
    """The gradient is that of a decoy, a random linear model, and consistent from pass to pass."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.smooth(x.detach())
        flat = x.flatten(1)
        drawn = torch.Generator().manual_seed(0)
        weight = torch.randn(flat.shape[1], logits.shape[1], generator=drawn).to(x)
        decoy = flat @ weight
        return logits + (decoy - decoy.detach())


def _sparse(grad: Tensor) -> Tensor:
    place = torch.arange(grad[0].numel(), device=grad.device).reshape(grad.shape[1:])
    return grad * (place % 97 == 0)
