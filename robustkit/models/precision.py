"""The precision that a model is in throughout, and whether its inputs must be cast to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def weights_type(model: object) -> torch.dtype | None:
    """Return the one floating type of all weights of a module; None where there are several."""
    weights = model.parameters() if isinstance(model, nn.Module) else iter(())
    kinds = {part.dtype for part in weights if part.is_floating_point()}
    return kinds.pop() if len(kinds) == 1 else None


def needs_cast(model: object, x: Tensor) -> bool:
    """Whether a model in 16 or 64 bits fails on inputs in float32, and not on those of its type.

    One that casts by itself is left alone: it may normalize in float32 before.
    """
    kind = weights_type(model)
    if not isinstance(model, nn.Module) or kind in (None, x.dtype):
        return False
    for given, needed in ((x, False), (x.to(kind), True)):
        try:
            with torch.no_grad():
                model.forward(given.clone())
        except Exception:  # whatever it is, the pass itself raises it again
            continue
        return needed
    return False
