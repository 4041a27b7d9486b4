"""Candidates judged: what a search claims is true only if this file says so.

A point counts as broken after a fresh float32 forward pass of the original model on the stored
input, with the distance checked in float64 and the box checked exactly.

A model whose answers are random is asked up to 40 times afresh on the stored input, until a
sequential test (Wald 1945) tells "errs in three passes of four" from "errs in half of them", or 25
passes erred: a search proposes dozens of candidates, and one lucky draw among them must not count.
An input that fools one pass in three gets through with probability 1e-4, one that fools half of
them with 0.04, three in four with 0.84. How often the input fools the model is then measured on 20
passes that took no part in choosing it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from robustkit.core.criterion import UNTARGETED, Criterion, Judged
from robustkit.core.device import full_precision
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Integers, Labels, Logits, Mask, Model, Scalars
from robustkit.errors import RobustkitError, some

CALLS_MODELS = True  # an error raised below is the model's; see `robustkit.core.attribution`

DRAWS = 10  # passes behind the clean prediction of a randomized model
TRIALS, NEEDED = 40, 25  # most passes on a candidate; of all of them, so many must err
# The test ends where the log-likelihood ratio of 3/4 against 1/2 leaves this interval. A plain 25
# of 40, given up after two right answers in the first three, asks 17.7 times about an input that
# fools half of the passes and 26 times about one that fools nearly all; this 11.6 and 13 times. It
# is the stricter on the first and the surer on the second (computed exactly, as the tests do).
_GIVE_UP, _ACCEPT = -1.5, 4.2
FIRST = 3  # passes by which a share of errors is shrunk where few were made
FRESH = 20  # passes on a confirmed input, to measure how often it fools
# Where every image of a batch has draws of its own, trials are asked together, up to so many rows
# at once, in few blocks: a call for three rows takes half as long as one for sixteen.
_BLOCKS, _ROWS = (4, 7, 5, 8, 16), 64


class CandidateVerdicts(NamedTuple):
    """What became of candidates [b].

    Attributes:
        broken: whether each breaks its point.
        predicted: the class, of a randomized model the most frequent.
        errors: of a randomized model, the share of fresh passes that err on a confirmed candidate,
            NaN on a refused one; else None.
        seen: of a randomized model, the passes that erred until the verdict, as a share of `FIRST`
            more than were made, so that few say little; else None.
        passes: forward passes spent on all of them together.
    """

    broken: Mask
    predicted: Labels
    distance: Scalars
    errors: Scalars | None
    seen: Scalars | None
    passes: int


class Answer(NamedTuple):
    """The most frequent decision [b], mean logits [b, k] and the votes [b, k] of some passes."""

    predicted: Labels
    logits: Logits
    votes: Integers


def predict(
    model: Model, x: Images, draws: int = 1, judged: Judged = lambda logits: logits
) -> Answer:
    """Ask `draws` times for logits, which keep float64; ties go to the lower label.

    Args:
        judged: by which every pass decides; the logits come back as the model gave them.
    """
    answers = _ask(model, x, draws)
    votes = torch.nn.functional.one_hot(judged(answers).argmax(2), answers.shape[2]).sum(0)
    return Answer(votes.argmax(1), answers.mean(0), votes)


def draws_per_image(model: Model) -> bool:
    """Whether the model declares that every image of a batch has random draws of its own."""
    return getattr(model, "draws_per_image", False) is True


def _ask(model: Model, x: Images, draws: int) -> Float[Tensor, "t b k"]:
    """Return the logits of so many passes."""
    together = max(1, _ROWS // len(x)) if draws_per_image(model) and len(x) else 1
    # A GPU may round products to TF32, 10 bits of mantissa. Candidates lie just across the decision
    # boundary, where that is enough to change the class.
    with torch.no_grad(), full_precision():
        if together == 1 or draws == 1:
            return torch.stack([_full(model(x)) for _ in range(draws)])
        parts = [min(together, draws - start) for start in range(0, draws, together)]
        return torch.cat(
            [_full(model(x.repeat(k, *[1] * (x.ndim - 1)))).unflatten(0, (k, -1)) for k in parts]
        )


def _full(logits: Logits) -> Logits:
    """Return logits in float32; those in float64 stay, whose order float32 may not tell."""
    return logits if logits.dtype == torch.float64 else logits.float()


def verify(
    model: Model,
    z: Images,
    x: Images,
    y: Labels,
    threat: Threat,
    *,
    attack: str,
    points: Sequence[int],
    randomized: bool = False,
) -> CandidateVerdicts:
    """Judge candidates `z` [b, *f] for the clean points `x`, as they will be stored.

    Args:
        model: the original model, in full precision.
        attack, points: who claims what, for the error message.
        randomized: whether the model's answers are random.

    Raises:
        RobustkitError: when a candidate lies outside the threat model or is not finite, or when
            the model's answer to it is not.
    """
    # A candidate outside is no near miss but an error of the search, whose other claims are not to
    # be trusted either: raise, where a model that is not fooled would merely refuse it.
    distance = threat.distance(z, x, points)
    outside = ~(threat.contains(z, x, points=points) & z.isfinite().flatten(1).all(1))
    if bool(outside.any()):
        rows = outside.nonzero().flatten().tolist()
        worst = distance[outside].max().item()
        raise RobustkitError(
            f"{attack} left the threat model {threat} (box [{threat.lower:g}, {threat.upper:g}]) "
            f"on points {some([points[row] for row in rows])}: distance up to {worst:.6g}. "
            "The search has an error; its verdicts are not used."
        )
    return judge(model, z, y, distance, threat.criterion, attack=attack, points=points,
                 randomized=randomized)  # fmt: skip


def judge(
    model: Model,
    z: Images,
    y: Labels,
    distance: Scalars,
    criterion: Criterion = UNTARGETED,
    *,
    attack: str,
    points: Sequence[int],
    randomized: bool = False,
) -> CandidateVerdicts:
    """Ask the model about inputs `z` [b, *f] that are known to lie in the threat model.

    Raises:
        RobustkitError: when an answer is not finite.
    """
    told = _repeat(model, z, y, criterion) if randomized else _once(model, z, y, criterion)
    if bool(told.undefined.any()):
        rows = told.undefined.nonzero().flatten().tolist()
        raise RobustkitError(
            f"the model returned NaN or infinite logits on what {attack} found for points "
            f"{some([points[row] for row in rows])}. A verdict on such points is not defined; "
            "mend the model."
        )
    return CandidateVerdicts(
        told.broken, told.predicted, distance, told.errors, told.seen, told.passes
    )


def measure(model: Model, z: Images, y: Labels, criterion: Criterion = UNTARGETED) -> Scalars:
    """Return the share of `FRESH` passes of a randomized model over `z` [b, *f] that err."""
    right = predict(model, z, FRESH, criterion.at(y)).votes.gather(1, y[:, None])[:, 0]
    return 1 - right.float() / FRESH


def holds(
    model: Model, z: Images, y: Labels, full: int, criterion: Criterion = UNTARGETED
) -> tuple[list[bool], int]:
    """Say which inputs `z` [b, *f] fool the model alone and in a batch of `full`; and the passes.

    Kernels are chosen by the size of a batch, and round differently.
    """
    rows = zip(z.split(1), y.split(1), strict=True)
    alone = torch.cat([predict(model, a, 1, criterion.at(b)).predicted for a, b in rows])
    places = torch.arange(max(full, len(z)), device=z.device) % len(z)
    together = predict(model, z[places], 1, criterion.at(y[places])).predicted[: len(z)]
    held: list[bool] = ((alone != y) & (together != y)).tolist()
    return held, len(z) + len(places)


class _Votes(NamedTuple):
    broken: Mask
    predicted: Labels
    undefined: Mask
    errors: Scalars | None
    seen: Scalars | None
    passes: int


def _once(model: Model, z: Images, y: Labels, criterion: Criterion) -> _Votes:
    predicted, logits, _ = predict(model, z, 1, criterion.at(y))
    return _Votes(predicted != y, predicted, ~logits.isfinite().all(1), None, None, len(z))


@lru_cache
def _limits() -> list[tuple[int, int]]:
    """Return for every trial how many errors accept a candidate, and how many right answers end it.

    The ratio gains log 1.5 by an error and loses log 2 by a right answer.
    """
    error, right = math.log(1.5), math.log(2)
    found = []
    for trial in range(1, TRIALS + 1):
        enough = math.ceil((_ACCEPT + trial * right) / (error + right))
        many = math.ceil((trial * error - _GIVE_UP) / (error + right))
        found.append((min(enough, NEEDED), min(many, TRIALS - NEEDED + 1)))
    return found


def _repeat(model: Model, z: Images, y: Labels, criterion: Criterion) -> _Votes:
    """Ask until the sequential test has decided; then measure.

    Verdicts come trial by trial, however many are asked together.
    """
    errors, seen = z.new_full((len(z),), torch.nan), z.new_zeros(len(z))
    predicted, undefined = y.clone(), torch.zeros_like(y, dtype=torch.bool)
    rows, right = torch.arange(len(z), device=z.device), torch.zeros_like(y)
    broken = torch.zeros_like(undefined)
    votes: Integers | None = None
    trial = passes = 0
    for block in _BLOCKS if draws_per_image(model) else (1,) * TRIALS:
        if not len(rows):
            break
        answers = _ask(model, z[rows], block)
        passes += block * len(rows)
        votes = torch.zeros_like(answers[0], dtype=torch.long) if votes is None else votes
        for place in range(block):
            logits, trial = answers[place], trial + 1
            undefined[rows] |= ~logits.isfinite().all(1)
            decided = criterion(logits, y[rows]).argmax(1)
            votes = votes + torch.nn.functional.one_hot(decided, logits.shape[1])
            right = right + (decided == y[rows])
            seen[rows] = (trial - right).to(seen.dtype) / (trial + FIRST)
            enough, many = _limits()[trial - 1]
            accepted = trial - right >= enough
            broken[rows] = accepted
            predicted[rows] = torch.where(accepted, votes.argmax(1), y[rows])
            goes_on = ~accepted & (right < many)
            answers = answers[:, goes_on]
            rows, votes, right = rows[goes_on], votes[goes_on], right[goes_on]
    fooled = broken.nonzero().flatten()
    if len(fooled):
        errors[fooled] = measure(model, z[fooled], y[fooled], criterion).to(errors.dtype)
        passes += FRESH * len(fooled)
    return _Votes(broken, predicted, undefined, errors, seen, passes)
