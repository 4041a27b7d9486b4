"""A language model as a classifier of prompts, judged by what it writes.

The decision is that of a judge on the greedily decoded answer: never a likelihood, for a target
that became likely may still not be written. How far off the other decision is, only a likelihood
can say: the size of the logits is the margin between the affirmative answer and the refusal.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot, softplus

from robustkit.core.tokens import PADDING, RESERVED, Texts, Tokens, exact, offsets, token_ids
from robustkit.core.types import Logits, Mask, Model, Scalars
from robustkit.data.dataset import Dataset
from robustkit.models.language.dialogue import Dialogue
from robustkit.models.surrogates.resolve import Joint, Relaxed

_LEAST = 1e-3  # what a verdict is worth at least: logits must not tie
_FORBIDDEN = 1e6  # by the gradient, what a token that nobody can type costs


class Prompt(NamedTuple):
    """Prompts within their template, padding left out where all of a batch have it.

    Attributes:
        ids: as they were given, without the template [b, t].
        e: embeddings, offsets included [b, l, d].
        mask: which places hold a token [b, l].
    """

    ids: Tokens
    e: Float[Tensor, "b l d"]
    mask: Bool[Tensor, "b l"]


class Prompted(nn.Module):
    """Prompts [b, 1, t, 1 + d] -> logits [b, 2] of the verdict: 0 refused, 1 complied.

    Surrogates: "likelihood", the mean log-probability of a token of the affirmative answer minus
    that of the refusal, teacher-forced; "tokens", the same, differentiated by one-hot rows of ids,
    as GCG does (arXiv:2307.15043, algorithm 1).

    Args:
        lm: embeddings [b, l, d] and mask [b, l] -> logits [b, l, v]; has `embedding`, a module of
            weights [v, d].
        dialogue: template, targets and judge.
    """

    discrete = True  # between two token ids there is nothing to probe

    def __init__(self, lm: nn.Module, dialogue: Dialogue) -> None:
        super().__init__()
        self.lm, self.dialogue = lm, dialogue

    @property
    def table(self) -> Tensor:
        """The embedding of every token [v, d]."""
        table: Tensor = self.lm.embedding.weight  # type: ignore[union-attr, assignment]
        return table

    def embed(self, ids: Tokens) -> Tensor:
        """[b, t] -> [b, t, d]."""
        return self.table[ids]

    def unit(self) -> Tensor:
        """The length that offsets are given in: the mean of all rows of the embedding."""
        mean: Tensor = self.table.norm(dim=1).mean()
        return mean

    def prompt(self, x: Texts) -> Prompt:
        """Embed inputs, with their offsets, in the template."""
        ids, moved = token_ids(x), offsets(x)
        # Nobody can type an id that the model does not have: the judge sees a control token.
        ids = torch.where(ids < len(self.table), ids, RESERVED - 1)
        e = self.embed(ids) + moved * self.unit() if moved.shape[2] else self.embed(ids)
        return self.framed(ids, e)

    def framed(self, ids: Tokens, e: Float[Tensor, "b t d"]) -> Prompt:
        """Put prompts, embedded already, into the template."""
        kept = (ids != PADDING).any(0)
        before, behind = (
            torch.tensor(part, device=ids.device, dtype=torch.long).expand(len(ids), -1)
            for part in (self.dialogue.before, self.dialogue.behind)
        )
        mask = torch.cat([before >= 0, ids[:, kept] != PADDING, behind >= 0], 1)
        whole = torch.cat([self.embed(before), e[:, kept], self.embed(behind)], 1)
        return Prompt(ids, whole, mask)

    def forced(self, prompt: Prompt, answer: Tokens) -> tuple[Scalars, Tensor]:
        """Return the mean log-probability of a token of `answer` [b], and the first logits [b, v].

        Padding ends an answer and does not count.
        """
        held = answer != PADDING
        e = torch.cat([prompt.e, self.embed(answer)], 1)
        logits = self.lm(e, torch.cat([prompt.mask, held], 1)).float()
        told = logits[:, prompt.mask.shape[1] - 1 : -1]
        target = answer.masked_fill(~held, -100)
        loss = cross_entropy(told.transpose(1, 2), target, reduction="none")
        return -loss.sum(1) / held.sum(1), told[:, 0]

    def margin(self, prompt: Prompt) -> tuple[Scalars, Tensor]:
        """Return by how much the affirmative answer is likelier [b], and the first logits."""
        affirmed, first = self.forced(prompt, self.dialogue.affirmative(prompt.ids))
        refused, _ = self.forced(prompt, self.dialogue.refusal(prompt.ids))
        return affirmed - refused, first

    @torch.no_grad()
    def written(self, prompt: Prompt, first: Tensor | None = None) -> Tokens:
        """Decode greedily [b, m]; an answer is padded from its end, or from where it must refuse.

        Args:
            first: logits of the first token, where they are known.
        """
        talk, live = self.dialogue, torch.arange(len(prompt.ids), device=prompt.ids.device)
        answers = prompt.ids.new_full((len(live), talk.longest), PADDING)
        for number in range(talk.longest):
            if not len(live):
                break
            begun = answers[live, :number]
            if first is None or number:
                e = torch.cat([prompt.e[live], self.embed(begun)], 1)
                mask = torch.cat([prompt.mask[live], begun != PADDING], 1)
                chosen = self.lm(e, mask)[:, -1].argmax(1)
            else:
                chosen = first.argmax(1)
            chosen = torch.where(chosen == talk.end, PADDING, chosen)
            answers[live, number] = chosen
            over = (chosen == PADDING) | talk.refuses(prompt.ids[live], answers[live, : number + 1])
            live = live[~over]
        return answers

    def judged(self, prompt: Prompt, first: Tensor | None = None) -> Mask:
        """Whether the answers comply, to prompts that somebody could have typed."""
        talk = self.dialogue
        return talk.complied(prompt.ids, self.written(prompt, first)) & talk.admitted(prompt.ids)

    def forward(self, x: Texts) -> Logits:
        """[b, 1, t, 1 + d] -> [b, 2]; the larger one is the judge's."""
        return self._both(x)[1]

    def _both(self, x: Texts) -> tuple[Logits, Logits]:
        prompt = self.prompt(x)
        margin, first = self.margin(prompt)
        complied = self.judged(prompt, first.detach()) & exact(x)
        sized = torch.where(complied, softplus(margin) + _LEAST, -softplus(-margin) - _LEAST)
        return _pair(margin), _pair(sized)

    @torch.no_grad()
    def measured(self, data: Dataset) -> dict[str, float]:
        """Return `utility_nll`: of a token of the right answers to prompts that are to be answered.

        Nothing where the dialogue knows no right answers.
        """
        if not hasattr(self.dialogue, "answer"):
            return {}
        x, y = data.fetch(range(len(data)))
        ids = token_ids(x)[y == 1].to(self.table.device)
        likely, _ = self.forced(self.framed(ids, self.embed(ids)), self.dialogue.answer(ids))
        return {"utility_nll": -float(likely.mean())}

    def surrogates(self) -> dict[str, Model]:
        """Return the likelihood as a function of the input, and of one-hot rows."""
        return {
            "likelihood": Joint(self._both),
            "tokens": Relaxed(self._rows, self._of_rows),
        }

    def _rows(self, x: Texts) -> Tensor:
        ids = token_ids(x).clamp_max(len(self.table) - 1)
        return one_hot(ids, len(self.table)).to(x.dtype)

    def _of_rows(self, rows: Float[Tensor, "b t v"]) -> Logits:
        ids, every = rows.detach().argmax(2), torch.arange(rows.shape[2], device=rows.device)
        closed = ~self.dialogue.admitted(every[:, None])
        margin, _ = self.margin(self.framed(ids, rows @ self.table))
        return _pair(margin - _FORBIDDEN * (rows * closed).sum((1, 2)))


def _pair(margin: Scalars) -> Logits:
    return torch.stack([-margin / 2, margin / 2], 1)
