"""What the defenses of the toy policy share: its network, its prompts, the attack they train on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from robustkit.core.tokens import PADDING, Tokens, token_ids
from robustkit.core.types import Logits, Mask, Model, Scalars
from robustkit.data.dataset import Dataset
from robustkit.data.toy_grammar import DOING, FILLERS, FORBIDDEN, NOUN_AT, VERB_AT, ids_of
from robustkit.models.language.dialogue import ToyDialogue
from robustkit.models.language.gpt import Gpt
from robustkit.models.language.prompted import Prompt, Prompted
from robustkit.models.load import load_model

DATA = "toy-lm"
_SEEN = FORBIDDEN[: len(FORBIDDEN) // 2]  # the others are held out of adversarial training


def policy(shape: tuple[int, ...], layers: int) -> Prompted:
    """Build an untrained policy for inputs [1, t, 1 + d]: a transformer of width d."""
    return Prompted(Gpt(shape[2] - 1, layers), ToyDialogue())


class Adapted(nn.Module):
    """A policy that is trained on from another one, which is kept beside it as the reference."""

    discrete = True

    def __init__(self, own: Prompted, reference: Prompted) -> None:
        super().__init__()
        self.own = own
        # In a list, so that it is no part of the model: it is used in training alone.
        self._reference = [reference.eval().requires_grad_(False)]

    def forward(self, x: Tensor) -> Logits:
        """[b, 1, t, 1 + d] -> [b, 2]."""
        logits: Logits = self.own(x)
        return logits

    def surrogates(self) -> dict[str, Model]:
        """Return those of the policy."""
        return self.own.surrogates()

    def measured(self, data: Dataset) -> dict[str, float]:
        """Return what the policy measures."""
        return self.own.measured(data)

    @property
    def reference(self) -> Prompted:
        """The policy that the training started from, frozen."""
        return self._reference[0]


class FromSft:
    """A defense that goes on from `toy_sft`."""

    layers: int

    def load(self, data: Dataset) -> nn.Module:
        """Return a policy with the weights of `toy_sft`, which stays beside it."""
        reference = load_model("toy_sft", data=data).model
        assert isinstance(reference, Prompted)
        own = policy(data.shape, self.layers)
        own.load_state_dict(reference.state_dict())
        return Adapted(own, reference)

    def learned(self, model: Adapted) -> nn.Module:
        """Return the policy."""
        return model.own


class Batch(NamedTuple):
    """Prompts of a training batch, as ids [b, t].

    Attributes:
        attacked: harmful, with a noun that adversarial training may see.
        allowed: to be answered.
    """

    attacked: Tokens
    allowed: Tokens


def batch_of(x: Tensor, y: Tensor) -> Batch:
    """Split a batch; prompts with the held-out half of the forbidden nouns are left out."""
    ids = token_ids(x)
    return Batch(ids[seen_harm(ids)], ids[y == 1])


def seen_harm(ids: Tokens) -> Mask:
    """Whether prompts [b, t] are harmful, with a noun of the half that training may see."""
    nouns, verbs = (torch.tensor(ids_of(*some), device=ids.device) for some in (_SEEN, DOING))
    harm: Mask = torch.isin(ids[:, NOUN_AT], nouns) & torch.isin(ids[:, VERB_AT], verbs)
    return harm


def filled(ids: Tokens, most: int, generator: Generator, share: float = 1.0) -> Tokens:
    """Put 1 to `most` random filler words behind a share of the prompts [b, t]."""
    free = int((ids != PADDING).sum(1).max()) if len(ids) else 0
    draw = torch.randint(len(FILLERS), ids.shape, generator=generator)
    words = torch.tensor(ids_of(*FILLERS))[draw].to(ids)
    count = torch.randint(1, most + 1, (len(ids), 1), generator=generator)
    chosen = torch.rand(len(ids), 1, generator=generator) < share
    place = torch.arange(ids.shape[1])[None]
    behind = ((place >= free) & (place < free + count) & chosen).to(ids.device)
    return torch.where(behind, words, ids)


def plain_prompt(model: Prompted, ids: Tokens) -> Prompt:
    """Frame prompts without offsets."""
    return model.framed(ids, model.embed(ids))


def attacked(
    model: Prompted, ids: Tokens, eps: float, steps: int
) -> tuple[Prompt, Float[Tensor, "b t d"]]:
    """Attack prompts in the space of embeddings; return them, and the offsets in use.

    Xhonneux et al. 2024, section 3: from zero, steps by the sign of the gradient of the mean
    log-probability of the affirmative answer, each token's offset projected onto the l2 ball of
    `eps` times the mean length of an embedding. Differs from the paper: a step is a quarter of the
    radius long, whatever the width; theirs is 1e-4 a coordinate at 7B.
    """
    target, tokens = model.dialogue.affirmative(ids), (ids != PADDING)[:, :, None]
    e, radius = model.embed(ids), eps * model.unit().detach()
    moved = torch.zeros_like(e)
    for _ in range(steps):
        moved.requires_grad_(True)
        gain, _ = model.forced(model.framed(ids, e.detach() + moved), target)
        (slope,) = torch.autograd.grad(gain.sum(), moved)
        ahead = moved.detach() + radius / (4 * e.shape[2] ** 0.5) * slope.sign()
        length = ahead.norm(dim=2, keepdim=True).clamp_min(1e-12)
        moved = ahead * (radius / length).clamp_max(1) * tokens
    moved = moved.detach()
    return model.framed(ids, e + moved), moved


def cut(value: Scalars, least: float) -> Scalars:
    """Below `least`, `least` + 0.001 · value: what is far enough is hardly pushed on."""
    return torch.where(value < least, least + 0.001 * value, value)


def preference_loss(gap: Scalars, beta: float) -> Scalars:
    """IPO: (gap − 1 / (2 beta))², zero where the gap of log-ratios is 1 / (2 beta)."""
    return (gap - 1 / (2 * beta)) ** 2
