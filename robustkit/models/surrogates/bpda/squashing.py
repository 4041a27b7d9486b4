"""Backward rules of operations that have a derivative which vanishes: squashing, max pooling."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from robustkit.models.surrogates.bpda.rule import Call, Rule, scale, straight


def tempered(name: str) -> Rule:
    """Return the rule of a squashing function: the same one, as wide as the row's arguments.

    A softmax over logits that are a hundred apart has a gradient below float32's least number;
    divided by their standard deviation they are a few apart.
    """

    def squash(call: Call, out: Tensor) -> Tensor | None:
        first = straight(call, out)
        if not call.policy.temper or first is None:
            return None
        if name in ("softmax", "log_softmax"):
            axis = call.get(1, "dim", -1)
            width = first.detach().std(axis, keepdim=True).clamp_min(1)  # wider, never narrower
            return (first / width).softmax(axis) if name == "softmax" else _log(first / width, axis)
        squashed: Tensor = getattr(torch, name)(first / scale(first).clamp_min(1))
        return squashed

    return squash


def _log(values: Tensor, axis: int) -> Tensor:
    return values.log_softmax(axis)


def pooled(name: str) -> Rule:
    """Return the rule of max pooling: a softmax-weighted mean of each window.

    Its temperature is `spread` standard deviations of the row. The weights are constants on the way
    back, so that the mean is two average poolings.
    """

    def pool(call: Call, out: Tensor) -> Tensor | None:
        first, dilation = straight(call, out), call.get(4, "dilation", 1)
        if call.policy.spread < 1 or first is None or {*np.atleast_1d(dilation)} != {1}:
            return None
        rest = {k: v for k, v in call.kwargs.items() if k not in ("return_indices", "dilation")}
        size = call.policy.spread * first.detach().flatten(1).std(1)
        size = size.clamp_min(1e-12).view(-1, *[1] * (first.ndim - 1))
        top = first.detach().flatten(1).amax(1).view_as(size)  # so that exp cannot overflow
        weight = ((first.detach() - top) / size).exp()
        mean = getattr(torch.nn.functional, name.replace("max", "avg"))
        joined: Tensor = mean(first * weight, *call.args[1:4], **rest)
        total: Tensor = mean(weight, *call.args[1:4], **rest)
        # A window far below the row's maximum has weights that underflow: no gradient, not NaN.
        return joined / total.clamp_min(1e-30)

    return pool
