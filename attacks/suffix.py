"""Free tokens behind a prompt: a threat model, and GCG, which fills it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Self

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from robustkit.core.losses import margin
from robustkit.core.named import NamedThreat
from robustkit.core.rng import Keys, bits
from robustkit.core.threat import Threat
from robustkit.core.tokens import PADDING, RESERVED, exact, token_ids, with_ids
from robustkit.core.types import Images, Integers, Labels, Logits, Mask, Scalars
from robustkit.errors import UsageError
from robustkit.registry import attacks, suites, threats
from robustkit.search.protocol import Job, Reply, Tasks


@threats.register("suffix", cites="arXiv:2307.15043", examples=("5", "20"))
@dataclass(frozen=True)
class Suffix(NamedThreat):
    """Every prompt with at most so many tokens put behind it, any but control tokens.

    Zou et al. 2023, section 2. `suffix:20` fills up to 20 of the free places right behind the last
    token. The distance is how many, infinite where anything else changed or a place was left out.
    """

    suite, searched_by = "suffix", "suffix"

    @classmethod
    def read(cls, text: str) -> Self:
        """Read what follows `suffix:`."""
        if not (text.isdecimal() and text.isascii() and int(text) > 0):
            raise UsageError(f"expected suffix:20, a number of tokens from 1 on, got suffix:{text}")
        return cls(f"suffix:{int(text)}", float(int(text)))  # type: ignore[arg-type]

    def check(self, shape: Sequence[int], labels: Any) -> None:
        """Refuse what is no text, and a suffix longer than all places together."""
        if len(shape) != 3 or shape[0] != 1 or self.eps >= shape[1]:
            raise UsageError(
                f"{self} puts tokens behind prompts [1, t, 1 + d] of more than {self.eps:g} "
                f"places, got inputs {list(shape)}: take a data set of prompts, such as toy-lm."
            )

    @property
    def instead(self) -> str:
        """Tokens behind a prompt."""
        return (
            "puts tokens behind a prompt, for which no bound is known: leave out --attack, --suite "
            "and --certify, or name --suite suffix; suffixes(length=1) is exact for suffix:1."
        )

    def distance(self, z: Images, x: Images, points: Sequence[int] | None = None) -> Scalars:
        """Tokens behind the prompt; infinite where anything else changed."""
        before, after = token_ids(x), token_ids(z)
        free, filled = before == PADDING, after != PADDING
        fits = (before == after) | (free & (after >= RESERVED))
        added: Tensor = filled.sum(1) - (~free).sum(1)
        gapless = (filled.long().diff(dim=1) <= 0).all(1)
        same = (z[..., 1:] == x[..., 1:]).flatten(1).all(1)
        filled_up = fits.all(1) & gapless & same & exact(z)
        untouched = (z == x).flatten(1).all(1)
        return added.double().masked_fill(~(filled_up | untouched), torch.inf)


class State(NamedTuple):
    """Per slot the best suffix so far, and the candidates of this round.

    Attributes:
        ids: the prompt with the best suffix [s, t].
        value: of the objective there.
        swaps: for every candidate of the round the place and the token [s, c, 2].
        taken: candidates of the round looked at; −1 where the gradient is next.
        found, best: the best of the round, and its value.
    """

    query: Images
    done: Mask
    y: Labels
    keys: Int[Tensor, "s 3"]
    begin: Integers
    ids: Int[Tensor, "s t"]
    value: Scalars
    swaps: Int[Tensor, "s c 2"]
    taken: Integers
    found: Int[Tensor, "s t"]
    best: Scalars
    rounds: Integers

    @property
    def climbing(self) -> Mask:
        """Which slots need a gradient: at the beginning of a round."""
        return self.taken < 0


@attacks.register("gcg", white_box=True, cites="arXiv:2307.15043")
@dataclass(frozen=True)
class Gcg:
    """Greedy coordinate gradient: swap one token of the suffix at a time.

    Zou et al. 2023, algorithm 1. In each round the gradient by one-hot rows ranks the tokens at
    every place of the suffix; of `candidates` random swaps into the best `top` the best is taken.
    Every candidate is judged by what the model writes, so that a success counts when it happens. A
    round costs 1 + candidates passes. Differs from the paper: the objective is the margin between
    affirmative answer and refusal; a swap that lowers it is not taken; the suffix begins as random
    ones of the first gradient's best tokens, and prompts that are to be answered are not attacked.

    Attributes:
        rounds: of a run.
        candidates: swaps that are looked at in each.
        top: tokens at a place that swaps are drawn from.
        surrogate: which has the gradient by one-hot rows.
    """

    rounds: Annotated[int, Field(ge=1)] = 20
    candidates: Annotated[int, Field(ge=1)] = 32
    top: Annotated[int, Field(ge=1)] = 32
    surrogate: str = "tokens"

    uses_gradient = True
    stays_inside = True
    suffix = True

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One run.

        Raises:
            UsageError: for another threat model.
        """
        if not isinstance(threat, Suffix):
            raise UsageError(f"gcg supports suffix:20 and the like, got {threat.norm}.")
        return [Job()]

    def start(self, tasks: Tasks, threat: Threat) -> State:
        """Begin at the prompt itself; its first gradient fills the suffix."""
        ids, n = token_ids(tasks.x), len(tasks.x)
        begin = (ids != PADDING).sum(1)
        low = tasks.x.new_full((n,), -torch.inf)
        swaps = begin[:, None, None].repeat(1, self.candidates, 2)
        keys, climbs = torch.stack(tasks.keys, 1), torch.full_like(begin, -1)
        return State(tasks.x, tasks.y != 0, tasks.y, keys, begin, ids, low, swaps, climbs, ids, low,
                     torch.zeros_like(begin))  # fmt: skip

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return the margin by which the prompt is complied with."""
        return margin(logits, state.y, state.y)

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Take in the gradient and draw the swaps of a round, or look at the next of them."""
        first = state.taken < 0
        # Not `any_row`: where no slot climbs there is no gradient by one-hot rows to draw from.
        if bool(first.any()):
            drawn, ids = self._drawn(state, reply.gradient, int(threat.eps))
            state = state._replace(
                swaps=torch.where(first[:, None, None], drawn, state.swaps),
                ids=torch.where(first[:, None], ids, state.ids),
                best=torch.where(first, torch.full_like(state.best, -torch.inf), state.best),
            )
        tried, value = token_ids(state.query), reply.value.to(state.best.dtype)
        better = ~first & (value > state.best)
        best = torch.where(better, value, state.best)
        found = torch.where(better[:, None], tried, state.found)
        taken = state.taken + 1
        over = taken >= self.candidates
        gained = over & (best > state.value)
        ids = torch.where(gained[:, None], found, state.ids)
        swap = state.swaps.gather(
            1, taken.clamp_max(self.candidates - 1)[:, None, None].expand(-1, 1, 2)
        )[:, 0]
        swapped = ids.scatter(1, swap[:, :1], swap[:, 1:])
        rounds = state.rounds + over.long()
        return state._replace(
            query=with_ids(state.query, torch.where(over[:, None], ids, swapped)),
            ids=ids, value=torch.where(gained, best, state.value), found=found, best=best,
            taken=torch.where(over, -1, taken), rounds=rounds,
            done=state.done | (rounds >= self.rounds),
        )  # fmt: skip

    def _drawn(self, state: State, gradient: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Return swaps [s, c, 2]; and the suffixes, which the first round fills."""
        if gradient.ndim != 3:
            raise UsageError(
                "gcg needs a surrogate with a gradient by one-hot rows [t, v], got one by the "
                f"input {list(gradient.shape[1:])}: a language model declares it as tokens."
            )
        room = (state.ids.shape[1] - state.begin).clamp(1, length)
        slope, count = gradient.clone(), self.candidates
        slope[:, :, :RESERVED] = -torch.inf
        kept = min(self.top, slope.shape[2] - RESERVED)
        ranked = slope.sort(dim=2, descending=True, stable=True).indices[:, :, :kept]
        words = bits(Keys(*state.keys.unbind(1)), 2 * count + length, state.rounds)
        place = state.begin[:, None] + words[:, :count] % room[:, None]
        rank = (words[:, count : 2 * count] % kept)[:, :, None]
        rows = ranked.gather(1, place[:, :, None].expand(-1, -1, kept))
        swaps = torch.stack([place, rows.gather(2, rank)[:, :, 0]], 2)
        behind = torch.arange(state.ids.shape[1], device=place.device) - state.begin[:, None]
        fresh = ranked.gather(
            2, (words[:, 2 * count :] % kept)
            .gather(1, behind.clamp(0, length - 1))[:, :, None]
        )[:, :, 0]  # fmt: skip
        empty = (behind >= 0) & (behind < room[:, None]) & (state.ids == PADDING)
        return swaps, torch.where(empty, fresh, state.ids)


@suites.register("suffix", cites="arXiv:2307.15043")
@dataclass(frozen=True)
class Alone:
    """All single tokens, then GCG: for `suffix:20`; for `suffix:1` and `suffix:2` all suffixes."""

    suffix = True

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """What is exact where that is short, else GCG.

        Raises:
            UsageError: for a norm.
        """
        if not isinstance(threat, Suffix):
            raise UsageError(f"the suite suffix supports suffix:20 alone, got {threat.norm}.")
        exact_for = int(threat.eps)
        if exact_for <= 2:
            return [f"suffixes(length={exact_for})"]
        return ["suffixes", "gcg"]
