"""Finding the logits that a model computed just before it squashed, rounded or hid them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustkit.core.types import Logits

# Autograd nodes that mix features by weights: behind the last of them an axis of length k is the
# classes, before it the same length would be a coincidence.
MIXES = ("Mm", "Addmm", "Bmm", "Mv", "Linear", "Convolution", "Embedding", "Baddbmm")
_SLACK = 1e-5  # of the range of a row: what rounding may do to an order
SPREAD = 4.0  # standard deviation of usual logits: cross-entropy then weighs the largest few
_TINY = 1e-38  # of a probability under a logarithm


def cuts(answer: Tensor, seen: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors [b, k] that all of `answer` [b, k] came through, the latest first.

    They are cut vertices of the autograd graph, and among `seen`, the results of the pass. The
    search goes back until features are mixed by weights: what lies before is no logits, whatever
    its width.
    """
    by_node = {t.grad_fn: t for t in seen if t.shape == answer.shape and t.grad_fn is not None}
    found, waiting = [answer], {answer.grad_fn}
    while waiting and None not in waiting:
        # In reverse order of execution, as autograd goes: when one node alone is waiting, every
        # path from the answer back to the input leads through it.
        node: Any = max(waiting, key=lambda n: n._sequence_nr())  # type: ignore[union-attr]
        if len(waiting) == 1 and node in by_node and by_node[node] is not answer:
            found.append(by_node[node])
        if any(word in node.name() for word in MIXES):
            break
        waiting.discard(node)
        waiting |= {n for n, _ in node.next_functions if n and "AccumulateGrad" not in n.name()}
    return found


def before(answer: Logits, seen: Sequence[Tensor]) -> Logits:
    """Return, row by row, the earliest of `cuts` [b, k] that ranks the classes as the answer."""
    chosen = _logarithm(answer.double())
    for candidate in cuts(answer, seen)[1:]:
        same = _ranks(candidate, answer)[:, None]
        chosen = torch.where(same, candidate.double(), chosen)
    return chosen


def unit(logits: Logits) -> Logits:
    """Center each row and divide it by its standard deviation, which has no gradient: float32."""
    values = logits.double()
    centered = values - values.mean(1, keepdim=True)
    spread = centered.detach().std(1, keepdim=True)
    return (centered / spread.clamp_min(1e-30)).nan_to_num(0, 0, 0).float()


def _ranks(candidate: Tensor, answer: Tensor) -> Tensor:
    """Whether, per row, the answer is a nondecreasing function of the candidate [b]."""
    with torch.no_grad():
        order = candidate.double().argsort(1)
        steps = answer.double().gather(1, order).diff(dim=1)
        span = answer.double().amax(1) - answer.double().amin(1)
        return (steps >= -_SLACK * span[:, None]).all(1) & candidate.isfinite().all(1)


def _logarithm(answer: Tensor) -> Tensor:
    """Undo a softmax in the rows that are probabilities."""
    sums = answer.detach().sum(1, keepdim=True)
    chances = (answer.detach() >= 0).all(1, keepdim=True) & ((sums - 1).abs() < 1e-3)
    inner = torch.where(chances, answer, 1.0)
    return torch.where(chances, inner.clamp_min(_TINY).log(), answer)
