"""One evaluation of the model at the queries of all slots, with the gradient of a search's loss."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from robustkit.core.criterion import UNTARGETED, Criterion
from robustkit.core.types import Labels, Logits, Mask, Model, per_point
from robustkit.models.surrogates.resolve import Joint, Relaxed, source
from robustkit.search.protocol import Reply, Search, draws, select, surrogate_of

CALLS_MODELS = True  # an error raised below is the model's; see `robustkit.core.attribution`


class Goal(NamedTuple):
    """What breaks the points of some slots: a criterion, and their labels [s]."""

    criterion: Criterion
    y: Labels

    def __call__(self, logits: Logits) -> Logits:
        """Judge logits [s, k]: searches never see others, so that none needs to know the goal."""
        return self.criterion(logits, self.y)

    def rows(self, index: Tensor) -> Goal:
        """Return the goal of some slots."""
        return self._replace(y=self.y[index]) if self.criterion.suffix else self


PLAIN = Goal(UNTARGETED, torch.empty(0, dtype=torch.long))  # asks for no label


def ask(
    model: Model, search: Search[Any], state: Any, goal: Goal = PLAIN, *, half: bool = False
) -> Reply:
    """Evaluate the model at `state.query`, with the gradient of the search's objective.

    A search with the option `surrogate` follows the gradient of that surrogate, one with `eot` > 1
    the mean gradient of so many draws, one with `through` that of the function which this returns;
    the logits of a reply are always the model's own, judged by
    `goal`. Where a state says which slots are `climbing`, the others get no gradient, and logits of
    the model.

    Args:
        half: the model computes in 16 bits, so that small gradients vanish unless they are scaled.
    """
    climbing = _climbing(search, state)
    if search.uses_gradient and climbing is None:
        logits, value, gradient = _mean(model, search, state, goal, half)
        # Only the gradient is the surrogate's: a candidate is what fools the model itself, mostly
        # at the price of one more forward pass.
        if _second_pass(model, search):
            with torch.no_grad():
                logits = goal(model(state.query).float())
        return Reply(logits, value, gradient)
    if climbing is not None and not _elsewhere(search):
        return _apart(model, search, state, goal, climbing, half)
    with torch.no_grad():
        logits = goal(model(state.query).float())
        reply = Reply(logits, search.objective(logits, state), logits.new_empty(0))
    if climbing is None:
        return reply
    rows = climbing.nonzero().flatten()
    if not len(rows):
        return reply._replace(gradient=torch.zeros_like(state.query))
    _, value, slope = _mean(model, search, select(state, rows), goal.rows(rows), half)
    gradient = slope.new_zeros(len(state.query), *slope.shape[1:])
    return Reply(logits, reply.value.index_copy(0, rows, value),
                 gradient.index_copy(0, rows, slope))  # fmt: skip


def _apart(
    model: Model, search: Search[Any], state: Any, goal: Goal, climbing: Mask, half: bool
) -> Reply:
    """Evaluate the slots with and without a gradient in two batches: one pass for each."""
    rows, others = climbing.nonzero().flatten(), (~climbing).nonzero().flatten()
    if not len(others):
        return Reply(*_mean(model, search, state, goal, half))
    level = select(state, others) if len(rows) else state
    with torch.no_grad():
        logits = goal.rows(others)(model(level.query).float())
        value = search.objective(logits, level)
    gradient = torch.zeros_like(state.query)
    if not len(rows):
        return Reply(logits, value, gradient)
    answers = _mean(model, search, select(state, rows), goal.rows(rows), half)
    order = torch.cat([others, rows]).argsort()
    return Reply(
        torch.cat([logits, answers[0]])[order],
        torch.cat([value, answers[1]])[order],
        gradient.index_copy_(0, rows, answers[2]),
    )


def _elsewhere(search: Search[Any]) -> bool:
    """Whether what is differentiated is not the model itself."""
    return bool(surrogate_of(search)) or hasattr(search, "through")


def passes(model: Model, search: Search[Any], state: Any) -> tuple[Tensor | int, Tensor | int]:
    """Return the forward and backward passes of one input that `ask` makes for every slot.

    A pass of a surrogate is counted like one of the model.
    """
    eot, climbing = draws(search), _climbing(search, state)
    if climbing is not None:
        alone = 1 + eot * climbing if _elsewhere(search) else 1 + (eot - 1) * climbing
        return alone, eot * climbing
    return eot + _second_pass(model, search), eot * search.uses_gradient


def _second_pass(model: Model, search: Search[Any]) -> bool:
    """Whether the model's own logits take a pass apart from that which is differentiated."""
    name = surrogate_of(search)
    return hasattr(search, "through") or (bool(name) and not isinstance(source(model, name), Joint))


def _climbing(search: Search[Any], state: Any) -> Mask | None:
    """Return which slots need a gradient, where a search that uses gradients tells them apart.

    Without a surrogate it is a matter of cost alone, and off the CPU telling them apart costs more.
    """
    apart = search.uses_gradient and (surrogate_of(search) or state.query.device.type == "cpu")
    return getattr(state, "climbing", None) if apart else None


def _mean(
    model: Model, search: Search[Any], state: Any, goal: Goal, half: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, objective and gradient of what the search climbs on, averaged over draws."""
    named, eot = source(model, surrogate_of(search)), draws(search)
    query = state.query.detach()
    if isinstance(named, Relaxed):
        query, named = named.relax(query).detach(), named.logits
    query.requires_grad_(True)
    through = getattr(search, "through", None)
    seen = [through(named, state, draw) if through else named for draw in range(eot)]
    # EOT (Athalye et al. 2018): the gradient of the mean objective is the mean of the gradients.
    # One draw after the other, so that memory is that of a single pass.
    logits, value, gradient = _climb(seen[0], search, state, goal, query, half)
    for climbed in seen[1:]:
        more = _climb(climbed, search, state, goal, query, half)
        logits, value, gradient = logits + more[0], value + more[1], gradient + more[2]
    return logits, value / eot, gradient / eot if eot > 1 else gradient


def _climb(
    model: Model, search: Search[Any], state: Any, goal: Goal, query: Tensor, half: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, the model's own where there are two, objective and gradient of one pass."""
    gradient: Tensor | None = None
    with torch.enable_grad():
        logits, own = model.both(query) if isinstance(model, Joint) else (model(query), None)
        logits = logits.float()
        judged = goal(logits)
        value = search.objective(judged, state)
        if value.requires_grad:
            differentiate = _scaled if half and logits.requires_grad else _plain
            gradient = differentiate(value, logits, query)
    # An objective that does not depend on the input (None), and a gradient that is not a number,
    # point nowhere: the search goes on without them, and the flag `no_gradient` tells of it.
    gradient = torch.zeros_like(query) if gradient is None else gradient.nan_to_num()
    told = judged if own is None else goal(own.detach().float())
    return told.detach(), value.detach(), gradient


def _plain(value: Tensor, _: Tensor, query: Tensor) -> Tensor | None:
    # Rows are independent, so that the sum over slots has each slot's own gradient. Asking for the
    # query's alone leaves out that of the weights: 2 forward passes' worth of FLOPs in all, not 3.
    return torch.autograd.grad(value.sum(), query, allow_unused=True)[0]


def _scaled(value: Tensor, logits: Tensor, query: Tensor) -> Tensor | None:
    """Start each point's way back at a size that suits 16 bits, and divide it out in float32.

    float16 has nothing between 0 and 6e-8, and a nearly saturated objective has such gradients. The
    factor is a power of two: nothing is rounded by it.
    """
    (first,) = torch.autograd.grad(value.sum(), logits)
    exponent = -first.abs().amax(1, keepdim=True).clamp_min(2.0**-100).log2().ceil()
    back = torch.autograd.grad(logits, query, first * exponent.exp2(), allow_unused=True)
    scaled = cast("Tensor | None", back[0])
    return None if scaled is None else scaled * per_point((-exponent).exp2(), query)
