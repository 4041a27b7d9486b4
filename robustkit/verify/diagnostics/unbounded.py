"""How far the gradient leads when nothing holds it back."""

from __future__ import annotations

from collections.abc import Callable

import torch

from robustkit.core.losses import margin
from robustkit.core.types import Images, Labels, Logits, Scalars
from robustkit.verify.diagnostics.counted_model import CountedModel
from robustkit.verify.flags import Flag, flag

_LONG, _SHORT = 20, 5  # steps
_SHARE = 4  # of the inputs, what may keep its class or turn around by chance: one in so many


def of_reach(
    counted: CountedModel, x: Images, first: Logits, box: tuple[float, float]
) -> list[Flag]:
    """Follow the gradient of the margin from `x` [b, *f] to the edge of the box, and halfway.

    With no bound but the box every input reaches every other one: where those of `x` are not all
    of one class, a gradient that finds no other class is of no use. `first` are their logits.
    """
    y, side = first.argmax(1), box[1] - box[0]
    if bool((y == y[0]).all()):  # for all that is known, there is no other class
        return []
    whole = _changed(counted, x, y, box, side, _LONG)
    flags, allowed, n = list[Flag](), max(1, len(x) // _SHARE), len(x)
    if n - whole > allowed:
        seen = f"{n - whole} of {n} inputs keep their class after {_LONG} steps along the gradient"
        flags.append(flag("huge_eps", f"{seen}, bounded by the box alone"))
    half = _changed(counted, x, y, box, side / 2, _LONG)
    short = _changed(counted, x, y, box, side, _SHORT)
    for other, what in ((half, f"{_LONG} steps in half of the box"), (short, f"{_SHORT} steps")):
        if other - whole > allowed:
            seen = f"{what} change the class of {other} of {n} inputs, {_LONG} steps in the whole "
            flags.append(flag("not_monotone", f"{seen}box that of {whole}"))
            break
    return flags


def _changed(
    counted: CountedModel, x: Images, y: Labels, box: tuple[float, float], eps: float, steps: int
) -> int:
    """Count the inputs that leave their class `y` within the steps; those that do stop there."""
    low, high = (x - eps).clamp_min(box[0]), (x + eps).clamp_max(box[1])
    z, changed = x, 0
    for step in range(steps + 1):
        if step == steps:
            logits, gradient = counted.logits(z), None
        else:
            logits, gradient = counted.gradient(z, _away_from(y))
        # Where the answer is not a number, nobody can say: no reason for this flag.
        left = (logits.argmax(1) == y) & logits.isfinite().all(1)
        changed += int((~left).sum())
        if gradient is None or not bool(left.any()):
            break
        moved = (z + 2.5 * eps / steps * gradient.nan_to_num().sign()).clamp(low, high)
        if torch.equal(moved, z):  # and would be for ever
            break
        z, y, low, high = (part[left] for part in (moved, y, low, high))
    return changed


def _away_from(y: Labels) -> Callable[[Logits], Scalars]:
    return lambda logits: margin(logits, y, torch.zeros_like(y))
