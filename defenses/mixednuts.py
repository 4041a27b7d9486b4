"""MixedNUTS: a nonlinear map of the robust network's logits, fitted on a grid, not trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from robustkit.core.losses import margin
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels, Logits, Model, Scalars
from robustkit.data.dataset import Dataset
from robustkit.errors import RobustkitError, UsageError
from robustkit.models.adversarial_training import perturb
from robustkit.models.load import load_model
from robustkit.models.mixture import mix, two_sided
from robustkit.models.surrogates.resolve import Joint
from robustkit.registry import defenses

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
_BATCH = 250
_RESOLVED = 1e-4  # the least cutoff whose effect float32 log-probabilities show


class NonlinearMap(nn.Module):
    """M(z) = s · |GELU(LN(z) + c)|^p · sign(GELU(LN(z) + c)), [b, k] -> [b, k] in float64.

    LN subtracts the mean of the `top` largest logits and divides by their standard deviation
    (unbiased). The numbers s, c, p and the mixture's alpha are buffers, and so the checkpoint; they
    start at those that arXiv:2402.02263 gives for CIFAR-10.
    """

    s: Tensor
    c: Tensor
    p: Tensor
    alpha: Tensor

    def __init__(self, top: int = 250) -> None:
        super().__init__()
        self.top = top
        for name, value in (("s", 5.0), ("c", -1.1), ("p", 4.0), ("alpha", 0.99875006)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))

    def forward(self, logits: Tensor) -> Tensor:
        """Apply the map."""
        return self.bent(self.normalized(logits), self.s, self.c, self.p)

    def normalized(self, logits: Logits) -> Tensor:
        """LN(z) [b, k] in float64."""
        z = logits.double()
        top = z.topk(min(self.top, z.shape[1]), dim=1).values
        return (z - top.mean(1, keepdim=True)) / (top.var(1, keepdim=True) + 1e-8).sqrt()

    @staticmethod
    def bent(normalized: Tensor, s: Tensor, c: Tensor, p: Tensor) -> Tensor:
        """Map normalized logits [b, k]."""
        u = nn.functional.gelu(normalized + c)
        # The minimum keeps the gradient finite at 0 where p < 1.
        return s * u.abs().clamp_min(1e-12).pow(p) * u.sign()


class NonlinearlyMixed(nn.Module):
    """log((1 − alpha) onehot(argmax g) + alpha softmax(M(h))), [b, *f] -> [b, k].

    Among equal logits of g, argmax is the first. One-hot codes have no gradient, so that only h
    passes one. Surrogates: "bypass", the authors' own, log((1 − d) softmax(g) + 0.9 d softmax(h) +
    0.1 d softmax(M(h))) with d = `bypass`; "two_sided": see `robustkit.models.mixture.two_sided`.
    """

    def __init__(
        self, standard: nn.Module, robust: nn.Module, bend: NonlinearMap, bypass: float
    ) -> None:
        super().__init__()
        self.standard = standard.eval()
        self.robust = robust.eval()
        self.map, self.bypass = bend, bypass

    def train(self, mode: bool = True) -> NonlinearlyMixed:
        """Keep both networks in evaluation mode."""
        super().train(mode)
        self.standard.eval()
        self.robust.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """[b, *f] -> log-probabilities [b, k]."""
        return self._mixed(self.standard(x), self.robust(x))

    def surrogates(self) -> dict[str, Model]:
        """Return the surrogates, [b, *f] -> [b, k] each."""
        return {"bypass": Joint(self._bypass), "two_sided": Joint(self._two_sided)}

    def _mixed(self, g: Logits, h: Logits) -> Logits:
        chosen = nn.functional.one_hot(g.argmax(1), g.shape[1])
        return mix(chosen, self.map(h).softmax(1), self.map.alpha)

    def _bypass(self, x: Images) -> tuple[Logits, Logits]:
        g, h = self.standard(x), self.robust(x)
        h_probs = 0.9 * h.double().softmax(1) + 0.1 * self.map(h).softmax(1)
        climbed = mix(g.double().softmax(1), h_probs, self.bypass)
        return climbed, self._mixed(g.detach(), h.detach())

    def _two_sided(self, x: Images) -> tuple[Logits, Logits]:
        g, h = self.standard(x), self.robust(x)
        climbed = two_sided(g, h, self.map(h).softmax(1), float(self.map.alpha))
        return climbed, self._mixed(g.detach(), h.detach())


@defenses.register("mixednuts", cites="arXiv:2402.02263")
@dataclass(frozen=True)
class MixedNuts:
    """The standard network's class wherever the margin of the mapped robust network is small, linf.

    Bai et al. 2024. s, c and p minimize, over a grid, the share of h's misclassified clean images
    whose margin reaches the cutoff q: the margin that `beta` percent of the images exceed that h
    still classifies right under attack. alpha = 1 / (1 + q).
    Differs from the paper: the attacked images come from a PGD on h's margin of logits instead
    of minimum-margin AutoAttack; the grid is narrower in c, for ten classes.

    Attributes:
        standard: the accurate model, such as undefended or "path/to/model.py:make".
        robust: the robust model.
        eps: radius of the attack that the numbers are fitted under.
        beta: percentage.
        bypass: weight of h in the surrogate "bypass".
    """

    standard: str = "undefended"
    robust: str = "pgd_at"
    eps: Positive = 0.1
    beta: Annotated[float, Field(gt=0, lt=100)] = 98.5
    steps: Annotated[int, Field(ge=1)] = 20
    restarts: Annotated[int, Field(ge=1)] = 2
    bypass: Share = 0.95

    def load(self, data: Dataset) -> nn.Module:
        """Load both networks, with a map that is not fitted yet."""
        standard = load_model(self.standard, data=data).model
        robust = load_model(self.robust, data=data).model
        return NonlinearlyMixed(standard, robust, NonlinearMap(), self.bypass)

    def learned(self, model: nn.Module) -> nn.Module | None:
        """Return the map."""
        return _mixture(model).map

    def calibrate(self, model: nn.Module, x: Images, y: Labels, generator: Generator) -> None:
        """Fit s, c, p and alpha of the map in `model` on clean points `x` [b, *f].

        Raises:
            RobustkitError: when the robust network misclassifies no clean point, or is robust on
                none.
        """
        mixed = _mixture(model)
        clean, attacked = self._answers(mixed.robust, x, y, generator)
        wrong = clean.argmax(1) != y
        right = margin(attacked, y, y) < 0
        if not bool(wrong.any()) or not bool(right.any()):
            raise RobustkitError(
                "cannot fit: expected points that the robust network misclassifies clean and "
                f"others that it classifies right under attack, got {int(wrong.sum())} and "
                f"{int(right.sum())} of {len(y)}. Calibrate on more points."
            )
        fit(mixed.map, attacked[right], clean[wrong], self.beta)

    def _answers(
        self, robust: nn.Module, x: Images, y: Labels, generator: Generator
    ) -> tuple[Logits, Logits]:
        """Return the robust network's logits at clean and at attacked points [b, k]."""
        clean, attacked = [], []
        for points, labels in zip(x.split(_BATCH), y.split(_BATCH), strict=True):
            with torch.no_grad():
                clean.append(robust(points))
            attacked.append(self._worst(robust, points, labels, clean[-1], generator))
        return torch.cat(clean), torch.cat(attacked)

    def _worst(
        self, robust: nn.Module, x: Images, y: Labels, clean: Logits, generator: Generator
    ) -> Logits:
        """Return the logits [b, k] of largest margin over the clean point and all PGD restarts."""

        def loss(logits: Tensor) -> Tensor:
            return margin(logits, y, y).sum()

        threat, worst = Threat("linf", self.eps), clean
        for _ in range(self.restarts):
            z = perturb(robust, x, loss, threat, steps=self.steps, generator=generator)
            with torch.no_grad():
                found = robust(z)
            worse = margin(found, y, y) > margin(worst, y, y)
            worst = torch.where(worse[:, None], found, worst)
        return worst


def fit(bend: NonlinearMap, right: Logits, wrong: Logits, beta: float) -> None:
    """Set the numbers of `bend` to the best of an 8 × 8 × 8 grid; among equals, the first.

    Args:
        right: robust logits at attacked points that are still right [a, k].
        wrong: robust logits at clean points that are misclassified [b, k].
        beta: percentage of `right` whose margin is to reach the cutoff.

    Raises:
        RobustkitError: when every cutoff is too small for logits in float32.
    """
    right, wrong = bend.normalized(right), bend.normalized(wrong)
    steps = torch.linspace(0, 1, 8, dtype=torch.float64, device=right.device)
    grid = torch.cartesian_prod(0.05 * 100**steps, -2 + 2 * steps, 1 + 3 * steps)
    best = math.inf
    for s, c, p in grid:
        # p_mix decides for h exactly where its lead exceeds (1 − alpha) / alpha, which is q for
        # alpha = 1 / (1 + q).
        cutoff = torch.quantile(_lead(bend.bent(right, s, c, p)), 1 - beta / 100)
        if cutoff < _RESOLVED:
            continue
        lost = float((_lead(bend.bent(wrong, s, c, p)) >= cutoff).double().mean())
        if lost < best:
            best = lost
            for name, value in (("s", s), ("c", c), ("p", p), ("alpha", 1 / (1 + cutoff))):
                getattr(bend, name).copy_(value)
    if best == math.inf:
        raise RobustkitError(
            f"cannot fit: under attack, {100 - beta:g}% of the robust network's margins are below "
            f"{_RESOLVED:g} with every map. Take a more robust network, or a smaller beta."
        )


def _lead(logits: Tensor) -> Scalars:
    """First minus second probability [b]."""
    top = logits.softmax(1).topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def _mixture(model: nn.Module) -> NonlinearlyMixed:
    if not isinstance(model, NonlinearlyMixed):
        raise UsageError(f"expected the mixture that load returns, got a {type(model).__name__}")
    return model
