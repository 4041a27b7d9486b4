"""Whether several outputs stand for a class and take turns under attack."""

from __future__ import annotations

import torch

from robustkit.core.losses import margin
from robustkit.core.types import Images, Logits
from robustkit.models.surrogates.pooled import class_outputs
from robustkit.verify.diagnostics.counted_model import CountedModel
from robustkit.verify.flags import Flag, flag

_STEPS, _STEP = 5, 0.02  # of the attack, in units of the box
_SHARE = 4  # a flag takes one input in so many


def of_outputs(
    counted: CountedModel, x: Images, first: Logits, box: tuple[float, float]
) -> list[Flag]:
    """Follow the gradient of the margin from `x` [b, *f], and see which output carries the class.

    It is said of models whose logits are chosen from the outputs of a layer inside; `first` are
    the logits at `x`. Where an attack lowers one output of the class and another takes its place,
    it is absorbed: what it has gained is lost (arXiv:2410.12671).
    """
    found = class_outputs(counted.model, x, counted.logits)
    if found is None:
        return []
    y, z, target = first.argmax(1), x, torch.zeros_like(first.argmax(1))
    began, absorbed = None, torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for _ in range(_STEPS + 1):
        with found.noted() as seen:
            logits, gradient = counted.gradient(z, lambda answer: margin(answer, y, target))
        now = found.winners(seen[-1].detach(), y)
        began = now if began is None else began
        absorbed |= (now != began) & (logits.argmax(1) == y)
        if gradient is None:
            break
        z = (z + _STEP * (box[1] - box[0]) * gradient.nan_to_num().sign()).clamp(*box)
    count = int(absorbed.sum())
    if _SHARE * count < len(x):
        return []
    seen_at = f"at {count} of {len(x)} inputs another output of the same class takes over when "
    return [flag("absorbing_outputs", f"{seen_at}the gradient of the margin is followed")]
