"""A model run with stand-ins on the way back, in several manners."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkit.core.types import Images, Logits, Model
from robustkit.models.surrogates.bpda.mode import Bypassing
from robustkit.models.surrogates.bpda.numpy_bridge import watched
from robustkit.models.surrogates.bpda.rule import BackwardRule
from robustkit.models.surrogates.bpda.straight_through import exposed
from robustkit.models.surrogates.pre_squash import SPREAD, before, unit

LIGHT = BackwardRule(clamps=False)
NORMAL = BackwardRule(spread=0.05)
STRONG = BackwardRule(spread=1.0, level=True, temper=True)


@dataclass(frozen=True)
class Bpda:
    """The model's own values, with the gradients of differentiable stand-ins.

    Rounding, casts, signs, comparisons, choices, sorting, clamps, detach, no_grad, hooks, custom
    autograd functions, arrays of NumPy: each operation without a useful derivative keeps its value
    and borrows the derivative of a smooth one. Athalye, Carlini, Wagner 2018 (arXiv:1802.00420),
    section 4.1.

    Differs from the paper: every operation has its stand-in, in place of one chosen layer.
    """

    model: Model

    def __call__(self, x: Images) -> Logits:
        """[b, *f] -> [b, k]."""
        return _run(self.model, x, NORMAL)[0]


@dataclass(frozen=True)
class Bypass:
    """As `Bpda`; besides, what still resembles the input counts as the input.

    For purifiers, codes, quantizers and noise before a classifier: the last result of the input's
    shape that follows it closely, row by row, has the gradient of an affine image of it.
    """

    model: Model

    def __call__(self, x: Images) -> Logits:
        """[b, *f] -> [b, k]."""
        return _run(self.model, x, NORMAL, front=True)[0]


@dataclass(frozen=True)
class BeforeSquashing:
    """What the model computed before it squashed its logits, each row with one spread.

    The order of the classes is the model's, for every input; see `cuts.before`. Saturation,
    temperature, rounding and one-hot codes behind the logits do no harm.
    """

    model: Model
    manner: BackwardRule = LIGHT

    def __call__(self, x: Images) -> Logits:
        """[b, *f] -> [b, k]."""
        answer, seen = _run(self.model, x, self.manner, rows=True)
        return SPREAD * unit(before(answer, seen) if answer.requires_grad else answer)


def smooth(model: Model) -> BeforeSquashing:
    """Return the strongest general stand-in: squashing undone, and everything hard made soft.

    A selected value (k-th, median, largest) shares its gradient with all values within a spread of
    it, a largest value that is subtracted has none, and nothing inside the model saturates.
    """
    return BeforeSquashing(model, STRONG)


def _run(
    model: Model, x: Tensor, manner: BackwardRule, *, front: bool = False, rows: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Return `model(x)` with stand-ins on the way back, and the results [b, k] on the way.

    Plainly, where no gradient is wanted.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return model(x), []
    entry = x.clone()
    mode = Bypassing(manner, entry if front else None, len(x) if rows else 0)
    try:
        with watched(mode, model), mode:
            answer = model(entry.view_as(entry))
        return exposed(answer, mode.inside), mode.seen
    finally:
        _forget(model)


def _forget(model: Model) -> None:
    """Let no graph live on in what the model remembers."""
    if isinstance(model, nn.Module):
        for buffer in model.buffers():
            if buffer.grad_fn is not None:
                buffer.detach_()
