"""The last word: what a search claims is true only if this file says so.

A point counts as broken after a fresh float32 forward pass of the original model on the stored
input, with the distance checked in float64 and the box checked exactly. For a model whose answers
are random, the verdict is the majority of ten fresh passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from robustkit.device import full_precision
from robustkit.errors import RobustkitError, some
from robustkit.threat import Threat
from robustkit.types import Images, Labels, Logits, Mask, Model, Scalars

DRAWS = 10  # forward passes behind one verdict on a randomized model


class Verdict(NamedTuple):
    """What became of candidates [b]: whether each stands, the predicted class, the distance."""

    broken: Mask
    predicted: Labels
    distance: Scalars


def predict(model: Model, x: Images, draws: int = 1) -> tuple[Labels, Logits]:
    """Return the predicted class and the float32 logits (averaged over the draws) per point.

    With several draws the prediction is the most frequent class, ties going to the lower label.
    """
    with torch.no_grad(), full_precision():
        answers = torch.stack([model(x).float() for _ in range(draws)])
    votes = torch.nn.functional.one_hot(answers.argmax(2), answers.shape[2]).sum(0)
    return votes.argmax(1), answers.mean(0)


def verify(
    model: Model,
    z: Images,
    x: Images,
    y: Labels,
    threat: Threat,
    *,
    attack: str,
    points: Sequence[int],
    draws: int = 1,
) -> Verdict:
    """Judge candidates `z` [b, *f] for the clean points `x`, as they will be stored.

    Args:
        model: the original model, in full precision.
        attack, points: who claims what, for the error message.

    Raises:
        RobustkitError: when a candidate lies outside the threat model or is not finite, or when
            the model's answer to it is not.
    """
    distance = threat.distance(z, x)
    outside = ~(threat.contains(z, x) & z.isfinite().flatten(1).all(1))
    if bool(outside.any()):
        rows = outside.nonzero().flatten().tolist()
        worst = distance[outside].max().item()
        raise RobustkitError(
            f"{attack} left the threat model {threat} (box [{threat.lower:g}, {threat.upper:g}]) "
            f"on points {some([points[row] for row in rows])}: distance up to {worst:.6g}. "
            "The search has an error; its verdicts are not used."
        )
    predicted, logits = predict(model, z, draws)
    if not bool(logits.isfinite().all()):
        rows = (~logits.isfinite().all(1)).nonzero().flatten().tolist()
        raise RobustkitError(
            f"the model returned NaN or infinite logits on what {attack} found for points "
            f"{some([points[row] for row in rows])}. A verdict on such points is not defined; "
            "mend the model."
        )
    return Verdict(predicted != y, predicted, distance)
