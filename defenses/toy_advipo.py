"""C-AdvIPO: the toy policy prefers the refusal, under attacks on the embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from robustkit.models.training import Recipe, Step
from robustkit.registry import defenses

from ._policy import DATA, Adapted, FromSft, attacked, batch_of, preference_loss


@defenses.register("toy_advipo", cites="arXiv:2405.15589", data=DATA)
@dataclass(frozen=True)
class ToyAdvIpo(FromSft):
    """C-AdvIPO of Xhonneux et al. 2024, equation (5), on the toy policy, from `toy_sft`.

    IPO (arXiv:2310.12036) between refusal and affirmative answer under one attack on the
    embeddings: (log-ratio of the refusal - log-ratio of the answer - 1 / (2 beta))², log-ratios to
    `toy_sft` on the same attacked prompt, each the mean over tokens. No utility data. Half of the
    forbidden nouns are never attacked. Differs from the paper: all weights are trained, without
    LoRA.

    Attributes:
        eps: radius of the attack, as a share of the mean length of an embedding.
        steps: of the attack.
        beta: of IPO.
        layers: as of `toy_sft`.
    """

    eps: Annotated[float, Field(gt=0)] = 0.05
    steps: Annotated[int, Field(ge=1)] = 10
    beta: Annotated[float, Field(gt=0)] = 0.25
    layers: Annotated[int, Field(ge=1)] = 2

    @property
    def recipe(self) -> Recipe:
        """As in the paper, twenty epochs."""
        return Recipe(epochs=20, batch_size=64, lr=2e-4, weight_decay=0.0)

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Loss of the attacked prompts among x [b, 1, t, w], y [b]; 0 where there is none."""
        assert isinstance(model, Adapted)
        own, ids = model.own, batch_of(x, y).attacked
        if not len(ids):
            return sum((weight.sum() * 0.0 for weight in own.parameters()), torch.zeros(()))
        prompt, moved = attacked(own, ids, self.eps, self.steps)
        gain = own.margin(prompt)[0]
        with torch.no_grad():
            # The perturbation is the same vector for both: each adds it to its own embeddings.
            shared = model.reference.framed(ids, model.reference.embed(ids) + moved)
            before = model.reference.margin(shared)[0]
        return preference_loss(before - gain, self.beta).mean()
