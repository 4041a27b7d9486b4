"""Random search in the rows of a table, by scores alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from robustkit.core.losses import margin
from robustkit.core.rng import Keys, uniform
from robustkit.core.table_region import Region
from robustkit.core.tabular import TabularThreat
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Integers, Labels, Logits, Mask, Scalars, per_point
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search.protocol import Job, Reply, Tasks, list_jobs

_FIRST = 0.5  # share of the features that the first proposals change
_HALVED = (0.02, 0.1, 0.25, 0.5, 0.75)  # of the queries, after which the share is halved


class State(NamedTuple):
    """Per slot the best query and its margin; `moves`: queries so far."""

    query: Images
    done: Mask
    x: Images
    y: Labels
    seed: Integers
    point: Integers
    task: Integers
    best: Images
    closest: Scalars
    moves: Integers


@attacks.register("row_search", white_box=False, cites="arXiv:2406.00775")
@dataclass(frozen=True)
class RowSearch:
    """Random search on the margin for tables: `tabular:0.05`.

    Takes the place that the genetic search MOEVA has in CAA (Simonetto et al. 2024), by the scheme
    of Square (Andriushchenko et al. 2020): a proposal changes a share of the features of the best
    row so far, is repaired, and is kept if its margin is larger; the share is halved five times. A
    number jumps to an end of its range, anywhere in it, or nearby; a group takes a category at
    random. A run costs 1 + queries forward passes. No gradients.

    Attributes:
        queries: proposals of one run, after the clean row.
        restarts: independent runs per point.
    """

    queries: Annotated[int, Field(ge=1)] = 500
    restarts: Annotated[int, Field(ge=1)] = 1

    uses_gradient = False
    stays_inside = True
    tabular = True

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One run per restart.

        Raises:
            UsageError: for another threat model.
        """
        if not isinstance(threat, TabularThreat):
            raise UsageError(f"row_search supports tabular:0.05, got {threat.norm}. Use square.")
        return list_jobs(0, self.restarts, classes)

    def start(self, tasks: Tasks, threat: Threat) -> State:
        """Begin at the clean row."""
        zero = torch.zeros_like(tasks.y)
        low = torch.full((len(zero),), -torch.inf, device=zero.device)
        return State(tasks.x, zero > 0, tasks.x, tasks.y, tasks.seed, tasks.point, tasks.task,
                     tasks.x, low, zero)  # fmt: skip

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return the margin."""
        return margin(logits, state.y, state.y)

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Keep the query if it is better, and propose the next one."""
        assert isinstance(threat, TabularThreat)  # `jobs` refuses others
        better = reply.value > state.closest
        best = torch.where(per_point(better, state.query), state.query, state.best)
        region, keys = threat.region(state.x), Keys(state.seed, state.point, state.task)
        share = state.moves.new_zeros(len(better)).double() + _FIRST
        for part in _HALVED:
            share = torch.where(state.moves > part * self.queries, share / 2, share)
        noise = uniform(keys, 4 * region.table.features, 1 + state.moves).double().cpu()
        proposed = _proposed(region, region.table.raw(best.cpu()), share.cpu(), noise)
        query = region.repaired(proposed, best)[0].to(best.device)
        return state._replace(
            query=query,
            best=best,
            closest=torch.where(better, reply.value, state.closest),
            moves=state.moves + 1,
            done=state.done | (state.moves >= self.queries),
        )


def _proposed(
    region: Region, v: Float[Tensor, "s d"], share: Scalars, noise: Float[Tensor, "s n"]
) -> Float[Tensor, "s d"]:
    """Change a share of the features that may change; one at least."""
    table, (low, high) = region.table, region.span
    order, kind, where, near = noise.chunk(4, dim=1)
    # A group is one feature: its columns are drawn together, by the number of its first.
    first = torch.arange(table.features)
    for columns in table.groups:
        first[columns] = columns[0]
    order = order[:, first].masked_fill(~(low < high)[:, :], 2.0)
    # Of a group that may change some columns may be left out: all take the least.
    for columns in table.groups:
        least = order[:, columns].amin(1, keepdim=True)
        order = order.index_copy(1, columns, least.expand(-1, len(columns)))
    chosen = (order < share[:, None]) | (order == order.amin(1, keepdim=True))
    width = high - low
    ends = torch.where(where < 0.5, low, high)
    anywhere = low + where * width
    nearby = v + (near - 0.5) * torch.where(table.whole, width.clamp_max(4), 0.2 * width)
    drawn = torch.where(kind < 0.4, ends, torch.where(kind < 0.7, anywhere, nearby))
    drawn = torch.where(table.category, where, drawn)
    return torch.where(chosen, drawn, v)
