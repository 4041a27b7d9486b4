"""C-AdvUL: the toy policy unlearns harmful answers under attacks on the embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from robustkit.core.tokens import Tokens
from robustkit.models.language.prompted import Prompted
from robustkit.models.training import Recipe, Step
from robustkit.registry import defenses

from ._policy import DATA, Adapted, FromSft, attacked, batch_of, cut, filled, plain_prompt


@defenses.register("toy_advul", cites="arXiv:2405.15589", data=DATA)
@dataclass(frozen=True)
class ToyAdvUl(FromSft):
    """C-AdvUL of Xhonneux et al. 2024, equation (3), on the toy policy, from `toy_sft`.

    0.5 away + 0.5 toward + 1.0 utility. Under the attack on embeddings, away is the log-probability
    of the affirmative answer (below -5: -5 + 0.001 of it), toward the cross-entropy of the refusal
    (below 0.5 likewise), both the mean over tokens; utility is the cross-entropy of right answers
    to allowed prompts. Half of the forbidden nouns are never attacked. Differs from the paper: all
    weights are trained, without LoRA; one prompt in six or fewer is attacked; the model is a toy.

    Attributes:
        eps: radius of the attack, as a share of the mean length of an embedding.
        steps: of the attack.
        seeds: so many random suffixes are tried first, and the attack starts behind the likeliest
            (discrete seeds, after MixAT, arXiv:2505.16947); 0 for none.
        layers: as of `toy_sft`.
    """

    eps: Annotated[float, Field(gt=0)] = 0.05
    steps: Annotated[int, Field(ge=1)] = 10
    seeds: Annotated[int, Field(ge=0)] = 0
    layers: Annotated[int, Field(ge=1)] = 2

    @property
    def recipe(self) -> Recipe:
        """As in the paper, five epochs; each is a few seconds."""
        return Recipe(epochs=5, batch_size=64, lr=5e-4, weight_decay=0.0)

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Loss of x [b, 1, t, w], y [b]; prompts to be refused that may not be seen are skipped."""
        assert isinstance(model, Adapted)
        own, batch = model.own, batch_of(x, y)
        talk = own.dialogue
        answers = talk.answer(batch.allowed)  # type: ignore[attr-defined]
        utility = -own.forced(plain_prompt(own, batch.allowed), answers)[0].mean()
        if not len(batch.attacked):
            return utility
        ids = self._seeded(own, batch.attacked, step.generator)
        prompt, _ = attacked(own, ids, self.eps, self.steps)
        affirmed, _ = own.forced(prompt, talk.affirmative(ids))
        refused, _ = own.forced(prompt, talk.refusal(ids))
        away, toward = cut(affirmed, -5.0).mean(), cut(-refused, 0.5).mean()
        return 0.5 * away + 0.5 * toward + utility

    @torch.no_grad()
    def _seeded(self, own: Prompted, ids: Tokens, draw: Generator) -> Tokens:
        """Return the prompts with the likeliest of some random suffixes, or as they are."""
        best, value = ids, own.margin(plain_prompt(own, ids))[0]
        for _ in range(self.seeds):
            tried = filled(ids, 8, draw)
            now = own.margin(plain_prompt(own, tried))[0]
            best = torch.where((now > value)[:, None], tried, best)
            value = torch.maximum(now, value)
        return best
