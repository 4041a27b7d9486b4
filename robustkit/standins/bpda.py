"""Backward pass differentiable approximation, made automatically for any model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkit.standins.mode import Bypassing
from robustkit.standins.rules import Manner
from robustkit.types import Images, Logits, Model

BPDA = Manner(spread=0.05)


@dataclass(frozen=True)
class Bpda:
    """The model's own values, with the gradients of differentiable stand-ins.

    Rounding, casts, signs, comparisons, choices, sorting, clamps, detach, no_grad, hooks: each
    operation without a useful derivative keeps its value and borrows the derivative of a smooth
    one. Athalye, Carlini, Wagner 2018 (arXiv:1802.00420), section 4.1, with every operation in
    place of one chosen layer.
    """

    model: Model

    def __call__(self, x: Images) -> Logits:
        """[b, *f] -> [b, k]."""
        return run(self.model, x, BPDA)


def run(model: Model, x: Tensor, manner: Manner) -> Tensor:
    """Return `model(x)` with stand-ins on the way back; plainly, where no gradient is wanted."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return model(x)
    try:
        with Bypassing(manner):
            return model(x.clone())
    finally:
        _forget(model)


def _forget(model: Model) -> None:
    """Let no graph live on in what the model remembers."""
    if isinstance(model, nn.Module):
        for buffer in model.buffers():
            if buffer.grad_fn is not None:
                buffer.detach_()
