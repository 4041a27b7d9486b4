"""Which weights a training ends with: the last, their moving average, or those of its best epoch.

Everything lies in the training's memory, so that a resumed run goes on with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_AVERAGE, _BEST = "average.", "best."
_WATCHED = "log.watched"
_WARM_UP = 10


def average(memory: dict[str, Tensor], part: nn.Module, decay: float, step: int) -> None:
    """Move the average in `memory` to the weights and statistics of `part`, after step 0, 1, ...

    The decay rises to `decay` as (1 + step) / (10 + step), so that the first weights are forgotten.
    """
    share = 1 - min(decay, (1 + step) / (_WARM_UP + step))
    for key, value in part.state_dict().items():
        held = memory.get(_AVERAGE + key)
        if held is None or not value.is_floating_point():
            memory[_AVERAGE + key] = value.detach().clone()
        else:
            held.lerp_(value, share)


def look(
    memory: dict[str, Tensor],
    model: nn.Module,
    part: nn.Module,
    watch: Callable[[nn.Module], float],
) -> None:
    """Watch the model with its averaged weights, if there are any; keep them if none was better.

    Mode and weights of the model are afterwards what they were.
    """
    mode = model.training
    current = {key: value.clone() for key, value in part.state_dict().items()}
    candidate = _under(_AVERAGE, memory) or current
    part.load_state_dict(candidate)
    model.eval()
    found = torch.tensor([watch(model)], dtype=torch.float64)
    part.load_state_dict(current)
    model.train(mode)
    before = memory.get(_WATCHED, found[:0]).cpu()
    memory[_WATCHED] = torch.cat([before, found])
    if not len(before) or float(found) > float(before.max()):
        memory.update({_BEST + key: value.clone() for key, value in candidate.items()})


def settle(memory: dict[str, Tensor], part: nn.Module) -> None:
    """Load the best weights into `part`; where none was watched, the averaged ones, if any."""
    if kept := _under(_BEST, memory) or _under(_AVERAGE, memory):
        part.load_state_dict(kept)


def _under(prefix: str, memory: dict[str, Tensor]) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in memory.items() if k.startswith(prefix)}
