"""Adversarial style augmentation: the mean and the contrast of images or features, moved to hurt.

Two forms: `advstyle` moves feature maps in training, `advstyle_image` moves the images themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustkit.core.parametric import STEPS, ParametricThreat
from robustkit.errors import UsageError
from robustkit.models.adversarial_training import frozen_weights
from robustkit.models.training import Recipe, Step
from robustkit.registry import defenses, read_threat

from ._net import OnNet

_BLOCKS = (2, 4)  # modules of `small_cnn` whose output is moved: the first two ReLUs
_ASCENTS, _SHARE, _MOST = 3, 0.1, 3.0
_SMALL = 1e-6  # added to variances

Move = Callable[[int, Tensor], Tensor]


@defenses.register("advstyle", cites="arXiv:2301.12643", against="style")
@dataclass(frozen=True)
class AdvStyle(OnNet):
    """Feature maps with noise on the mean and deviation of each channel, of adversarial strength.

    Zhang et al. 2023: f' = f̂ (σ + n₂ S_σ) + μ + n₁ S_μ with n ~ N(0, 1) for each image and
    channel; S rises three times along the gradient of the loss, then the network falls once. A pass
    of a block is left alone, moved by S, or moved by the deviations over the batch (DSU), a third
    each. Inactive at test time: the network is `small_cnn`, as for `undefended`.
    Differs from the paper: a step of S is a tenth of the deviation over the batch, along the sign
    of the gradient, and S stays below three of them; the released code bounds neither.

    Attributes:
        width: channels of the first convolution.
    """

    width: int = 16

    @property
    def recipe(self) -> Recipe:
        """Three passes: each costs what several of clean images do."""
        return Recipe(epochs=3)

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Mean loss of x [b, c, h, w] and y [b]; S is kept from step to step."""
        strengths = _Strengths(step)
        with frozen_weights(model):
            for _ in range(_ASCENTS):
                strengths.ascend(lambda move: F.cross_entropy(_passed(model, x, move), y))
        return F.cross_entropy(_passed(model, x, strengths.mixed), y)


@defenses.register("advstyle_image", cites="arXiv:2301.12643", against="style")
@dataclass(frozen=True)
class AdvStyleImage(OnNet):
    """Training on clean images and on the same in the style that hurts: CE(x) + CE(x').

    Zhong et al. 2022, in the box of a style threat model: two steps along the sign of the gradient,
    each of half the range, from a random style.
    Differs from the paper: its steps are bounded by their number alone.

    Attributes:
        threat: the styles, as `--threat` takes them.
        width: channels of the first convolution.
    """

    threat: str = "style:mean,scale"
    width: int = 16

    @property
    def recipe(self) -> Recipe:
        """Three passes: each costs what several of clean images do."""
        return Recipe(epochs=3)

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Mean loss of x [b, c, h, w] and y [b], half of it on the moved images."""
        threat = read_threat(self.threat)
        if not isinstance(threat, ParametricThreat):
            raise UsageError(
                f"advstyle_image: expected a threat with parameters, such as style:mean,scale, got "
                f"{self.threat}."
            )
        z = _moved(model, x, y, threat, step)
        return (F.cross_entropy(model(x), y) + F.cross_entropy(model(z), y)) / 2


def _moved(
    model: nn.Module, x: Tensor, y: Tensor, threat: ParametricThreat, step: Step, steps: int = 2
) -> Tensor:
    size = len(x), threat.size(x.shape[1:])
    place = torch.rand(size, generator=step.generator).to(x.device) * 2 - 1
    with frozen_weights(model):
        for _ in range(steps):
            theta = threat.values((place * STEPS).round().long()).requires_grad_()
            loss = F.cross_entropy(model(threat.images(x, theta)), y)
            (gradient,) = torch.autograd.grad(loss, theta)
            place = (place + 0.5 * gradient.sign().to(place.dtype)).clamp(-1, 1)
    return threat.made(x, (place * STEPS).round().long())


def _passed(model: nn.Module, x: Tensor, move: Move) -> Tensor:
    for number, part in enumerate(model.children()):
        x = part(x)
        if number in _BLOCKS:
            x = move(number, x)
    return x.float()


@dataclass
class _Strengths:
    """S of every block [2, c]: how far means, and deviations, are moved."""

    step: Step

    def ascend(self, loss: Callable[[Move], Tensor]) -> None:
        """Take one step up the loss, at a new draw."""
        held: dict[str, Tensor] = {}
        spread: dict[str, Tensor] = {}

        def move(number: int, f: Tensor) -> Tensor:
            key, spread_of = f"style{number}", _spread(f.detach())
            held[key] = self.step.memory.get(key, spread_of).clone().requires_grad_()
            spread[key] = spread_of
            return self._noisy(f, held[key])

        gradients = torch.autograd.grad(loss(move), list(held.values()))
        for (key, value), gradient in zip(held.items(), gradients, strict=True):
            risen = value.detach() + _SHARE * spread[key] * gradient.sign()
            self.step.memory[key] = torch.minimum(risen.clamp_min(0), _MOST * spread[key])

    def mixed(self, number: int, f: Tensor) -> Tensor:
        """Leave a block alone, move it by S, or by the deviations over the batch."""
        kind = int(torch.randint(3, (1,), generator=self.step.generator))
        if not kind:
            return f
        own = _spread(f.detach())
        return self._noisy(f, self.step.memory[f"style{number}"] if kind == 1 else own)

    def _noisy(self, f: Tensor, strength: Tensor) -> Tensor:
        draw = torch.randn(2, *f.shape[:2], generator=self.step.generator).to(f.device)
        mean, deviation = _statistics(f)
        moved = (draw * strength[:, None])[..., None, None]
        # f̂ (σ + n₂ S_σ) + μ + n₁ S_μ
        return f + (f - mean) / deviation * moved[1] + moved[0]


def _statistics(f: Tensor) -> tuple[Tensor, Tensor]:
    mean = f.mean((2, 3), keepdim=True)
    return mean, (f.var((2, 3), keepdim=True) + _SMALL).sqrt()


def _spread(f: Tensor) -> Tensor:
    """Return the deviation over the batch of means, and of deviations [2, c]."""
    return torch.stack([part.flatten(1).std(0) for part in _statistics(f)])
