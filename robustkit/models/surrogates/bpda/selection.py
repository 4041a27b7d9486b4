"""Backward rules of selection: the largest, the k-th, the order, and what an index looks up.

A selected value is approximated by a softmax-weighted mean of the values near it, an index by the
softmax weights [..., k] over the k places that it may name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustkit.models.surrogates.bpda.rule import Call, names, straight
from robustkit.models.surrogates.bpda.straight_through import (
    attach_weights,
    index_weights,
    is_full_float,
    proxy,
    with_gradient_of,
    with_proxies,
)

_MOST = 128  # values along an axis up to which order is smoothed: r · k weights for r of k values
_WIDTH = 0.25  # temperature of an index's weights, in standard deviations of the values


def select(name: str, call: Call, out: Any) -> Any:
    """Approximate a selection along an axis: values get a gradient, indices get weights."""
    values, indices = (out[0], out[1]) if isinstance(out, tuple) else (out, None)
    x = straight(call, out)
    axis = _axis(name, call)
    if x is None or axis is None or not x.requires_grad or x.ndim == 0 or x.shape[axis] < 2:
        return out
    moved = x.movedim(axis, -1)
    if name in ("argmax", "argmin"):
        signed = moved if name == "argmax" else -moved
        weights = _soft(signed, _WIDTH)
        if _keeps(call):
            weights = weights.unsqueeze(axis if axis >= 0 else axis - 1)
        attach_weights(out, weights)
        return out
    if name in ("argsort", "sort", "topk") and moved.shape[-1] > _MOST:
        return out
    if name == "argsort":
        picked = moved.detach().gather(-1, out.movedim(axis, -1))
        attach_weights(
            out, _near(moved, picked, _WIDTH).movedim(-2, axis - 1 if axis < 0 else axis)
        )
        return out
    kept = values.shape[axis] if values.ndim == x.ndim else None
    picked = values.movedim(axis, -1) if kept is not None else values[..., None]
    picked = picked.detach().to(x.dtype)
    if indices is not None:
        near = _near(moved, picked, _WIDTH)
        near = (
            near.movedim(-2, axis - 1 if axis < 0 else axis)
            if kept is not None
            else near[..., 0, :]
        )
        attach_weights(indices, near)
    fresh = _values(name, call, moved, picked, values, axis, kept)
    return type(out)((fresh, indices)) if indices is not None else fresh


def _values(
    name: str,
    call: Call,
    moved: Tensor,
    picked: Tensor,
    values: Tensor,
    axis: int,
    kept: int | None,
) -> Tensor:
    """Share the gradient of selected values with those near them, by the policy's `spread`."""
    # A zero and no constant: autograd must still see that the value depends on x.
    if call.policy.level and kept == 1 and name in ("max", "amax"):
        none = 0 * moved.sum(-1, keepdim=True).movedim(-1, axis)
        return with_gradient_of(values, none, call.inner)
    if not call.policy.spread or moved.shape[-1] > _MOST:
        return with_gradient_of(values, None, call.inner) if is_full_float(values) else values
    # Constant weights: with their own gradient the mean would follow the spread of the values too.
    weights = _near(moved, picked, call.policy.spread).detach()
    mean = (weights * moved[..., None, :]).sum(-1)
    soft = mean.movedim(-1, axis) if kept is not None else mean[..., 0]
    return with_gradient_of(values, soft, call.inner)


def _keeps(call: Call) -> bool:
    return bool(call.get(2, "keepdim", False))


def _axis(name: str, call: Call) -> int | None:
    """The axis that a call selects along; None for a selection from all values at once."""
    place = {"topk": 2, "kthvalue": 2}.get(name, 1)
    last = -1 if name in ("sort", "topk", "kthvalue", "argsort") else None
    axis = call.get(place, "dim", last)
    if isinstance(axis, (tuple, list)):
        axis = axis[0] if len(axis) == 1 else None
    return axis if isinstance(axis, int) and not isinstance(axis, bool) else None


def _spread(values: Tensor) -> Tensor:
    return values.detach().std(-1, keepdim=True).clamp_min(1e-12)


def _soft(values: Tensor, width: float) -> Tensor:
    return (values / (width * _spread(values))).softmax(-1)


def _near(values: Tensor, picked: Tensor, width: float) -> Tensor:
    """Softmax weights [..., r, k] over k values by their distance to each of r picked ones.

    A Laplace kernel of width `width` standard deviations. Unlike sorting networks or optimal
    transport, it needs the values that were picked, which the true operation has found already.
    """
    distance = values[..., None, :] - picked[..., :, None]
    return (-distance.abs() / (width * _spread(values))[..., None]).softmax(-1)


def carry_weights(index: Tensor, out: Tensor) -> None:
    """Store the weights of an index with its reshaped copy."""
    weights = index_weights(index)
    if weights is not None and out.numel() == index.numel():
        attach_weights(out, weights.reshape(*out.shape, weights.shape[-1]))


def by_index(name: str, call: Call, out: Tensor) -> Tensor | None:
    """Approximate what is made by an index: one-hot codes, lookups, gathers, scatters."""
    if name == "one_hot":
        weights = index_weights(call.args[0])
        if weights is not None:
            return weights if weights.shape == out.shape else _wider(weights, out)
        return _table(torch.eye(out.shape[-1], device=out.device), call.args[0])
    if name == "embedding":
        return _table(call.args[1], call.args[0])
    if name in ("getitem", "index_select"):
        index = call.args[1] if name == "getitem" else call.get(2, "index")
        if isinstance(index, Tensor) and index.dtype != torch.bool:
            return _table(call.args[0], index)
    if name in ("gather", "take_along_dim"):
        table = with_proxies(call.args[0])
        place = (1, 2) if name == "gather" else (2, 1)
        return _gathered(table, call.get(place[0], "dim"), call.get(place[1], "index"), out)
    if name == "scatter":
        return _scattered(call, out)
    if name in ("eq", "ne"):
        same = _matched(call, out)
        return same if same is None or name == "eq" else 1 - same
    return None


def _wider(weights: Tensor, out: Tensor) -> Tensor | None:
    more = out.shape[-1] - weights.shape[-1]
    return torch.nn.functional.pad(weights, (0, more)) if more > 0 else None


def _table(table: Tensor, index: Tensor) -> Tensor | None:
    """The mean row of a table by the weights of the index.

    An index with a proxy but no weights, a rounded value say, moves along the slope of the table.
    """
    weights = index_weights(index)
    table = table if (own := proxy(table)) is None else own
    if weights is not None and weights.shape[-1] == table.shape[0]:
        mean: Tensor = torch.tensordot(weights, table.to(weights.dtype), dims=1)
        return mean
    level = proxy(index)
    if level is None or not table.is_floating_point() or table.shape[0] < 2:
        return None
    # A lookup table at a rounded level is a function of the level: its slope is the difference of
    # neighboring rows.
    above, below = (index + 1).clamp_max(len(table) - 1), (index - 1).clamp_min(0)
    run = (above - below).view(*index.shape, *[1] * (table.ndim - 1))
    slope = ((table[above] - table[below]) / run).detach()  # central, one-sided at the ends
    moving = level.view(*index.shape, *[1] * (table.ndim - 1))
    risen: Tensor = table[index] + slope * (moving - moving.detach())
    return risen


def _gathered(table: Tensor, axis: int, index: Tensor, out: Tensor) -> Tensor | None:
    weights = index_weights(index)
    if weights is None or index.ndim != table.ndim or index.shape[axis] == 0:
        return None
    columns = table.movedim(axis, -1)  # [..., k]
    wanted = weights.movedim(axis if axis >= 0 else axis - 1, -2)  # [..., r, k]
    if wanted.shape[-1] != columns.shape[-1]:
        return None
    return (wanted * columns[..., None, :]).sum(-1).movedim(-1, axis)


def _scattered(call: Call, out: Tensor) -> Tensor | None:
    """The tensor scattered into, blended with the value by the weights of the index."""
    axis, index, value = (
        call.get(1, "dim"),
        call.get(2, "index"),
        call.get(3, "src", call.kwargs.get("value")),
    )
    weights = index_weights(index)
    if weights is None:
        return None
    share = weights.movedim(axis if axis >= 0 else axis - 1, -2)  # [..., r, k]
    values = torch.as_tensor(value, dtype=share.dtype, device=share.device).expand(index.shape)
    placed = (share * values.movedim(axis, -1)[..., None]).sum(-2).movedim(-1, axis)
    kept = 1 - share.sum(-2).movedim(-1, axis)
    canvas: Tensor = call.soft[0]
    return canvas.detach() * kept + (canvas - canvas.detach()) + placed


def _matched(call: Call, out: Tensor) -> Tensor | None:
    """Probability that a chosen index equals a number, or the table of numbers beside it."""
    for index, other in ((call.args[0], call.args[1]), (call.args[1], call.args[0])):
        weights = index_weights(index)
        if weights is not None and not (isinstance(other, Tensor) and other.requires_grad):
            number = torch.as_tensor(other, device=out.device).long().expand(out.shape)
            wide = weights.expand(*out.shape, weights.shape[-1])
            known = (number >= 0) & (number < weights.shape[-1])
            found = wide.gather(-1, number.clamp(0, weights.shape[-1] - 1)[..., None])[..., 0]
            return found * known
    return None


SELECTS = names("max min amax amin sort topk kthvalue median nanmedian argmax argmin argsort")
INDEXING = names("one_hot embedding getitem index_select gather take_along_dim scatter eq ne")
RESHAPES = names(
    "view reshape unsqueeze squeeze flatten unflatten getitem clone contiguous to cpu cuda detach "
    "long int view_as reshape_as"
)
