"""Propagation tightness: how close interval bounds are to exact on a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustkit.certify.activations import Activation
from robustkit.certify.graph import Graph, trace
from robustkit.certify.ibp import input_box
from robustkit.certify.nonlinear import Nonlinear
from robustkit.certify.operations import Input, Join, MaxPool, Sum
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels, Scalars
from robustkit.errors import UsageError


def tightness(model: nn.Module | Graph, x: Images, eps: float, y: Labels) -> Scalars:
    """Return |W_n D ... D W_1| r / (|W_n| D ... D |W_1| r) per point [b], in [0, 1].

    Mao et al. 2024 (arXiv:2306.10426): the network is the linear one at x [b, *f], D the ReLUs that
    are on there, r [b, *f] half the width of the box of radius `eps` clipped to [0, 1]; the mean
    over the margins z_y − z_j, j ≠ y, with the last layer elided. 1: intervals are exact for that
    linear network. A point whose denominators are zero counts as 1.

    Raises:
        UsageError: for an operation other than affine ones, sums, concatenation and ReLU.
    """
    graph = model if isinstance(model, Graph) else trace(model, tuple(x.shape[1:]))
    low, high = input_box(x, Threat("linf", eps))
    radius = (high - low).detach() / 2
    with torch.enable_grad():
        point = x.detach().requires_grad_(True)
        values = graph.values(point)
        logits, k = values[-1], values[-1].shape[1]
        margins = logits.gather(1, y[:, None]) - logits
        # ‖row j of the Jacobian‖ weighted by r: one backward pass per class.
        exact = [
            (torch.autograd.grad(margins[:, j].sum(), point, retain_graph=True)[0].abs() * radius)
            .flatten(1)
            .sum(1)
            for j in range(k)
        ]
    with torch.no_grad():
        bound = _bounds(graph, values, radius, y)
        ratio = torch.where(bound > 0, torch.stack(exact, 1) / bound.clamp_min(1e-30), 1.0)
        others = torch.arange(k, device=y.device) != y[:, None]
        mean: Scalars = (ratio.clamp_max(1) * others).sum(1) / max(1, k - 1)
    return mean.detach()


def _bounds(graph: Graph, values: list[Tensor], radius: Tensor, y: Labels) -> Tensor:
    """Push the half-widths through |W| with the mask of the clean point: [b, k] of the margins."""
    widths: list[Tensor] = []
    for op, inputs, _ in graph.nodes[:-1]:
        got = [widths[index] for index in inputs]
        if isinstance(op, Input):
            widths.append(radius)
        elif isinstance(op, Sum):
            widths.append(got[0] + got[1])
        elif isinstance(op, Join):
            widths.append(torch.cat(got, op.axis))
        elif isinstance(op, Activation) and op.name == "relu":
            widths.append(got[0] * (values[inputs[0]] > 0))
        elif isinstance(op, (Activation, MaxPool, Nonlinear)):
            name = getattr(op, "name", type(op).__name__)
            raise UsageError(f"propagation tightness is defined for ReLU networks, got {name}.")
        else:
            widths.append(op.spread(got[0]))
    last = graph.nodes[-1]  # elided, as in `margins_of`
    weight = getattr(getattr(last.op, "layer", None), "weight", None)
    if weight is None or weight.ndim != 2:
        raise UsageError("propagation tightness needs a network whose last layer is linear.")
    rows = (weight[y][:, None] - weight[None]).abs()
    return torch.einsum("bkd,bd->bk", rows, widths[last.inputs[0]])
