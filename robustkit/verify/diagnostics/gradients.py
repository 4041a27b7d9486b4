"""Whether the gradient is there, of a usable size, and the one that the outputs follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from robustkit.core.rng import generator
from robustkit.core.types import Images, Logits, Mask, Scalars
from robustkit.verify.diagnostics.counted_model import CountedModel, spread
from robustkit.verify.flags import Flag, flag

# Steps in units of the box. Around a kink of a ReLU small ones are right; across the levels of a
# quantizer with a straight-through gradient, and in 16 bits, large ones are: one is enough.
_STEPS = (4e-3, 1e-3, 1.6e-2, 6.4e-2)
_TINY = 6e-4  # a move that float16 sees, and a level of 1/255 seldom does
_FEW = 3  # pixels
_INSIDE, _JITTER = 0.075, 0.01  # how far from the edge of the box, and from flat areas, to look
_RANDOM = 3  # directions
_WRONG = 0.35  # of the change: what the gradient may be off by
_WAVERS = 0.01  # of its length: what a gradient may change by from one pass to the next
_SHARE = 4  # a flag takes one input in so many
_EXPLODES = 255e3  # change by the gradient in a step of 1, in logits' sizes


class _Base(NamedTuple):
    """Inputs in the interior of the box, with the gradient of their margin.

    The margin is that of the two classes that lead at `x`, also where others lead nearby.
    """

    x: Images
    logits: Logits
    gradient: Images
    margin: Callable[[Logits], Scalars]


def of_gradients(
    counted: CountedModel, x: Images, first: Logits, box: tuple[float, float], *, randomized: bool
) -> list[Flag]:
    """Look at the gradient of the margin at `x` [b, *f], whose logits are `first`.

    Of a randomized model whose draws are not repeated, it is only seen whether the gradient is
    there and of a usable size.
    """
    logits, gradient = counted.gradient(x, _leading(first))
    flags, n = list[Flag](), len(x)
    size = torch.zeros(n) if gradient is None else gradient.flatten(1).abs().amax(1)
    usable = (size > 0) & size.isfinite()
    if dead := int((~usable).sum()):
        seen = f"the margin has no gradient at {dead} of {n} inputs (zero, or not a number)"
        rest = "attacks that follow it are blind there, and the robust accuracy means little"
        flags.append(flag("no_gradient", f"{seen}: {rest}"))
    if gradient is not None:
        reach = gradient.flatten(1).abs().sum(1) * (box[1] - box[0])
        wild = int((usable & (reach > _EXPLODES * spread(logits).clamp_min(1e-12))).sum())
        if _SHARE * wild >= n:
            seen = f"at {wild} of {n} inputs the gradient is more than {_EXPLODES:.3g} times the "
            flags.append(flag("exploding_gradient", f"{seen}size of the logits"))
    if randomized:
        return flags
    base, side = _interior(counted, x, box), box[1] - box[0]
    steps = _constant(counted, base, side)
    lies = _wavering(counted, base) or _mismatch(counted, base, side, 0 if steps else _RANDOM)
    return flags + lies + steps


def _leading(logits: Logits) -> Callable[[Logits], Scalars]:
    """Return the margin between the two classes that lead in `logits`."""
    pair = logits.topk(2, dim=1).indices

    def margin(answer: Logits) -> Scalars:
        first, second = answer.gather(1, pair).unbind(1)
        return first - second

    return margin


def _interior(counted: CountedModel, x: Images, box: tuple[float, float]) -> _Base:
    side = box[1] - box[0]
    noise = _draw(x, 0) * _JITTER * side
    inside = box[0] + _INSIDE * side + (1 - 2 * _INSIDE) * (x - box[0]) + noise
    margin = _leading(counted.logits(inside))
    logits, gradient = counted.gradient(inside, margin)
    gradient = torch.zeros_like(x) if gradient is None else gradient
    return _Base(inside, logits, gradient, margin)


def _draw(x: Images, number: int) -> Images:
    """Draw from [-1, 1], the same for the same `number`, on every device."""
    draws = torch.rand(x.shape, generator=generator(0, number, len(x)))
    return (2 * draws - 1).to(x)


def _wavering(counted: CountedModel, base: _Base) -> list[Flag]:
    """Ask for the gradient again, of a model whose outputs are always the same."""
    again = counted.gradient(base.x, base.margin)[1]
    if again is None:
        return []
    before, now = base.gradient.flatten(1), again.flatten(1)
    length = torch.maximum(before.norm(dim=1), now.norm(dim=1))
    other = int(((before - now).norm(dim=1) > _WAVERS * length).sum())  # of no number: False
    if _SHARE * other < len(before):
        return []
    seen = f"two passes over one input give different gradients, at {other} of {len(before)} inputs"
    return [flag("gradient_mismatch", f"{seen}, and the same outputs")]


def _mismatch(counted: CountedModel, base: _Base, side: float, random: int) -> list[Flag]:
    """Compare with central differences along the gradient's sign and along `random` random signs.

    Of outputs that change by jumps the first says whether the gradient leads up, which is all that
    can be asked. A direction counts by how much the margin would change along it; what rounding
    can do to a difference is allowed. Inputs that agree at one step are not asked about again.
    """
    sizes = base.gradient.flatten(1).abs().amax(1)
    asking = (sizes > 0) & sizes.isfinite()
    n = int(asking.sum())
    if not n:
        return []
    own = base.gradient.sign()
    others = [_draw(base.x, 1 + i).sign() for i in range(random)]
    wrong = asking.clone()
    for step in _STEPS:
        errors = _off(counted, base, [own], others, step * side, wrong)
        wrong[wrong.clone()] = errors > _WRONG
        if not bool(wrong.any()):
            break
    count = int(wrong.sum())
    if count < max(1, -(-n // _SHARE)):
        return []
    seen = f"at {count} of {n} inputs the gradient of the margin disagrees with finite differences"
    return [flag("gradient_mismatch", f"{seen} of the outputs, by more than {_WRONG:.0%}")]


def _off(
    counted: CountedModel,
    base: _Base,
    own: list[Images],
    others: list[Images],
    step: float,
    rows: Mask,
) -> Scalars:
    """Return the relative error at `rows`, the worse of the one along `own` and along `others`."""
    index = rows.nonzero().flatten()
    x, gradient = base.x[index], base.gradient[index].flatten(1).double()
    grain = _grain(base.logits)
    worst = torch.zeros(len(index), dtype=torch.float64, device=x.device)
    for directions in filter(None, (own, others)):
        seen, told = list[Tensor](), list[Tensor]()
        for direction in directions:
            up, down = x + step * direction[index], x - step * direction[index]
            margins = [_margins(counted, base, z, index).double() for z in (up, down)]
            seen.append(margins[0] - margins[1])
            told.append((gradient * (up.double() - down.double()).flatten(1)).sum(1))
        change, promise = torch.stack(seen, 1), torch.stack(told, 1)
        # Random signs move a linear function by about the length of its gradient.
        usual = gradient.norm(dim=1) * 2 * step * len(directions) ** 0.5 / 2
        scale = torch.stack([change.norm(dim=1), promise.norm(dim=1), usual]).amax(0)
        rounding = grain * base.logits[index].abs().amax(1).double() * len(directions) ** 0.5
        error = ((change - promise).norm(dim=1) - rounding).clamp_min(0) / scale.clamp_min(1e-300)
        worst = torch.maximum(worst, error.nan_to_num(0.0))  # no number: nothing can be said
    return worst


def _grain(logits: Logits) -> float:
    """Return what rounding may do to a difference of logits, relative to their size.

    Logits that 16 bits hold exactly were computed in 16 bits.
    """
    for kind in (torch.bfloat16, torch.float16):
        if torch.equal(logits.to(kind).float(), logits):
            return 2 * torch.finfo(kind).eps
    return 8 * torch.finfo(torch.float32).eps


def _margins(counted: CountedModel, base: _Base, z: Images, index: Tensor) -> Scalars:
    """Return the margins of inputs `z` [r, *f] near the rows `index` of the base."""
    whole = base.logits.clone()
    if counted.seed is None:
        whole[index] = counted.logits(z)
    else:  # draws are the same in batches of the same rows alone
        whole = counted.logits(base.x.index_copy(0, index, z))
    return base.margin(whole)[index]


def _constant(counted: CountedModel, base: _Base, side: float) -> list[Flag]:
    """Move few pixels a little, to either side: what is smooth answers, if faintly.

    Moved is the pixel with the largest gradient. Where there is none, a few drawn ones are.
    """
    size = base.gradient.nan_to_num().abs().flatten(1)
    one = torch.zeros_like(size).scatter(1, size.argmax(1, keepdim=True), 1.0)
    draws = _draw(base.x, 9).flatten(1)
    few = torch.zeros_like(size).scatter(1, draws.topk(min(_FEW, draws.shape[1])).indices, 1.0)
    pixels = torch.where(size.amax(1, keepdim=True) > 0, one, few).view_as(base.x)
    still = torch.zeros(len(size), dtype=torch.bool, device=size.device)
    for move in (_TINY, -_TINY):
        still |= (counted.logits(base.x + move * side * pixels) == base.logits).all(1)
    varies = bool((base.logits != base.logits[0]).any())
    if not varies or 2 * int(still.sum()) < len(still):
        return []
    seen = f"at {int(still.sum())} of {len(still)} inputs the outputs do not change at all when "
    return [flag("piecewise_constant", f"{seen}a pixel moves by {_TINY:g}")]
