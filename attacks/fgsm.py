"""FGSM: one step of length eps along the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from robustkit.core.losses import ce
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels, Logits, Mask, Scalars
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search.protocol import Job, Reply, Tasks


class State(NamedTuple):
    """Per slot two images and a few numbers. `moved`: the query is the result, not `x`."""

    query: Images
    done: Mask
    x: Images
    y: Labels
    moved: Mask


@attacks.register("fgsm", white_box=True, cites="arXiv:1412.6572")
@dataclass(frozen=True)
class Fgsm:
    """Fast gradient method on the cross-entropy for linf, l2 and l1.

    Goodfellow et al. 2015, section 4. Two passes: the gradient at the clean point, and the result.
    Differs from the paper: l2 and l1 as well. The step in l1 is the exact maximizer of the
    linearized loss in ball and box: it uses up the steepest coordinates one after another.
    """

    uses_gradient = True
    stays_inside = True

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One untargeted run.

        Raises:
            UsageError: for a norm that the attack does not support.
        """
        if threat.norm == "l0":
            raise UsageError("fgsm supports linf, l2 and l1, got l0. Use sigma_zero or fmn.")
        return [Job()]

    def start(self, tasks: Tasks, threat: Threat) -> State:
        """Query the clean point, for its gradient."""
        no = torch.zeros_like(tasks.y, dtype=torch.bool)
        return State(tasks.x, no, tasks.x, tasks.y, no)

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return the cross-entropy."""
        return ce(logits, state.y, state.y)

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Take the step; after the second query, stop."""
        if threat.norm == "l1":
            query = _fill(state.x, reply.gradient, threat)
        else:
            # The projection clips to the box: in linf that is exact for the linearized loss too.
            step = threat.eps * threat.steepest(reply.gradient)
            query = threat.project(state.x + step, state.x)
        return state._replace(query=query, moved=torch.ones_like(state.moved), done=state.moved)


def _fill(x: Images, gradient: Images, threat: Threat) -> Images:
    """Move the coordinates with the largest gradients to the edge of the box until eps is spent."""
    flat, here = gradient.flatten(1), x.flatten(1)
    # Fractional knapsack: a coordinate gains |g| per unit of l1 and holds `room` units, so that the
    # greedy order is optimal.
    order = flat.abs().argsort(dim=1, descending=True)
    room = torch.where(flat > 0, threat.upper - here, here - threat.lower).gather(1, order)
    left = (threat.eps - (room.cumsum(1) - room)).clamp_min_(0)
    size = torch.zeros_like(here).scatter_(1, order, torch.minimum(room, left))
    # Only rounding is left to project: the sum of `size` is at most eps.
    return threat.project(x + (flat.sign() * size).view_as(x), x)
