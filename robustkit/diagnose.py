"""Reasons to distrust an evaluation, as structured flags.

`examine` looks at a few points before the attacks run; `review` looks at the outcome. State lives
in the return values only, so nothing leaks from one model to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.stats import binomtest

from robustkit.errors import UsageError
from robustkit.record import Flag, Stage
from robustkit.types import Images, Logits, Model

_TOLERANCE = 1e-3  # on logits scaled to unit length; batched kernels may differ in the last bits


class Health(NamedTuple):
    """What the first look found.

    Attributes:
        randomized: two passes over the same input differ.
        classes: number of logits.
        answers: the logits that were looked at [b, k].
        forwards, backwards: passes spent looking.
    """

    randomized: bool
    classes: int
    flags: tuple[Flag, ...]
    answers: Logits
    forwards: int
    backwards: int

    def after(self, forwards: int, backwards: int) -> Health:
        """Return the same with more passes spent."""
        spent = (self.forwards + forwards, self.backwards + backwards)
        return self._replace(forwards=spent[0], backwards=spent[1])


def examine(model: Model, x: Images, classes: int, name: str) -> Health:
    """Check on a few inputs `x` [b, *f] that the model can be evaluated at all.

    Raises:
        UsageError: when the model fails on inputs of this shape, does not return one row of at
            least `classes` finite logits per input, or lets the inputs of a batch influence each
            other.
    """
    x = x if len(x) > 1 else torch.cat([x, x.flip(-1) / 2])  # coupling takes two
    first = _logits(model, x, classes, name)
    repeats = torch.stack([_logits(model, x, classes, name) for _ in range(4)])
    noise = max(_difference(first, other) for other in repeats)
    randomized = noise > 1e-4 or bool((repeats.argmax(2) != first.argmax(1)).any())
    flags: list[Flag] = []
    if getattr(model, "untrained", False):
        flags.append(
            Flag(
                name="untrained",
                message="the weights are random, as was asked for: no number here says anything "
                "about a trained model. Ask for pretrained weights, or give them with --weights.",
            )
        )
    forwards = 5 * len(x)
    if randomized:
        flags.append(
            Flag(
                name="randomized",
                message=f"two passes over one input differ (by {noise:.2g} of the logits' length): "
                "each verdict is the majority of ten. Attack with expectation over the noise.",
            )
        )
    else:
        alone = torch.cat([_logits(model, x[i : i + 1], classes, name) for i in range(len(x))])
        forwards += len(x)
        _refuse_coupling(_difference(first, alone), name)
    dead = _without_gradient(model, x, name)
    if dead:
        flags.append(
            Flag(
                name="no_gradient",
                message=f"the margin has no gradient at {dead} of {len(x)} inputs (zero, or not a "
                "number): attacks that follow it are blind there, and the robust accuracy means "
                "little. Look for rounding, detach, no_grad, saturation; attack a smooth stand-in.",
            )
        )
    if bool(((first >= 0) & (first <= 1)).all() and ((first.sum(1) - 1).abs() < 1e-4).all()):
        flags.append(
            Flag(
                name="probabilities",
                message="the outputs are probabilities, not logits: they saturate, and gradients "
                "vanish with them. Return the layer before the softmax.",
            )
        )
    return Health(
        randomized, first.shape[1], tuple(flags), first, forwards + len(x), backwards=len(x)
    )


def review(
    stages: Sequence[Stage], white_box: Sequence[bool], clean: int, n: int, classes: int
) -> list[Flag]:
    """Look at the outcome: `clean` of `n` points were classified correctly.

    Raised flags: `chance` when the clean accuracy is not above guessing (5% level), `black_box`
    when attacks without gradients take more than one point, and more than 0.2% of the points, from
    attacks with gradients that ran before them.
    """
    flags: list[Flag] = []
    if binomtest(clean, n, 1 / classes, alternative="greater").pvalue > 0.05:
        flags.append(
            Flag(
                name="chance",
                message=f"clean accuracy {clean / n:.3f} on {n} points cannot be told from "
                f"guessing among {classes} classes. Preprocessing (--mean, --std), channel order, "
                "or labels?",
            )
        )
    blind = sum(
        stage.broken
        for number, stage in enumerate(stages)
        if not white_box[number] and any(white_box[:number])
    )
    if blind > max(1.0, 0.002 * n):
        flags.append(
            Flag(
                name="black_box",
                message=f"attacks without gradients took {blind} points that those with gradients "
                "had left: the gradients are masked. Do not trust the robust accuracy.",
            )
        )
    return flags


def _logits(model: Model, x: Images, classes: int, name: str) -> Logits:
    shape = list(x.shape[1:])
    try:
        with torch.no_grad():
            answer: object = model(x)
    except Exception as error:
        raise UsageError(
            f"{name} failed on a batch of inputs of shape {shape}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(answer, torch.Tensor) or answer.ndim != 2 or len(answer) != len(x):
        got = list(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
        raise UsageError(
            f"{name} must map inputs [{len(x)}, {', '.join(map(str, shape))}] to logits "
            f"[{len(x)}, k], got {got}"
        )
    if answer.shape[1] < classes:
        raise UsageError(
            f"{name} returns {answer.shape[1]} logits, but the data has {classes} classes "
            "(the largest label, plus one: do the labels start at 0?)"
        )
    if not bool(answer.isfinite().all()):
        rows = (~answer.isfinite().all(1)).nonzero().flatten().tolist()
        raise UsageError(f"{name} returns NaN or infinite logits on clean inputs (rows {rows})")
    return answer.float()


def _without_gradient(model: Model, x: Images, name: str) -> int:
    """Count the inputs at which the gradient of the margin is zero or not finite."""
    query = x.detach().requires_grad_(True)
    try:
        with torch.enable_grad():
            top = model(query).float().topk(2, dim=1).values
            margin = top[:, 0] - top[:, 1]
            if not margin.requires_grad:
                return len(x)
            (gradient,) = torch.autograd.grad(margin.sum(), query, allow_unused=True)
    except RuntimeError as error:
        raise UsageError(f"{name} cannot be differentiated: {error}") from error
    if gradient is None:
        return len(x)
    size = gradient.flatten(1).abs().amax(1)
    return int((~(size > 0) | ~size.isfinite()).sum())


def _difference(a: Logits, b: Logits) -> float:
    """Largest distance between two rows, each scaled to unit length."""
    a, b = (z / z.norm(dim=1, keepdim=True).clamp_min(1e-12) for z in (a, b))
    return float((a - b).norm(dim=1).max())


def _refuse_coupling(difference: float, name: str) -> None:
    if difference > _TOLERANCE:
        raise UsageError(
            f"{name} answers differently to a point alone and in a batch (by {difference:.2g} of "
            "the logits' length), so that a verdict would depend on the other points. Is it in "
            "training mode, or is batch normalization without running statistics? Call .eval()."
        )
