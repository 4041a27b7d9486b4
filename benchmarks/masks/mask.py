"""What a mask is: a published defense that is trained small here, and how an expert attacks it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from robustkit.core.types import Model
from robustkit.data.dataset import Dataset
from robustkit.models.architectures import small_cnn
from robustkit.models.training import Recipe, Step, Trainable
from robustkit.registry import defenses

PUBLISHED_STEPS = 5  # of the inner maximization, in every adversarial training here


class Masked(nn.Module):
    """A defended model: [b, c, h, w] -> [b, k].

    `experts` are for the reference alone: no evaluation of a suite is told of them.
    """

    def experts(self) -> dict[str, Model]:
        """Return by name what somebody who knows the defense differentiates in its place."""
        return {}


@dataclass(frozen=True)
class Mask(ABC):
    """How one mask is trained and worn. Subclasses override what they change.

    A mask has a network of its own (`network`, `objective`), is worn by the bare model that was
    trained adversarially (`wrap`), or both.

    Attributes:
        width: channels of the first convolution.
        epochs: of the training of its network.
        eps: linf radius of adversarial training, in input units.
        name, source: in tables; who published it.
        random: whether two passes over one input differ.
        learns: whether it has a network of its own.
    """

    width: int = 16
    epochs: int = 3
    eps: float = 0.1
    name: ClassVar[str] = ""
    source: ClassVar[str] = ""
    random: ClassVar[bool] = False
    learns: ClassVar[bool] = True

    @property
    def what(self) -> str:
        """The first line of its documentation."""
        return (self.__doc__ or "").strip().splitlines()[0]

    @property
    def recipe(self) -> Recipe:
        """The schedule of its training."""
        return Recipe(epochs=self.epochs)

    @property
    def adversarial(self) -> Trainable:
        """PGD adversarial training of the small CNN: the bare model, and what a mask builds on."""
        spec = f"pgd_at(eps={self.eps}, steps={PUBLISHED_STEPS}, width={self.width})"
        trainable: Trainable = defenses.build(spec)
        return trainable

    def network(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Build the untrained network for inputs of `shape` [c, h, w]: the small CNN."""
        return small_cnn(shape, classes, self.width)

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Return the scalar to minimize on a batch x [b, c, h, w], y [b]."""
        return self.adversarial.objective(model, x, y, step)

    @abstractmethod
    def wrap(self, bare: nn.Module, learned: nn.Module | None, data: Dataset) -> Masked:
        """Return the defended model.

        Args:
            bare: the small CNN, adversarially trained.
            learned: the network of the mask, trained; None where it has none.
            data: what both were trained on.
        """


MASKS: dict[str, type[Mask]] = {}
M = TypeVar("M", bound=type[Mask])


def mask(name: str, source: str, *, random: bool = False, learns: bool = True) -> Callable[[M], M]:
    """Enter a mask; see `Mask`."""

    def enter(kind: M) -> M:
        if name in MASKS:
            raise ValueError(f"expected a new name for a mask, got {name!r} twice")
        kind.name, kind.source, kind.random, kind.learns = name, source, random, learns
        MASKS[name] = kind
        return kind

    return enter


def straight(value: Tensor, smooth: Tensor) -> Tensor:
    """Return `value`, with the gradient of `smooth`."""
    return smooth + (value - smooth).detach()


def one_hot_vote(logits: Tensor) -> Tensor:
    """Return the share of votes of each class: logits [v, b, k] -> [b, k]; no gradient passes."""
    return nn.functional.one_hot(logits.argmax(2), logits.shape[2]).to(logits.dtype).mean(0)


def mean_probability(logits: Tensor) -> Tensor:
    """Return the logarithm of the mean probabilities: logits [v, b, k] -> [b, k]."""
    return logits.log_softmax(2).logsumexp(0) - torch.tensor(float(len(logits))).log()
