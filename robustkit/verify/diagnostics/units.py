"""Whether hidden units jump where their gradient is zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robustkit.core.rng import generator
from robustkit.core.types import Images
from robustkit.models.surrogates.submodules import hookable, within
from robustkit.verify.diagnostics.counted_model import CountedModel
from robustkit.verify.flags import Flag, flag

_MOVE = 0.01  # of every pixel, in units of the box
_JUMPS = 1e-3  # of the units, what may jump
_SHARE = 4  # a flag takes one input in so many
_SLACK = 1e-4  # of the largest unit: rounding


def of_units(counted: CountedModel, x: Images, box: tuple[float, float]) -> list[Flag]:
    """Move the inputs `x` [b, *f] a little, and look at the activations inside.

    Looked at are modules without weights that return what they are given in shape, and are no
    layers of PyTorch or of robustkit. A unit jumps if it has no gradient and its output moves by
    more than its input times the module's largest slope: a ReLU never does, a band that is set to
    its mean (arXiv:2406.05927), or a unit that is no winner any more (arXiv:1905.10510), does. The
    gradient of the model leaves out what such units add on average.
    """
    layers = [m for m in within(counted.model).values() if _activates(m)]
    if not layers:
        return []
    drawn = torch.rand(x.shape, generator=generator(0, 11, len(x)))
    move = _MOVE * (box[1] - box[0]) * (2 * drawn - 1).sign().to(x)
    before, after = (_units(counted, layers, z) for z in (x, (x + move).clamp(*box)))
    jumping, units = torch.zeros(len(x)), 0
    for layer, (f, h) in before.items():
        if layer in after and f.shape == h.shape == after[layer][0].shape and len(f) == len(x):
            found = _jumps(layer, f, h, *after[layer])
            jumping, units = jumping + found.flatten(1).sum(1).cpu(), units + found[0].numel()
    many = int((jumping > _JUMPS * units).sum()) if units else 0
    if _SHARE * many < len(x) or not units:
        return []
    share = float(jumping.mean()) / units
    seen = f"at {many} of {len(x)} inputs hidden units without a gradient jump when pixels move by "
    return [flag("jumping_units", f"{seen}{_MOVE:g} ({share:.1%} of them on average)")]


def _activates(module: Any) -> bool:
    own = isinstance(module, nn.Module) and not isinstance(module, (nn.Sequential, nn.Linear))
    known = type(module).__module__.startswith("robustkit.models.")
    bare = not any(True for _ in module.parameters()) and not any(module.children())
    return own and bare and not known and hookable(module)


def _units(
    counted: CountedModel, layers: list[nn.Module], x: Images
) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """Return what goes in and comes out of the modules in one pass."""
    seen = dict[nn.Module, tuple[Tensor, Tensor]]()

    def note(layer: nn.Module, given: Any, named: Any, out: Any) -> None:
        alone = len(given) == 1 and not named
        if alone and isinstance(given[0], Tensor) and isinstance(out, Tensor):
            seen[layer] = given[0].detach().clone(), out.detach().clone()

    handles = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    try:
        counted.logits(x)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _jumps(layer: nn.Module, f: Tensor, h: Tensor, f2: Tensor, h2: Tensor) -> Tensor:
    """Say which units [b, ...] have no gradient at `f` and jump on the way to `f2`."""
    inner = f.clone().requires_grad_(True)
    # Weights, so that what cancels in a sum, as of a normalization's outputs, counts.
    weights = 1 + torch.rand(h.shape, generator=generator(0, 12, len(h))).to(h)
    try:
        with torch.enable_grad():
            total = (weights * layer(inner)).sum()
            slope = torch.autograd.grad(total, inner)[0] if total.requires_grad else 0 * f
    except RuntimeError:  # it cannot be differentiated: other flags tell of it
        slope = torch.zeros_like(f)
    steepest = float(slope.abs().max().clamp_min(1.0))
    least = _SLACK * torch.maximum(h.abs(), f.abs()).amax()
    return (slope == 0) & ((h2 - h).abs() > steepest * (f2 - f).abs() + least)
