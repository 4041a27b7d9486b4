"""When a search gives up: its progress so far, extrapolated, does not reach a success.

What a search gains falls off: about as much with every doubling of its queries, or less. So the
gain per doubling so far bounds that of those to come, and a search that would need too many of them
is over. A slot is judged by its own queries alone.
"""

from __future__ import annotations

from typing import Any

import torch

from robustkit.core.losses import margin
from robustkit.core.threat import Threat
from robustkit.core.types import Mask, Scalars
from robustkit.search.protocol import Reply, Search, Tasks
from robustkit.search.tasks import SlotState

# Doublings that a search is granted. Measured on the bundled models and the gauntlet's wrappers:
# what the attacks of `adaptive` break, they break with fewer.
GRANTED = 4


def patience_of(search: object) -> int:
    """Return the queries that a search has before it is looked at; 0: it never gives up."""
    return int(getattr(search, "patience", 0))


def hopeless(
    search: Search[Any],
    state: Any,
    reply: Reply,
    tasks: Tasks,
    slots: SlotState,
    threat: Threat,
    running: Mask,
) -> Mask:
    """Note in `slots` how near to a success the queries came; tell which slots give up [s].

    A slot is looked at when its queries reach a power of two, from `patience` on: what comes before
    is the way from where it began. It gives up if what is missing exceeds `GRANTED` times what a
    doubling has gained since the first look.
    """
    near = _nearness(search, state, reply, tasks, threat)
    slots.best.copy_(torch.where(running & (near > slots.best), near, slots.best))
    slots.answered.add_(running)
    count, patience = slots.answered, patience_of(search)
    due = running & (count >= patience) & (count & (count - 1) == 0)
    begins = due & slots.start.isinf()  # −∞ as long as no query has fooled the model
    slots.start.copy_(torch.where(begins, slots.best, slots.start))
    slots.looked.copy_(torch.where(begins, count, slots.looked))
    doublings = (count / slots.looked.clamp_min(1)).log2().clamp_min(1)
    gain = (slots.best - slots.start) / doublings
    return due & ~begins & (-slots.best > GRANTED * gain)


def _nearness(
    search: Search[Any], state: Any, reply: Reply, tasks: Tasks, threat: Threat
) -> Scalars:
    """Return a number per slot that is positive at a success and grows toward it [s].

    The margin of the model. Of a search that leaves the ball, eps less the distance of a query that
    fools the model; −∞ for the others.
    """
    own = margin(reply.logits, tasks.y, tasks.y).double()
    if search.stays_inside:
        return own
    distance = threat.distance(state.query, tasks.x).double()
    return torch.where(own > 0, threat.eps - distance, -torch.inf)
