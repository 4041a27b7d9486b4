"""Exact counts of the passes that any attack library makes through a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robustkit.core.types import Model

CALLS_MODELS = True  # an error raised below is the model's; see `robustkit.core.attribution`


class PassCounter(nn.Module):
    """Counts inputs passed forward, and those whose output was differentiated back to the input.

    A backward pass is counted when autograd reaches the input, for every input of the batch.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.forwards = self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        """[b, *f] -> [b, k]."""
        self.forwards += len(x)
        if torch.is_grad_enabled() and x.requires_grad:
            x = _Watch.apply(x, self)
        return self.model(x)


class _Watch(torch.autograd.Function):
    """The identity; tells its owner when a gradient comes back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, owner: PassCounter) -> Tensor:
        ctx.owner = owner
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.owner.backwards += len(grads[0])
        return grads[0], None
