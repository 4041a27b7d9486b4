"""A training that was asked for, checked: what identifies it and the commands that belong to it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustkit.cli.train.measure import watched
from robustkit.core.spec import Spec
from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset
from robustkit.models.training import Recipe, Trainable


@dataclass(frozen=True)
class TrainRequest:
    """What was asked for."""

    name: str
    data: str = "fashion_mnist"
    data_root: Path | None = None
    out: Path | None = None
    epochs: int | None = None
    batch_size: int | None = None
    validation: int | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    fresh: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class TrainPlan:
    """A checked request."""

    asked: TrainRequest
    defense: Trainable
    name: str
    options: dict[str, Any]
    usual: Recipe
    recipe: Recipe
    data: Dataset
    held_out: Dataset | None
    folder: Path
    device: torch.device

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the weights: a folder with the state of another identity is refused."""
        return {
            **self.options,
            "defense": Spec.parse(self.name).name,
            "data": self.data.family,
            "points": len(self.data),
            **({"validation": self.asked.validation} if self.asked.validation else {}),
            "epochs": self.recipe.epochs,
            "batch size": self.recipe.batch_size,
            "seed": self.asked.seed,
        }

    @property
    def watch(self) -> Callable[[nn.Module], float] | None:
        """What chooses the epoch: accuracy on the points left out; see `watched`."""
        if self.held_out is None or not self.usual.validation:
            return None
        threat = attacked_as(self.options)
        return partial(watched, data=self.held_out, threat=threat, seed=self.asked.seed)

    @property
    def command(self) -> str:
        """The command that repeats the training."""
        words = ["robustkit", "train", self.name, "--data", self.asked.data]
        if self.recipe.epochs != self.usual.epochs:
            words += ["--epochs", str(self.recipe.epochs)]
        if self.recipe.batch_size != self.usual.batch_size:
            words += ["--batch-size", str(self.recipe.batch_size)]
        if self.asked.validation:
            words += ["--validation", str(self.asked.validation)]
        if self.asked.threads:  # sums are rounded otherwise with another number
            words += ["--threads", str(self.asked.threads)]
        return shlex.join([*words, "--seed", str(self.asked.seed)])

    @property
    def next_command(self) -> str:
        """The command that evaluates what was trained."""
        words = ["robustkit", "evaluate", self.name, "--data", self.asked.data]
        if self.asked.data_root is not None:
            words += ["--data-root", str(self.asked.data_root)]
        return shlex.join([*words, "--weights", str(self.weights)])


def attacked_as(options: dict[str, Any]) -> Threat | None:
    """Return the threat model that a defense with these options trains against, if any."""
    eps = options.get("eps")
    # 0: trained without an adversary
    return Threat("linf", eps) if isinstance(eps, float) and eps > 0 else None
