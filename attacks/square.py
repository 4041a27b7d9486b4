"""Square: random search over square windows, by logits alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from robustkit.core import rng
from robustkit.core.losses import margin
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Integers, Logits, Scalars, per_point
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search.protocol import Job, Reply, Tasks, list_jobs

from . import _bumps, _windows
from ._draws import any_row
from ._square_state import State
from ._warm_start import ascend, refuse_norm
from ._windows import corner, signs, span

# Proposals whose random numbers are drawn together: Philox takes over a hundred small operations,
# more than the forward pass of a ResNet-18 (88).
_BLOCK = 16
_SMALL = 4  # part of the image from which on the pixels of a window are painted one by one


@attacks.register("square", white_box=False, cites="arXiv:1912.00049")
@dataclass(frozen=True)
class Square:
    """Square attack on the margin for linf, l2 and l1.

    Andriushchenko et al. 2020, algorithms 1 to 3; l1 and all constants as in AutoAttack's code: the
    schedule of the window is not rescaled to the budget. A run costs 1 + queries forward passes.

    Windows are squares of images [c, h, w]. Of vectors [d] and signals [c, t] they are segments,
    and of volumes [c, d, h, w] cubes in linf and squares through all slices in l2 and l1; they
    cover the same share of the input. For these shapes the paper has no proposals: ours.

    Differs from the reference code: every slot draws windows, signs and orientation of its own
    (there, one draw serves the batch), and windows reach the last row and column, as in the paper.

    With a `surrogate` it starts from the query with the largest margin of the model among `ahead`
    gradient steps on the margin of the surrogate: ours.

    Attributes:
        queries: proposals of one run, after the starting point.
        restarts: independent runs per point.
        share: part of the image that the first windows cover (p in the paper).
        surrogate: name of the surrogate that the warm start follows (linf and l2); "" for none.
        ahead: steps of the warm start.
        outlook: whenever the queries have doubled (from an eighth of them on), a run ends unless it
            would reach success by so many times the progress of the last doubling in each one to
            come; 0: never. Ours: the progress of random search falls from doubling to doubling.
    """

    queries: Annotated[int, Field(ge=1)] = 5000
    restarts: Annotated[int, Field(ge=1)] = 1
    share: Annotated[float, Field(gt=0, le=1)] = 0.8
    surrogate: str = ""
    ahead: Annotated[int, Field(ge=1)] = 40
    outlook: Annotated[float, Field(ge=0)] = 0

    stays_inside = True

    @property
    def uses_gradient(self) -> bool:
        """Whether there is a warm start."""
        return bool(self.surrogate)

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One untargeted run per restart.

        Raises:
            UsageError: for a norm that the attack does not support.
        """
        if threat.norm == "l0":
            raise UsageError("square supports linf, l2 and l1, got l0. Use sigma_zero or fmn.")
        refuse_norm("square", self.surrogate, threat)
        return list_jobs(0, self.restarts, classes)

    def start(self, tasks: Tasks, threat: Threat) -> State:
        """Start at vertical stripes (linf) or a grid of bumps (l2, l1); a warm start at random."""
        x = _spatial(tasks.x) if threat.norm == "linf" else _planes(tasks.x)
        # A corner and a side for each axis of the window; in l2 and l1 two corners and a turn.
        numbers = x.shape[1] + (2 * (x.ndim - 2) if threat.norm == "linf" else 5)
        first = _first(x, tasks.keys, threat).view_as(tasks.x)
        return State(
            query=threat.sample(tasks.x, tasks.keys) if self.surrogate else first,
            done=torch.zeros_like(tasks.y, dtype=torch.bool),
            x=tasks.x,
            y=tasks.y,
            best=tasks.x,
            best_value=tasks.x.new_full((len(tasks.x),), -torch.inf),
            answered=torch.zeros_like(tasks.y),
            seed=tasks.seed,
            point=tasks.point,
            task=tasks.task,
            left=torch.full_like(tasks.y, self.ahead if self.surrogate else 0),
            draws=tasks.x.new_zeros(len(tasks.x), _BLOCK, numbers),
            marks=tasks.x.new_full((len(tasks.x), 2), -torch.inf),
        )

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return the margin."""
        return margin(logits, state.y, state.y)

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Keep the query if it is the best so far, and propose a change of the best in a window."""
        state = state._replace(draws=_redraw(state, self.share, threat))
        value, ties = reply.value, torch.zeros_like(state.done)
        if self.surrogate:
            # The reply's value is the surrogate's; what is kept is chosen by the model. Among equal
            # margins (a piecewise constant model), the warm start's last query is kept.
            value, ties = margin(reply.logits, state.y, state.y), state.climbing
        better = (value > state.best_value) | (ties & (value == state.best_value))
        best = state.best
        if any_row(better):
            best = torch.where(per_point(better, best), state.query, best)
        query = self._propose(state, best, threat).view_as(best)
        if self.surrogate:
            walked = ascend(state.query, state.x, reply.gradient, self.ahead - state.left,
                            self.ahead, threat)  # fmt: skip
            query = torch.where(per_point(state.left > 1, query), walked, query)
        following = state._replace(
            query=query,
            best=best,
            best_value=torch.where(better, value, state.best_value),
            answered=state.answered + (state.left <= 1),
            left=(state.left - 1).clamp_min(0),
            done=state.done | (state.answered >= self.queries),
        )
        return self._look_ahead(following) if self.outlook else following

    def _look_ahead(self, state: State) -> State:
        """End the runs that will not come through, where the queries have doubled."""
        due, to_come = torch.zeros_like(state.done), torch.zeros_like(state.best_value)
        for doublings in range(1, 5):  # 1/16, where progress is first noted, to half of the queries
            now = state.answered == max(self.queries >> doublings, 1)
            due, to_come = due | now, torch.where(now, float(doublings), to_come)
        if not any_row(due):
            return state
        marks = torch.stack([state.marks[:, 1], state.best_value], 1)
        gain = (marks[:, 1] - marks[:, 0]) * self.outlook * to_come
        known = marks[:, 0].isfinite()
        return state._replace(
            marks=torch.where(due[:, None], marks, state.marks),
            done=state.done | (due & known & (state.best_value + gain < 0)),
        )

    def _propose(self, state: State, best: Images, threat: Threat) -> Float[Tensor, "s c *e"]:
        place = state.answered % _BLOCK
        draw = state.draws.gather(1, place[:, None, None].expand(-1, 1, state.draws.shape[2]))[:, 0]
        if threat.norm == "linf":
            return _paint(_spatial(state.x), _spatial(best), draw, threat)
        level = _windows.level(state.answered)
        return _bumps.move(_planes(state.x), _planes(best), level, draw, self.share, threat)


def _redraw(state: State, share: float, threat: Threat) -> Float[Tensor, "s n m"]:
    """Draw the random numbers of the next block where one begins."""
    begins, (_, block, numbers) = state.answered % _BLOCK == 0, state.draws.shape
    rows = torch.arange(len(begins), device=begins.device)
    if begins.device.type == "cpu":  # on a GPU, choosing rows waits longer than drawing takes
        rows = rows[begins]
        if not len(rows):
            return state.draws
    many = rows.repeat_interleave(block)
    # Streams are numbered by proposal, so that the numbers do not depend on where blocks begin.
    base = (state.answered[many] // block) * block
    proposal = base + torch.arange(block, device=rows.device).repeat(len(rows))
    keys = rng.Keys(state.seed[many], state.point[many], state.task[many])
    if threat.norm == "linf":
        x = _spatial(state.x)
        drawn = rng.uniform(keys, numbers - (x.ndim - 2), proposal + 1)
        drawn = _plan(drawn, proposal, x, share, threat)
    else:
        drawn = rng.uniform(keys, numbers, proposal + 1)
    return state.draws.index_copy(0, rows, drawn.view(len(rows), block, numbers))


def _plan(
    draw: Float[Tensor, "p n"],
    proposal: Integers,
    x: Float[Tensor, "s c *e"],
    share: float,
    threat: Threat,
) -> Float[Tensor, "p m"]:
    """Turn random numbers into window and displacement: top, left, height, width, ±eps by channel.

    For a whole block at once, so that a step spends no operation on it.
    """
    extents = tuple(x.shape[2:])
    size = _windows.sizes(share, extents, 1, x.device)[_windows.level(proposal)]
    first = [corner(draw[:, i], size[:, i], extent) for i, extent in enumerate(extents)]
    window = torch.stack([*first, *size.unbind(1)], 1).to(draw.dtype)
    return torch.cat([window, threat.eps * signs(draw[:, len(extents) :])], 1)


def _spatial(x: Images) -> Float[Tensor, "s c *e"]:
    """View inputs as channels and at least two axes: vectors and signals have one row."""
    if x.ndim > 3:
        return x
    channels, extent = (1, *x.shape[1:])[-2:]
    return x.reshape(len(x), channels, 1, extent)


def _planes(x: Images) -> Float[Tensor, "s c h w"]:
    """View inputs as images: each slice of a volume is a channel."""
    return _spatial(x).reshape(len(x), -1, *_spatial(x).shape[-2:])


def _first(x: Float[Tensor, "s c *e"], keys: rng.Keys, threat: Threat) -> Tensor:
    """Vertical stripes of ±eps (linf) or a grid of bumps (l2, l1)."""
    channels, *others, width = x.shape[1:]
    if threat.norm == "linf":
        # One sign per column and channel: a corner of the ball with a high frequency, to which
        # convolutional networks are sensitive (Andriushchenko et al. 2020).
        stripes = signs(rng.uniform(keys, channels * width, 0))
        stripes = stripes.view(-1, channels, *[1] * len(others), width)
        return (x + threat.eps * stripes).clamp_(threat.lower, threat.upper)
    count = _bumps.grid_draws(channels, others[0], width)
    return _bumps.grid(x, rng.uniform(keys, count, 0), threat)


def _paint(
    x: Float[Tensor, "s c *e"],
    best: Float[Tensor, "s c *e"],
    plan: Float[Tensor, "s m"],
    threat: Threat,
) -> Float[Tensor, "s c *e"]:
    """Linf: set the displacement in a window to ±eps, one sign per channel."""
    # The window is set to ±eps around x, not added to: every displacement stays a corner of the
    # ball, where the maximum of a linear margin lies.
    if x.ndim > 4:
        return _paint_box(x, best, plan, threat)
    height, width = x.shape[2:]
    top, left, *size = plan[:, :4].long().unbind(1)
    shift = plan[:, 4:, None]
    if x.device.type == "cpu":  # on a GPU, looking costs more than painting whole images
        tall, wide = int(size[0][0]), int(size[1][0])
        small = _SMALL * tall * wide <= height * width
        if small and bool(((size[0] == tall) & (size[1] == wide)).all()):
            # Windows of one size, as slots that began together have: their pixels alone.
            inside = _windows.pixels(tall, wide, width, x.device)
            index = ((top * width + left)[:, None] + inside)[:, None].expand(-1, x.shape[1], -1)
            painted = x.flatten(2).gather(2, index).add_(shift)
            painted.clamp_(threat.lower, threat.upper)
            return best.flatten(2).scatter(2, index, painted).view_as(best)
    rows, columns = span(top, size[0], height), span(left, size[1], width)
    painted = (x + shift[..., None]).clamp_(threat.lower, threat.upper)
    return torch.lerp(best, painted, rows[:, None, :, None] * columns[:, None, None])


def _paint_box(x: Tensor, best: Tensor, plan: Float[Tensor, "s m"], threat: Threat) -> Tensor:
    """Linf, with windows of three axes and more: as `_paint`."""
    extents = x.shape[2:]
    first, size = plan[:, : 2 * len(extents)].long().chunk(2, dim=1)
    inside = torch.ones_like(x[:, :1])
    for axis, extent in enumerate(extents):
        part, after = span(first[:, axis], size[:, axis], extent), x.ndim - 3 - axis
        inside = inside * part.view(len(x), *[1] * (axis + 1), extent, *[1] * after)
    shift = plan[:, 2 * len(extents) :].view(*x.shape[:2], *[1] * len(extents))
    return torch.lerp(best, (x + shift).clamp_(threat.lower, threat.upper), inside)
