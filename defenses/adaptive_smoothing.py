"""Adaptive Smoothing: an accurate and a robust network, mixed by a gate that is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from robustkit.core.losses import ce, margin
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels, Scalars, per_point
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError
from robustkit.models.load import load_model
from robustkit.models.mixture import Mixed
from robustkit.models.training import Recipe, Step
from robustkit.registry import defenses

from ._gate import gate_for

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


@defenses.register("adaptive_smoothing", cites="arXiv:2301.12554")
@dataclass(frozen=True)
class AdaptiveSmoothing:
    """Probabilities of a standard and a robust network, mixed by a trained gate, linf.

    log((1 − a) softmax(std_scale · g) + a softmax(rob_scale · h)), Bai et al. 2024. The gate
    alone is trained, to classify images as attacked (t = 1) or clean (t = 0), with the loss
    bce · BCE(gamma, t) + ce · CE + product · BCE · CE; a = sigmoid(gamma) in training.
    Differs from the paper: half of a batch stays clean and half is attacked, by a short PGD with
    momentum on CE or the margin instead of APGD with ten objectives; the gate is in evaluation mode
    while it is attacked; AdamW with a cosine schedule, shorter; a smaller gate.

    Attributes:
        standard: the accurate model, such as undefended or "path/to/model.py:make".
        robust: the robust model.
        adaptive: whether a gate decides; else a is `alpha` everywhere and nothing is trained.
        gamma_scale: with `gamma_bias`, applied to the normalized output of the gate.
        alpha_scale: with `alpha_bias`, maps the gate's sigmoid to the range of a in evaluation.
        eps: largest radius of the attacks in training is 1.1 times this.
        trick: largest weight of fooling the gate in the objective of an attack.
    """

    standard: str = "undefended"
    robust: str = "pgd_at"
    adaptive: bool = True
    alpha: Share = 0.85
    std_scale: Positive = 2.0
    rob_scale: Positive = 1.0
    gamma_scale: Positive = 2.0
    gamma_bias: float = 1.0
    alpha_scale: Share = 0.15
    alpha_bias: Share = 0.8
    eps: Positive = 0.1
    steps: Annotated[int, Field(ge=1)] = 5
    trick: Share = 0.4
    bce: float = 1.0
    ce: float = 0.5
    product: float = 0.1
    width: Annotated[int, Field(ge=1)] = 24

    @property
    def recipe(self) -> Recipe:
        """Two epochs: the gate is small."""
        return Recipe(epochs=2, lr=1e-3)

    @property
    def trained(self) -> bool:
        """Whether there is a gate, which needs weights."""
        return self.adaptive

    def load(self, data: Dataset) -> nn.Module:
        """Load both networks and put an untrained gate beside them."""
        standard = load_model(self.standard, data=data).model
        robust = load_model(self.robust, data=data).model
        gate = None
        if self.adaptive:
            gate = gate_for(
                standard,
                robust,
                data.shape,
                width=self.width,
                scale=self.gamma_scale,
                bias=self.gamma_bias,
            )
        return Mixed(
            standard,
            robust,
            alpha=None if self.adaptive else self.alpha,
            gate=gate,
            std_scale=self.std_scale,
            rob_scale=self.rob_scale,
            alpha_scale=self.alpha_scale,
            alpha_bias=self.alpha_bias,
        )

    def learned(self, model: nn.Module) -> nn.Module | None:
        """Return the gate."""
        return _mixture(model).gate

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Weighted BCE of the gate and CE of the mixture, on clean and attacked halves.

        Raises:
            UsageError: for a mixture without a gate.
        """
        mixed = _mixture(model)
        half = len(x) // 2
        if mixed.gate is None:
            raise UsageError("expected adaptive=true to train: a constant alpha learns nothing.")
        mixed.eval()  # the mixture is attacked as it is evaluated
        z = self._attacked(mixed, x[half:], y[half:], step.generator)
        mixed.train()
        target = (torch.arange(len(x), device=x.device) >= half).to(x.dtype)
        logits, gamma = mixed.gated(torch.cat([x[:half], z]))
        gate = nn.functional.binary_cross_entropy_with_logits(gamma, target, reduction="none")
        error = nn.functional.cross_entropy(logits, y, reduction="none")
        return (self.bce * gate + self.ce * error + self.product * gate * error).mean()

    def _attacked(self, model: Mixed, x: Images, y: Labels, generator: Generator) -> Images:
        """Maximize (1 − w) · loss + w · BCE(gamma, 1) over a ball with its own radius per point."""
        threat = Threat("linf", self.eps)
        eps = self.eps * self._uniform(x, 0.4, 1.1, generator)
        weight = self._uniform(x, 0.0, self.trick, generator)
        decay, coin = torch.rand(2, generator=generator).tolist()
        loss = ce if coin < 0.5 else margin
        noise = torch.rand(x.shape, generator=generator).to(x) * 2 - 1
        z = threat.project(x + per_point(eps, x) * noise, x, eps)
        velocity = torch.zeros_like(x)
        for _ in range(self.steps):
            z.requires_grad_(True)
            logits, gamma = model.gated(z)
            # BCE(gamma, 1): maximized where the gate takes the attacked image for a clean one.
            fooled = nn.functional.softplus(-gamma)
            value = (1 - weight) * loss(logits, y, y) + weight * fooled
            (gradient,) = torch.autograd.grad(value.sum(), z)
            with torch.no_grad():
                # Normalized before it is accumulated, as gradients shrink where the softmax
                # saturates.
                size = gradient.abs().flatten(1).mean(1).clamp_min(1e-30)
                velocity = 0.9 * decay * velocity + gradient / per_point(size, x)
                move = per_point(2.5 * eps / self.steps, x) * threat.steepest(velocity)
                z = threat.project(z.detach() + move, x, eps)
        return z.detach()

    @staticmethod
    def _uniform(x: Images, low: float, high: float, generator: Generator) -> Scalars:
        return low + (high - low) * torch.rand(len(x), generator=generator).to(x)


def _mixture(model: nn.Module) -> Mixed:
    if not isinstance(model, Mixed):
        raise UsageError(f"expected the mixture that load returns, got a {type(model).__name__}")
    return model
