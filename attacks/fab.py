"""FAB-T: walks along the decision boundary toward the clean point, one target class at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from robustkit.core.losses import targeted_margin
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Integers, Labels, Logits, Mask, Scalars, per_point
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search.protocol import Job, Reply, Tasks, list_jobs

from ._draws import any_row
from ._hyperplane import displace


class State(NamedTuple):
    """Per slot two images and a few numbers.

    Attributes:
        pulled: the query is an adversarial iterate that was pulled back toward `x`.
        probing: the query is asked without its gradient, since it probably fools the model.
        projected: projections so far.
        least: shortest distance of an iterate that fools the model, see `within`.
    """

    query: Images
    done: Mask
    x: Images
    y: Labels
    target: Labels
    pulled: Mask
    probing: Mask
    projected: Integers
    least: Scalars

    @property
    def climbing(self) -> Mask:
        """Which slots need a gradient."""
        return ~self.probing


@attacks.register("fab", white_box=True, cites="arXiv:1907.02044")
@dataclass(frozen=True)
class Fab:
    """Targeted fast adaptive boundary attack for linf, l2 and l1.

    Croce & Hein 2020, algorithm 1 in its targeted form (appendix; "fab-t" of AutoAttack): z_t − z_y
    is linearized at the iterate; iterate and clean point are projected onto the boundary of the
    linear model inside the box, overshot by eta, and mixed; an iterate that fools the model is
    pulled back toward the clean point. The iterates often lie outside the ball.

    A run costs `steps` backward passes, and a forward pass for each point of the walk; one more
    where a probe failed. Differs from the reference code: one pass tells whether an iterate fools
    the model and gives its gradient, unless the iterate before it fooled the model (then a forward
    pass probes whether the next one does as well, which is pulled back without a gradient); the
    pulled-back iterates are projected as well; there are no random restarts, and no search between
    the closest example and the clean point at the end.

    Attributes:
        steps: projections of one run.
        targets: how many classes to aim at, by falling clean logit.
        alpha_max: largest share of the clean point's projection in the next iterate.
        eta: overshoot of the projections.
        beta: how much of the displacement is left after pulling back.
        within: distance beyond eps, as a fraction of it, at which an iterate must have fooled the
            model after a fifth of the steps, else the run ends there; 0: never. Ours.
    """

    steps: Annotated[int, Field(ge=1)] = 100
    targets: Annotated[int, Field(ge=1)] = 9
    alpha_max: Annotated[float, Field(ge=0, le=1)] = 0.1
    eta: Annotated[float, Field(ge=1)] = 1.05
    beta: Annotated[float, Field(ge=0, le=1)] = 0.9
    within: Annotated[float, Field(ge=0)] = 0

    uses_gradient = True
    stays_inside = False
    minimizes = True

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One run per target.

        Raises:
            UsageError: for a norm that the attack does not support.
        """
        if threat.norm == "l0":
            raise UsageError("fab supports linf, l2 and l1, got l0. Use sigma_zero or fmn.")
        return list_jobs(self.targets, 1, classes)

    def start(self, tasks: Tasks, threat: Threat) -> State:
        """Start at the clean point."""
        projected = torch.zeros_like(tasks.y)
        no = torch.zeros_like(tasks.y, dtype=torch.bool)
        far = tasks.x.new_full((len(tasks.x),), torch.inf, dtype=torch.float32)
        return State(tasks.x, no, tasks.x, tasks.y, tasks.target, no, no, projected, far)

    def objective(self, logits: Logits, state: State) -> Scalars:
        """z_target − z_y: positive beyond the decision boundary of the target."""
        return targeted_margin(logits, state.y, state.target)

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Pull an iterate back if it fools the model, else project onto the boundary."""
        fools = reply.logits.argmax(1) != state.y
        pull = fools & ~state.pulled
        again = state.probing & ~fools  # the same query once more, for its gradient
        ahead = ~(pull | again)
        # x + beta (query − x): the next projection starts nearer to the clean point.
        closer = torch.lerp(state.x, state.query, self.beta)
        query = torch.where(per_point(pull, closer), closer, state.query)
        if any_row(ahead):
            # A pulled-back iterate is projected whether or not it fools the model, or it would be
            # pulled back for ever; its pass gives the gradient for that.
            moved = self._project(state, reply, threat)
            query = torch.where(per_point(ahead, query), moved, query)
        projected, last = state.projected + ahead, state.projected >= self.steps
        # Off the CPU every pass has its gradient: telling slots apart would wait for the device.
        probes = ahead & (state.pulled | (projected >= self.steps))
        least = torch.where(fools, threat.distance(state.query, state.x).float(), torch.inf)
        least = torch.minimum(state.least, least)
        return state._replace(
            query=query,
            pulled=pull,
            probing=probes & (query.device.type == "cpu"),
            projected=projected,
            least=least,
            done=state.done | (~state.pulled & last) | self._hopeless(projected, least, threat),
        )

    def _hopeless(self, projected: Integers, least: Scalars, threat: Threat) -> Mask:
        """Whether a fifth of the steps has found no success near the clean point."""
        due = (projected == max(self.steps // 5, 1)) & (self.within > 0)
        return due & (least > (1 + self.within) * threat.eps)

    def _project(self, state: State, reply: Reply, threat: Threat) -> Images:
        """Mix the overshot projections of iterate and clean point onto the linearized boundary.

        With their displacements d1 and d2: alpha = min(‖d1‖ / (‖d1‖ + ‖d2‖), alpha_max) and
        next = (1 − alpha) (query + eta d1) + alpha (x + eta d2), clipped to the box.
        """
        points = torch.stack([state.query.flatten(1), state.x.flatten(1)], dim=1)
        gradient = reply.gradient.flatten(1)
        apart = torch.linalg.vecdot(gradient, points[:, 1] - points[:, 0])
        # The linear model at the iterate, evaluated at the iterate and at the clean point.
        offset = torch.stack([reply.value, reply.value + apart], dim=1)
        # Both planes have the same normal: one batched projection for the two of them.
        moves = displace(points, gradient, offset, threat)
        length = _lengths(moves, threat).clamp_min_(1e-8)  # zero gradients displace nothing: 0 / 0
        share = (length[:, :1] / length.sum(1, keepdim=True)).clamp_max_(self.alpha_max)
        near, far = points.add_(moves, alpha=self.eta).unbind(1)
        mixed = torch.lerp(near, far, share).clamp_(threat.lower, threat.upper)
        return mixed.view_as(state.query)


def _lengths(moves: Float[Tensor, "s p d"], threat: Threat) -> Float[Tensor, "s p"]:
    if threat.norm == "linf":
        return moves.abs().amax(2)
    lengths: Tensor = torch.linalg.vector_norm(moves, 2 if threat.norm == "l2" else 1, dim=2)
    return lengths
