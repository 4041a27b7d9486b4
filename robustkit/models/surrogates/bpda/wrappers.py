"""The built-in surrogates: a model run in the BPDA mode, by several backward policies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkit.core.types import Images, Logits, Model
from robustkit.models.surrogates.bpda.mode import BpdaMode
from robustkit.models.surrogates.bpda.numpy_bridge import patched
from robustkit.models.surrogates.bpda.rule import BackwardPolicy
from robustkit.models.surrogates.bpda.straight_through import undo_custom_backward
from robustkit.models.surrogates.pre_squash import SPREAD, before, unit

LIGHT = BackwardPolicy(clamps=False)  # true derivatives, except of what has none
NORMAL = BackwardPolicy(spread=0.05)
STRONG = BackwardPolicy(spread=1.0, level=True, temper=True)


@dataclass(frozen=True)
class Bpda:
    """BPDA: the model's own logits, with the gradients of differentiable approximations.

    Rounding, casts, signs, comparisons, selection, sorting, clamps, detach, no_grad, hooks, custom
    autograd functions, NumPy arrays: each operation without a useful derivative keeps its value
    and gets the derivative of a smooth one. Athalye, Carlini, Wagner 2018 (arXiv:1802.00420),
    section 4.1.

    Differs from the paper: every such operation is approximated, found as the model runs, in place
    of one layer that the attacker chose.
    """

    model: Model

    def __call__(self, x: Images) -> Logits:
        """[b, *f] -> [b, k]."""
        return _run(self.model, x, NORMAL)[0]


@dataclass(frozen=True)
class Bypass:
    """`Bpda`, with the identity as the backward pass of everything that preprocesses the input.

    For purification, compression, quantization and noise before a classifier (Athalye et al. 2018,
    section 4.1.1, g(x) ≈ x): the last result of the input's shape that correlates with it, row by
    row, has the gradient of slope · input. See `similarity.follow`.
    """

    model: Model

    def __call__(self, x: Images) -> Logits:
        """[b, *f] -> [b, k]."""
        return _run(self.model, x, NORMAL, bypass=True)[0]


@dataclass(frozen=True)
class BeforeSquashing:
    """The logits that the model computed before it squashed, rounded or one-hot coded them.

    Each row is standardized, so that saturation and temperature behind the logits do not matter.
    The order of the classes is the model's, for every input; see `pre_squash.before`.
    """

    model: Model
    policy: BackwardPolicy = LIGHT

    def __call__(self, x: Images) -> Logits:
        """[b, *f] -> [b, k]."""
        answer, seen = _run(self.model, x, self.policy, rows=True)
        # Standardized, then at the spread of usual logits: cross-entropy has a gradient everywhere.
        return SPREAD * unit(before(answer, seen) if answer.requires_grad else answer)


def smooth(model: Model) -> BeforeSquashing:
    """Return the smoothest built-in surrogate: squashing undone, every hard selection made soft.

    A selected value (k-th, median, largest) shares its gradient with all values within one standard
    deviation of it, a maximum that is subtracted has none, and nothing in the model saturates.
    Its decisions are the model's; its gradient may point elsewhere than the model's.
    """
    return BeforeSquashing(model, STRONG)


def _run(
    model: Model, x: Tensor, policy: BackwardPolicy, *, bypass: bool = False, rows: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Return `model(x)` with approximated gradients, and with `rows` the results [b, k] on the way.

    Where no gradient is wanted, the model is called as it is.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return model(x), []
    entry = x.clone()  # not the caller's leaf: models that change their input in place may do so
    mode = BpdaMode(policy, entry if bypass else None, len(x) if rows else 0)
    try:
        with patched(mode, model), mode:
            answer = model(entry.view_as(entry))
        return undo_custom_backward(answer, mode.inner_autograd), mode.seen
    finally:
        _forget(model)


def _forget(model: Model) -> None:
    """Detach buffers that the pass wrote to: the graph would live as long as the model."""
    if isinstance(model, nn.Module):
        for buffer in model.buffers():
            if buffer.grad_fn is not None:
                buffer.detach_()
