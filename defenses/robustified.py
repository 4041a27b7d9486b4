"""A frozen model made robust to corruptions: two more heads, a teacher, a gate on confidence."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from robustkit.core.types import Images, Labels, Logits, Mask, Model
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError
from robustkit.models.load import load_model
from robustkit.models.surrogates.resolve import Joint
from robustkit.models.training import Recipe, Step
from robustkit.registry import defenses

from ._augmix import augmented

HEADS = ("unchanged", "clean", "robust")
_BATCH = 250


class Tuned(nn.Module):
    """What is trained: the tail, a clean and a robust head, and the two numbers of the gate.

    Attributes:
        temperature: divides the unchanged logits before their confidence is read.
        cutoff: least confidence at which the unchanged model answers; above 1, it never does.
    """

    temperature: Tensor
    cutoff: Tensor

    def __init__(self, tail: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.tail, self.clean, self.robust = tail, head, copy.deepcopy(head)
        for name in ("temperature", "cutoff"):
            self.register_buffer(name, torch.tensor(1.0, dtype=torch.float64))

    def forward(self, features: Tensor) -> Tensor:
        """Features of the trunk -> logits of the clean and of the robust head [b, 2, k]."""
        seen = self.tail(features)
        return torch.stack([self.clean(seen), self.robust(seen)], 1)


class Robustified(nn.Module):
    """[b, c, h, w] -> logits [b, k] of one of three heads, which the gate chooses for each input.

    The unchanged model answers where its confidence reaches the cutoff, else the more confident of
    the clean and the robust head. The choice has no gradient, and so masks the heads that it passes
    over: the surrogates "unchanged", "clean" and "robust" are the heads alone.
    """

    def __init__(self, trunk: nn.Module, rest: nn.Module, tuned: Tuned, teacher: nn.Module) -> None:
        super().__init__()
        self.trunk, self.rest = trunk.requires_grad_(False), rest.requires_grad_(False)
        self.tuned = tuned
        # In a list, so that it is no part of the model: it is used in training alone.
        self._teacher = [teacher.eval().requires_grad_(False)]

    def train(self, mode: bool = True) -> Robustified:
        """Set the mode of what is tuned; the frozen parts stay in evaluation mode."""
        super().train(mode)
        self.trunk.eval()
        self.rest.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, k]."""
        return self.chosen(self.heads(x))

    def heads(self, x: Images) -> Tensor:
        """Return the logits of all heads [b, 3, k], in the order of `HEADS`."""
        features = self.trunk(x)
        return torch.cat([self.rest(features)[:, None], self.tuned(features)], 1)

    def chosen(self, logits: Tensor) -> Logits:
        """Return the logits [b, k] of the head that answers, of those of all heads [b, 3, k]."""
        sure = self.sure(logits)
        second = logits[:, 1:].double().softmax(2).amax(2).argmax(1) + 1
        place = torch.where(sure, torch.zeros_like(second), second)
        return logits[torch.arange(len(logits), device=logits.device), place]

    def sure(self, logits: Tensor) -> Mask:
        """Whether the unchanged model answers [b], from the logits of all heads."""
        cooled = logits[:, 0].double() / self.tuned.temperature
        return cooled.softmax(1).amax(1) >= self.tuned.cutoff

    def teacher(self, x: Images) -> Logits:
        """Return the teacher's logits [b, k], without gradient."""
        teacher = self._teacher[0].to(x.device)
        with torch.no_grad():
            logits: Tensor = teacher(x)
        return logits

    def surrogates(self) -> dict[str, Model]:
        """Return each head alone, [b, c, h, w] -> [b, k]."""
        return {name: Joint(partial(self._joint, place)) for place, name in enumerate(HEADS)}

    def _joint(self, place: int, x: Images) -> tuple[Logits, Logits]:
        logits = self.heads(x)
        return logits[:, place], self.chosen(logits.detach())


@defenses.register("robustified", cites="arXiv:2309.07499", against="corruption")
@dataclass(frozen=True)
class Robustify:
    """A frozen model whose last layers are tuned under a teacher that stands corruptions.

    After Jain et al. 2023, of whom the abstract and figure 4 alone were at hand: the small teacher,
    few tuned layers, three heads and a choice by confidence are theirs, losses and constants ours.
    The trunk is frozen; a tuned tail has a clean and a robust head. CE(clean(x), y) +
    CE(robust(x~), y) + w T² KL(teacher(x~) / T ‖ robust(x~) / T), x~ an AugMix image and w = 1 −
    H(teacher(x~)) / log k. Then the gate is fitted on training points: the temperature of the
    unchanged logits on clean images, the cutoff on AugMix images. No defense against attacks:
    nothing in it sees an adversary.

    Attributes:
        base: the model, a `torch.nn.Sequential` that ends in a linear layer.
        teacher: a model trained for the same data, such as augmix.
        tuned: layers with weights that are tuned, the heads not counted.
        temperature: T of the distillation.
    """

    base: str = "undefended"
    teacher: str = "augmix"
    tuned: Annotated[int, Field(ge=0)] = 2
    temperature: Annotated[float, Field(gt=0)] = 4.0

    @property
    def recipe(self) -> Recipe:
        """One pass: most of the network has learnt already."""
        return Recipe(epochs=1, lr=1e-3)

    def load(self, data: Dataset) -> nn.Module:
        """Load base and teacher, and put copies of the base's last layers beside it.

        Raises:
            UsageError: for a base that is no `torch.nn.Sequential` ending in a linear layer, or
                with too few layers.
        """
        base = load_model(self.base, data=data).model
        teacher = load_model(self.teacher, data=data).model
        cut, last = _cuts(base, self.tuned)
        layers = list(base)  # type: ignore[call-overload]
        tail = copy.deepcopy(nn.Sequential(*layers[cut:last]))
        tuned = Tuned(tail, copy.deepcopy(layers[last])).requires_grad_(True)
        return Robustified(
            nn.Sequential(*layers[:cut]), nn.Sequential(*layers[cut:]), tuned, teacher
        )

    def learned(self, model: nn.Module) -> nn.Module | None:
        """Return tail, heads and gate."""
        return _robustified(model).tuned

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Mean loss of the clean head on x [b, c, h, w] and of the robust head on AugMix images."""
        whole = _robustified(model)
        (varied,) = augmented(x, step.points, step.generator, 1)
        logits = whole.tuned(whole.trunk(torch.cat([x, varied]))).float()
        clean, robust = logits[: len(x), 0], logits[len(x) :, 1]
        taught = whole.teacher(varied).float()
        entropy = -(taught.softmax(1) * taught.log_softmax(1)).sum(1)
        weight = 1 - entropy / math.log(taught.shape[1])
        warm, target = (one / self.temperature for one in (robust, taught))
        apart = (target.softmax(1) * (target.log_softmax(1) - warm.log_softmax(1))).sum(1)
        cross = nn.functional.cross_entropy
        return cross(clean, y) + cross(robust, y) + self.temperature**2 * (weight * apart).mean()

    def calibrate(self, model: nn.Module, x: Images, y: Labels, generator: Generator) -> None:
        """Fit the gate of `model` on points x [b, c, h, w] with labels y [b].

        The temperature is the one of a grid that makes y likeliest; so is the cutoff, the one with
        most AugMix images right, among equals the largest.
        """
        whole = _robustified(model)
        (varied,) = augmented(x, None, generator, 1)
        clean, logits = _all_heads(whole, x), _all_heads(whole, varied)
        grid = torch.logspace(-1, 1, 81, dtype=torch.float64, device=x.device)
        cross = [nn.functional.cross_entropy(clean[:, 0].double() / t, y) for t in grid]
        whole.tuned.temperature.copy_(grid[int(torch.stack(cross).argmin())])
        cutoffs = torch.linspace(1.01, 0, 102, dtype=torch.float64, device=x.device)
        right = []
        for cutoff in cutoffs:
            whole.tuned.cutoff.copy_(cutoff)
            right.append((whole.chosen(logits).argmax(1) == y).sum())
        whole.tuned.cutoff.copy_(cutoffs[int(torch.stack(right).argmax())])


def _all_heads(whole: Robustified, x: Images) -> Tensor:
    with torch.no_grad():
        return torch.cat([whole.heads(part) for part in x.split(_BATCH)])


def _cuts(base: nn.Module, tuned: int) -> tuple[int, int]:
    """Return where the tail begins and where the last linear layer lies."""
    layers = list(base.children()) if isinstance(base, nn.Sequential) else []
    places = [place for place, layer in enumerate(layers) if any(True for _ in layer.parameters())]
    if len(places) <= tuned or not isinstance(layers[-1], nn.Linear):
        raise UsageError(
            f"robustified: expected a base that is a torch.nn.Sequential of more than {tuned} "
            f"layers with weights, the last one linear, got a {type(base).__name__} of "
            f"{len(places)}. Take another base, or fewer tuned layers."
        )
    return places[-1 - tuned], places[-1]


def _robustified(model: nn.Module) -> Robustified:
    if not isinstance(model, Robustified):
        raise UsageError(f"expected the model that load returns, got a {type(model).__name__}")
    return model
