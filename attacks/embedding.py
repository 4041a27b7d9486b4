"""Attacks on the embeddings of a prompt: a threat model and the search of Xhonneux et al."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, NamedTuple, Self

import torch
from pydantic import Field
from torch import Tensor

from robustkit.core.losses import margin
from robustkit.core.named import NamedThreat
from robustkit.core.rng import normal
from robustkit.core.text import number
from robustkit.core.threat import Threat
from robustkit.core.tokens import PADDING, offsets, token_ids, with_offsets
from robustkit.core.types import Images, Integers, Labels, Logits, Mask, Scalars
from robustkit.errors import UsageError
from robustkit.registry import attacks, suites, threats
from robustkit.search.protocol import Job, Reply, Tasks

_SHRINK = 1 - 1e-5  # 0.5 + offset is rounded to 2^-24


@threats.register("embed", cites="arXiv:2405.15589", examples=("0.05",))
@dataclass(frozen=True)
class Embedding(NamedThreat):
    """Every prompt whose tokens are moved in the space of embeddings, each by so much in l2.

    Xhonneux et al. 2024, section 3. `embed:0.05` bounds the offset of each token by 0.05 of the
    mean length of an embedding of the model. Token ids stay, padding and the template are not
    moved. The distance is the longest offset, infinite where anything else changed. No such input
    can be typed: success here is a bound for training, and no jailbreak.
    """

    suite, searched_by = "embedding", "embedding"

    @classmethod
    def read(cls, text: str) -> Self:
        """Read what follows `embed:`."""
        try:
            eps = number(text)
        except ValueError:
            eps = 0.0
        if not 0 < eps <= 0.5:
            raise UsageError(
                "expected embed:0.05, a share of the mean length of an embedding from above 0 to "
                f"0.5, got embed:{text}"
            )
        return cls(f"embed:{eps:.6g}", eps)  # type: ignore[arg-type]

    def check(self, shape: Sequence[int], labels: Any) -> None:
        """Refuse what is no text with places for offsets."""
        if len(shape) != 3 or shape[0] != 1 or shape[2] < 2:
            raise UsageError(
                f"{self} moves the embeddings of prompts [1, t, 1 + d], got inputs {list(shape)}: "
                "take a data set of prompts, such as toy-lm, as wide as the model."
            )

    @property
    def instead(self) -> str:
        """Offsets of embeddings."""
        return (
            "moves embeddings of tokens, for which no bound is known: leave out --attack, --suite "
            "and --certify, or name --suite embedding."
        )

    def distance(self, z: Images, x: Images, points: Sequence[int] | None = None) -> Scalars:
        """Longest offset of a token; infinite where ids changed, or padding was moved."""
        moved = offsets(z.double()) - offsets(x.double())
        length = moved.norm(dim=2)
        still = (z[..., 0] == x[..., 0]).flatten(1).all(1)
        still &= (length * (token_ids(x) == PADDING)).amax(1) == 0
        longest: Scalars = length.amax(1).masked_fill(~still, torch.inf)
        return longest


class State(NamedTuple):
    """Per slot the clean prompt and the steps taken so far."""

    query: Images
    done: Mask
    x: Images
    y: Labels
    moves: Integers


@attacks.register("embedding", white_box=True, cites="arXiv:2405.15589")
@dataclass(frozen=True)
class EmbeddingSearch:
    """Signed steps on the offsets of all tokens, from zero or from a random start.

    Xhonneux et al. 2024, section 3: steps by the sign of the gradient, each token projected onto
    its l2 ball. Every query counts, so that the best iterate is found, where the published code
    returns the last. Differs from the paper: a step is a quarter of the radius long and shrinks to
    nothing over the second half; prompts that are to be answered are not attacked, for nobody
    gains by their refusal.

    Attributes:
        iterations: of a run. They are not called steps, for prompts that are not attacked use none,
            which would look like a budget left unused.
        random: start from random offsets on the sphere, in place of zero.
        surrogate: name of the surrogate to take gradients from; "" takes them from the model.
    """

    iterations: Annotated[int, Field(ge=1)] = 50
    random: bool = False
    surrogate: str = ""

    uses_gradient = True
    stays_inside = True
    embedding = True

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One run.

        Raises:
            UsageError: for another threat model.
        """
        if not isinstance(threat, Embedding):
            raise UsageError(f"embedding supports embed:0.05 and the like, got {threat.norm}.")
        return [Job()]

    def start(self, tasks: Tasks, threat: Threat) -> State:
        """Begin at the prompt, or at random offsets; allowed prompts are done at once."""
        drawn = torch.zeros_like(offsets(tasks.x))
        if self.random:
            drawn = normal(tasks.keys, prod(drawn.shape[1:]), 0).view_as(drawn)
            drawn = threat.eps * drawn / drawn.norm(dim=2, keepdim=True)
        return State(_projected(tasks.x, drawn, threat.eps), tasks.y != 0, tasks.x, tasks.y,
                     torch.zeros_like(tasks.y))  # fmt: skip

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return the margin by which the prompt is complied with."""
        return margin(logits, state.y, state.y)

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Move every token by the sign of its gradient."""
        share = (2 * (1 - state.moves / self.iterations)).clamp(0, 1)[:, None, None]
        slope = reply.gradient[:, 0, :, 1:].sign()
        size = threat.eps / (4 * slope.shape[2] ** 0.5)
        ahead = offsets(state.query) + share * size * slope
        return state._replace(query=_projected(state.x, ahead, threat.eps), moves=state.moves + 1,
                              done=state.done | (state.moves + 1 >= self.iterations))  # fmt: skip


def _projected(x: Images, moved: Tensor, eps: float) -> Images:
    """Put offsets [b, t, d] into their balls; padding gets none."""
    length = moved.norm(dim=2, keepdim=True).clamp_min(1e-30)
    inside = moved * (_SHRINK * eps / length).clamp_max(1) * (token_ids(x) != PADDING)[:, :, None]
    return with_offsets(x, inside)


@suites.register("embedding", cites="arXiv:2405.15589")
@dataclass(frozen=True)
class Alone:
    """The attack `embedding` through the likelihood of the affirmative answer: for `embed:0.05`."""

    embedding = True

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """Through the declared likelihood, where there is one.

        Raises:
            UsageError: for a norm.
        """
        EmbeddingSearch().jobs(threat, 2)
        through = "surrogate=likelihood, " if "likelihood" in surrogates else ""
        return [f"embedding({through}iterations={count}, random={random})"
                for count, random in ((50, "false"), (200, "true"))]  # fmt: skip
