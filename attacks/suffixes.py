"""All suffixes of one token or two: what a search for suffixes is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from pydantic import Field

from robustkit.core.losses import margin
from robustkit.core.named import NamedThreat
from robustkit.core.threat import Threat
from robustkit.core.tokens import PADDING, RESERVED, token_ids, with_ids
from robustkit.core.types import Images, Integers, Labels, Logits, Mask, Scalars
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search.protocol import Job, Reply, Tasks, suits

from ._draws import any_row


class Listed(NamedTuple):
    """Per slot how many suffixes were looked at, of how many."""

    query: Images
    done: Mask
    x: Images
    y: Labels
    begin: Integers
    number: Integers
    words: Integers

    @property
    def climbing(self) -> Mask:
        """Only the first query needs a gradient: its width tells how many tokens there are."""
        return self.words == 0


@attacks.register("suffixes", white_box=True, cites="arXiv:2307.15043")
@dataclass(frozen=True)
class Suffixes:
    """Every suffix of up to `length` tokens, in order: exact, for `suffix:1` and `suffix:2`.

    With v tokens it takes v + v² passes for two: the truth that searches are compared with.

    Attributes:
        length: of the longest.
        surrogate: whose gradient by one-hot rows tells the number of tokens.
    """

    length: Annotated[int, Field(ge=1, le=2)] = 1
    surrogate: str = "tokens"

    uses_gradient = True
    stays_inside = True
    suffix = True

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One run.

        Raises:
            UsageError: for another threat model.
        """
        if not suits(self, threat) or not isinstance(threat, NamedThreat):
            raise UsageError(f"suffixes supports suffix:1 and suffix:2, got {threat.norm}.")
        if self.length > threat.eps:
            raise UsageError(f"suffixes: expected length of at most {threat.eps:g} ({threat}).")
        return [Job()]

    def start(self, tasks: Tasks, threat: Threat) -> Listed:
        """Begin at the prompt itself."""
        begin, zero = (token_ids(tasks.x) != PADDING).sum(1), torch.zeros_like(tasks.y)
        return Listed(tasks.x, tasks.y != 0, tasks.x, tasks.y, begin, zero, zero.clone())

    def objective(self, logits: Logits, state: Listed) -> Scalars:
        """Return the margin by which the prompt is complied with."""
        return margin(logits, state.y, state.y)

    def step(self, state: Listed, reply: Reply, threat: Threat) -> Listed:
        """Go on to the next suffix."""
        known = state.words > 0
        seen = reply.gradient.shape[2] - RESERVED if any_row(~known) else 1
        words = torch.where(known, state.words, seen)
        number, ids = state.number, token_ids(state.x)
        two = number >= words
        rest = number - words
        first = torch.where(two, rest.div(words, rounding_mode="floor"), number)
        second = torch.where(two, rest % words + RESERVED, PADDING)
        ids = ids.scatter(1, state.begin[:, None], (first + RESERVED)[:, None])
        if self.length > 1:
            ids = ids.scatter(1, state.begin[:, None] + 1, second[:, None])
        total = words + (words**2 if self.length > 1 else 0)
        over = number >= total
        query = torch.where(over[:, None, None, None], state.query, with_ids(state.x, ids))
        return state._replace(query=query, number=number + 1, words=words, done=state.done | over)
