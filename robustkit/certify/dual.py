"""The greatest weight of a row, as bounds over an l1 ball need it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from robustkit.certify.affine import Affine, ConvOp, LinearOp


def greatest(op: Affine, r: Tensor) -> Tensor:
    """Return max_j |W_ij| r_j for r ≥ 0 [b, *f]: [b, *out].

    Exact for linear layers and convolutions, and for operations that scale or move values; any
    other sum is at least its greatest summand.
    """
    if isinstance(op, LinearOp):
        return (op.layer.weight.abs() * r[..., None, :]).amax(-1)
    if not isinstance(op, ConvOp):
        return op.spread(r)
    c = op.layer
    padding = int(c.padding[0]), int(c.padding[1])
    # A channel at a time: its weights times every window.
    seen = F.unfold(r, c.kernel_size, c.dilation, padding, c.stride)
    seen = seen.unflatten(1, (c.groups, -1))  # [b, groups, c · kh · kw, positions]
    weights = c.weight.abs().flatten(1)
    each = c.out_channels // c.groups
    rows = [(weights[i, :, None] * seen[:, i // each]).amax(1) for i in range(c.out_channels)]
    found = torch.stack(rows, 1)
    shape = op.forward(r[:1]).shape[1:]
    return found.view(len(r), *shape)
