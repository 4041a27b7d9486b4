"""CrossMax: predictors aggregated by a rule under which no single one can raise a class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias, get_args

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from robustkit.core.types import Model
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError
from robustkit.models.adversarial_training import ramp
from robustkit.models.load import load_model
from robustkit.models.surrogates.resolve import Joint
from robustkit.models.training import Recipe, Step
from robustkit.registry import defenses

from ._multires import MultiResolution

Rule: TypeAlias = Literal["kth", "median"]
_POOLED = 4


def crossmax(z: Tensor, rule: Rule = "kth", top: int = 3) -> Tensor:
    """Aggregate the logits of n predictors [b, n, k] to [b, k].

    Fort & Lakshminarayanan 2024, algorithm 1: subtract every predictor's largest logit, then every
    class's largest over the predictors, then take per class the value of rank `top` (the smallest
    one where there are fewer predictors) or the median (the middle of two for an even n).

    The gradient of one output reaches at most four logits under "kth": the selected one, the
    largest of its predictor, the largest of its class, and that one's predictor's largest.

    Raises:
        UsageError: for logits of another shape, an unknown rule or a rank below 1.
    """
    if z.ndim != 3 or not z.shape[1]:
        raise UsageError(
            f"crossmax: expected logits [b, n, k] of n >= 1 predictors, got {list(z.shape)}. "
            "Stack the predictors along axis 1."
        )
    if rule not in get_args(Rule) or top < 1:
        raise UsageError(
            f"crossmax: expected rule 'kth' with top >= 1, or 'median', got {rule!r} and top={top}."
        )
    # First per predictor, so that none dominates by its scale; then per class, so that none wins by
    # a single predictor.
    z = z - z.max(dim=2, keepdim=True).values
    z = z - z.max(dim=1, keepdim=True).values
    n = z.shape[1]
    if rule == "median":
        ordered = z.sort(dim=1).values
        return (ordered[:, (n - 1) // 2] + ordered[:, n // 2]) / 2
    return z.topk(min(top, n), dim=1).values[:, -1]


def _mean_and_own(z: Tensor, rule: Rule, top: int) -> tuple[Tensor, Tensor]:
    """Return the mean of the predictors' logits [b, n, k], and the model's own: both [b, k]."""
    return z.mean(1), crossmax(z.detach(), rule, top)


class Block(nn.Module):
    """Two 3 × 3 convolutions with batch normalization, and a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut = (
            nn.Identity()
            if (before, stride) == (after, 1)
            else nn.Conv2d(before, after, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[b, before, h, w] -> [b, after, ceil(h / stride), ceil(w / stride)]."""
        joined: Tensor = (self.shortcut(x) + self.body(x)).relu()
        return joined


class SelfEnsemble(nn.Module):
    """A residual backbone on the multi-resolution stack, with a head on each of its five blocks.

    Predictors are the heads, from the shallowest on, and the backbone's own output last: n = 6.
    Logits are random in every mode; see `MultiResolution` for where the draws come from.
    """

    randomized = True
    draws_per_image = True  # so that repeated passes may go through as one batch

    def __init__(
        self,
        stack: MultiResolution,
        shape: tuple[int, int, int],
        classes: int,
        width: int,
        rule: Rule,
        top: int,
    ) -> None:
        super().__init__()
        self.stack, self.rule, self.top = stack, rule, top
        plan = [(width, 1), (2 * width, 2), (2 * width, 1), (4 * width, 2), (4 * width, 1)]
        self.stem = nn.Sequential(
            nn.Conv2d(len(stack.resolutions) * shape[0], width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.blocks, self.heads = nn.ModuleList(), nn.ModuleList()
        before, sides = width, [math.ceil(side / 2) for side in shape[1:]]
        for after, stride in plan:
            self.blocks.append(Block(before, after, stride))
            before, sides = after, [math.ceil(side / stride) for side in sides]
            pooled = (min(_POOLED, sides[0]), min(_POOLED, sides[1]))
            flat = after * pooled[0] * pooled[1]
            self.heads.append(
                nn.Sequential(
                    nn.AdaptiveAvgPool2d(pooled),
                    nn.Flatten(),
                    nn.BatchNorm1d(flat),
                    nn.Linear(flat, classes),
                )
            )
        self.fc = nn.Linear(before, classes)

    def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """[b, c, h, w] -> [b, k]: the predictors aggregated by CrossMax."""
        return crossmax(self.predictors(x, generator), self.rule, self.top)

    def predictors(
        self,
        x: Tensor,
        generator: Generator | None = None,
        *,
        fixed: bool = False,
        detached: bool = False,
    ) -> Tensor:
        """Return the raw logits of every predictor [b, n, k].

        Args:
            x: images [b, c, h, w].
            generator: of the stack's draws; without one the stack numbers its passes.
            fixed: use the deterministic stack.
            detached: stop the gradient of the heads at the backbone.
        """
        maps = self._maps(self.stack.fixed(x) if fixed else self.stack(x, generator))
        read = [m.detach() for m in maps] if detached else maps
        heads = [head(m) for head, m in zip(self.heads, read, strict=True)]
        return torch.stack([*heads, self.fc(maps[-1].mean((2, 3)))], dim=1)

    def backbone(
        self, x: Tensor, generator: Generator | None = None, *, fixed: bool = False
    ) -> Tensor:
        """Return the logits of the backbone's own output [b, k]; arguments as in `predictors`."""
        maps = self._maps(self.stack.fixed(x) if fixed else self.stack(x, generator))
        logits: Tensor = self.fc(maps[-1].mean((2, 3)))
        return logits

    def surrogates(self) -> dict[str, Model]:
        """Return the surrogates, each [b, c, h, w] -> [b, k].

        "mean" averages the raw logits of the predictors on one random stack, "fixed" on the
        deterministic stack, and "backbone" is the backbone alone on the latter.
        """
        return {
            "mean": Joint(lambda x: _mean_and_own(self.predictors(x), self.rule, self.top)),
            "fixed": lambda x: self.predictors(x, fixed=True).mean(1),
            "backbone": lambda x: self.backbone(x, fixed=True),
        }

    def _maps(self, stack: Tensor) -> list[Tensor]:
        maps = [self.stem(stack)]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return maps[1:]


@defenses.register("crossmax", cites="arXiv:2408.05446")
@dataclass(frozen=True)
class CrossMax:
    """Self-ensemble of a backbone's layers on a random multi-resolution stack, by CrossMax.

    Fort & Lakshminarayanan 2024. Broken by Zhang et al. 2024 (arXiv:2411.14834), who attack the
    mean of the raw logits: the surrogate "mean" of the network.

    Differs from the paper: a small residual network from scratch in place of a pretrained
    ResNet-152, heads on maps pooled to at most 4 × 4, and the heads train together with the
    backbone, whose maps get no gradient from them. For the stack see `MultiResolution`. At width 24
    and 28 × 28: 0.4 M weights, 11 million multiply-adds.

    Attributes:
        width: channels of the first block.
        resolutions: side of every copy, as a fraction of the image's side.
        jitter: largest shift, in pixels.
        contrast: smallest and largest contrast factor.
        color: smallest and largest weight of the colors against their mean.
        noise: largest value added to a pixel, twice, in input units.
        top: rank of the value that "kth" selects.
        rule: "kth" or "median".
        eps: linf radius of one FGSM step in training (light adversarial training); 0 for none.
    """

    width: Annotated[int, Field(ge=1)] = 24
    resolutions: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125)
    jitter: Annotated[int, Field(ge=0)] = 3
    contrast: tuple[float, float] = (0.7, 1.5)
    color: tuple[float, float] = (0.5, 1.0)
    noise: Annotated[float, Field(ge=0)] = 0.2
    top: Annotated[int, Field(ge=1)] = 3
    rule: Rule = "kth"
    eps: Annotated[float, Field(ge=0)] = 0.0

    @property
    def recipe(self) -> Recipe:
        """The schedule of the shipped weights."""
        return Recipe(epochs=10, lr=1e-3)

    def network(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Return the self-ensemble."""
        stack = MultiResolution(
            self.resolutions, self.jitter, self.contrast, self.color, self.noise
        )
        return SelfEnsemble(stack, shape, classes, self.width, self.rule, self.top)

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Sum of the cross-entropies of all predictors; the heads' gradient stops at the backbone.

        Raises:
            UsageError: for a model that `network` did not build.
        """
        if not isinstance(model, SelfEnsemble):
            raise UsageError(
                f"crossmax trains the network that it builds, got a {type(model).__name__}. "
                "Pass the module that `network` returns."
            )
        entropy = nn.functional.cross_entropy
        if self.eps:
            z = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(entropy(model.backbone(z, step.generator), y), z)
            x = (x + ramp(self.eps, step.progress) * gradient.sign()).clamp(0, 1)
        logits = model.predictors(x, step.generator, detached=True)
        losses = [entropy(one, y) for one in logits.unbind(1)]
        return torch.stack(losses).sum()


class Ensemble(nn.Module):
    """Independent models aggregated by CrossMax. [b, c, h, w] -> [b, k]."""

    def __init__(self, members: list[nn.Module], rule: Rule, top: int) -> None:
        super().__init__()
        self.members, self.rule, self.top = nn.ModuleList(members), rule, top
        self.randomized = any(getattr(member, "randomized", False) for member in members)

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, k]."""
        return crossmax(self.predictors(x), self.rule, self.top)

    def predictors(self, x: Tensor) -> Tensor:
        """Return the raw logits of every member [b, n, k]."""
        return torch.stack([member(x) for member in self.members], dim=1)

    def surrogates(self) -> dict[str, Model]:
        """Return the surrogate "mean": the mean of the raw logits."""
        return {"mean": Joint(lambda x: _mean_and_own(self.predictors(x), self.rule, self.top))}


@defenses.register("crossmax_ensemble", cites="arXiv:2408.05446")
@dataclass(frozen=True)
class CrossMaxEnsemble:
    """Independent models with their shipped weights, aggregated by CrossMax.

    Fort & Lakshminarayanan 2024, the ensemble of separate models. Differs from the paper: members
    may be of different kinds, and see the image as it is, not a multi-resolution stack.

    Attributes:
        members: at least two models, such as undefended, "pgd_at(eps=0.3)" or
            "path/to/model.py:make".
        rule: "median" or "kth".
        top: rank of the value that "kth" selects.
    """

    members: tuple[str, ...] = ("undefended", "pgd_at", "trades")
    rule: Rule = "median"
    top: Annotated[int, Field(ge=1)] = 3

    def load(self, data: Dataset) -> nn.Module:
        """Load every member for `data`.

        Raises:
            UsageError: for fewer than two members, or one that cannot be loaded.
        """
        if len(self.members) < 2:
            raise UsageError(
                f"crossmax_ensemble: expected at least 2 members, got {list(self.members)}. "
                "Name another model."
            )
        models = [load_model(member, data=data).model for member in self.members]
        return Ensemble(models, self.rule, self.top)
