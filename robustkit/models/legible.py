"""A model with its answer read as logits in plain sight, for what traces its operations."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from robustkit.models.guard import guard_of
from robustkit.models.outputs import Reading, read


class Legible(nn.Module):
    """A model whose answer is read as logits by operations of its own."""

    def __init__(self, model: nn.Module, reading: Reading) -> None:
        super().__init__()
        self.model, self.reading = model, reading
        self.training = model.training

    def forward(self, x: Tensor) -> Any:
        """[b, c, h, w] -> logits [b, k]."""
        answer = self.model(x)
        # Behind a guard it was read already; traced by torch.fx it was not.
        return read(answer, len(x))[0] if isinstance(answer, Tensor) else self.reading.of(answer)


def legible(model: nn.Module) -> nn.Module:
    """Return the model with its answers read as logits by operations of its own, to be traced."""
    guard = guard_of(model)
    return model if guard is None or guard.reading == Reading() else Legible(model, guard.reading)
