"""Supervised fine-tuning of the toy policy: it answers what is allowed and refuses the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from robustkit.core.tokens import token_ids
from robustkit.models.language.prompted import Prompted
from robustkit.models.training import Recipe, Step
from robustkit.registry import defenses

from ._policy import DATA, filled, plain_prompt, policy


@defenses.register("toy_sft", cites="", data=DATA)
@dataclass(frozen=True)
class ToySft:
    """The baseline of the toy policy: cross-entropy of the right answer, without any attack.

    Half of the prompts have 1 to 6 random words behind them, so that words alone do not confuse it.

    Attributes:
        layers: of the transformer, whose width is that of the data (`toy-lm(width=40)`).
    """

    layers: Annotated[int, Field(ge=1)] = 2

    @property
    def recipe(self) -> Recipe:
        """Two minutes on a core."""
        return Recipe(epochs=40, batch_size=64, lr=4e-3, weight_decay=1e-2)

    def network(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Return the untrained policy."""
        return policy(shape, self.layers)

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Mean negative log-probability of a token of the right answers; x [b, 1, t, w], y [b]."""
        assert isinstance(model, Prompted)
        ids = filled(token_ids(x), 6, step.generator, share=0.5)
        losses = [
            -model.forced(plain_prompt(model, ids[y == label]), answer(ids[y == label]))[0]
            for label, answer in enumerate((model.dialogue.refusal, model.dialogue.answer))  # type: ignore[attr-defined]
            if bool((y == label).any())
        ]
        return torch.cat(losses).mean()
