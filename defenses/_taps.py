"""TAPS: intervals up to an inner layer, and an ascent inside its box for the layers behind."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from robustkit.certify.graph import Graph, Node
from robustkit.certify.ibp import Box
from robustkit.certify.operations import Input
from robustkit.core.types import Labels
from robustkit.errors import UsageError

_WEIGHT = 5.0  # of the gradient of the TAPS loss beside that of the interval loss
_REACH = 0.5  # share of the box over which an end still gets gradient


def taps_loss(
    graph: Graph,
    boxes: list[Box],
    lower: Tensor,
    y: Labels,
    *,
    relus: int,
    steps: int,
    generator: Generator,
) -> Tensor:
    """Return the mean over the batch of L_TAPS · L_IBP, a scalar.

    Mao et al. 2023 (arXiv:2305.04574), f = f_C ∘ f_E: the intervals of f_E give a box, in which one
    ascent per class j maximizes f_C(z)_j − f_C(z)_y (the multi-estimator loss);
    L_TAPS is the cross-entropy of these maxima. The points found pass gradient to the ends of the
    box by the rectified linear connector. L_IBP = CE(−lower); the gradients of the
    two factors are weighted 2 w / (w + 1) and 2 / (w + 1), w = 5.

    Args:
        boxes: of every node, by `intervals`: of the whole ball, or of the small box of STAPS.
        lower: the margins that follow from them [b, k].
        relus: how many ReLUs the classifier f_C begins with and holds.
    """
    head, at = classifier(graph, relus)
    low, high = boxes[at]
    worst = _ascend(head, Box(low.detach(), high.detach()), y, steps, generator)
    found = _answers(head, connect(worst, Box(low, high)), y)
    taps = F.cross_entropy(found, y, reduction="none")
    ibp = F.cross_entropy(-lower, y, reduction="none")
    share = _WEIGHT / (_WEIGHT + 1)
    return (_scaled(taps, 2 * share) * _scaled(ibp, 2 - 2 * share)).mean()


def classifier(graph: Graph, relus: int) -> tuple[Graph, int]:
    """Return the last layers, from the `relus`-th last ReLU on, and the node they start from.

    Raises:
        UsageError: for a network without so many ReLUs, or with a connection past that node.
    """
    inputs = sorted(set(graph.relu_inputs()))
    if len(inputs) < relus:
        raise UsageError(
            f"taps: expected a network with at least {relus} ReLUs, got {len(inputs)}: lower "
            "`relus`."
        )
    at = inputs[-relus]
    rest = graph.nodes[at + 1 :]
    if any(index < at for node in rest for index in node.inputs):
        raise UsageError(
            "taps: expected a network in which every path passes the node it is split at, got a "
            "connection around it: choose another number of `relus`."
        )
    moved = [node._replace(inputs=tuple(index - at for index in node.inputs)) for node in rest]
    return Graph([Node(Input(), (), graph.nodes[at].shape), *moved]), at


def connect(z: Tensor, box: Box) -> Tensor:
    """Return `z` [b, k, *f], with gradient to the ends [b, *f] of its box.

    dz/dlow = max(0, 1 − (z − low) / (c (high − low))), c = 1/2, and the same from above.
    """
    low, high = box.low[:, None], box.high[:, None]
    width = (_REACH * (high - low)).detach().clamp_min(1e-12)
    to_low = (1 - (z - low.detach()) / width).clamp(0, 1)
    to_high = (1 - (high.detach() - z) / width).clamp(0, 1)
    return z + to_low * (low - low.detach()) + to_high * (high - high.detach())


def _ascend(head: Graph, box: Box, y: Labels, steps: int, generator: Generator) -> Tensor:
    """Return one point of the box for each class, where it comes closest to winning [b, k, *f]."""
    low, high = box.low[:, None], box.high[:, None]
    k = head.nodes[-1].shape[0]
    start = torch.rand(len(y), k, *low.shape[2:], generator=generator).to(low)
    z = low + (high - low) * start
    for _ in range(steps):
        z.requires_grad_(True)
        (gradient,) = torch.autograd.grad(_answers(head, z, y).sum(), z)
        with torch.no_grad():
            moved = z + 1.25 * (high - low) / steps * gradient.sign()
            z = torch.minimum(torch.maximum(moved, low), high)
    return z.detach()


def _answers(head: Graph, z: Tensor, y: Labels) -> Tensor:
    """Return f_C(z_j)_j − f_C(z_j)_y for the points of every class [b, k]."""
    b, k = z.shape[:2]
    logits = head.values(z.flatten(0, 1))[-1].view(b, k, k)
    own = logits.diagonal(dim1=1, dim2=2)
    return own - logits.gather(2, y[:, None, None].expand(b, k, 1)).squeeze(2)


def _scaled(value: Tensor, factor: float) -> Tensor:
    """Return `value` with its gradient times `factor`."""
    return factor * value + (1 - factor) * value.detach()
