"""What every criterion must do: one question, asked of answers, labels and bounds alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from robustkit.core.criterion import Criterion
from robustkit.errors import UsageError
from robustkit.integrations.conformance.fixtures import need
from robustkit.registry import Entry, read_criterion

_OUTPUTS, _POINTS = 10, 400


def checks(entry: Entry) -> Iterator[tuple[str, Callable[[], None]]]:
    """List the checks of one criterion, by name: on each of its examples, for ten outputs."""
    yield "is read by its name", partial(_named, entry)
    for text in entry.facts.get("examples", ()):
        yield f"is read as it is written ({text})", partial(_read, text)
        yield f"judges points alone ({text})", partial(_alone, text)
        yield f"takes a right decision for one ({text})", partial(_right, text)
        yield f"decides ties and large logits exactly ({text})", partial(_exact, text)
        yield f"hides no undefined answer ({text})", partial(_undefined, text)
        yield f"is proved by bounds alone where it holds ({text})", partial(_sound, text)


def _named(entry: Entry) -> None:
    need(issubclass(entry.target, Criterion), "expected a robustkit.core.criterion.Criterion")
    need(bool(entry.facts.get("examples")), 'expected examples=("...",) in its registration')
    try:
        read_criterion(f"{entry.name}:no-such-thing")
    except UsageError:
        return
    need(False, f"expected {entry.name}:no-such-thing to be refused by a UsageError")


def _answers(text: str) -> tuple[Criterion, Tensor, Tensor]:
    """Return logits and labels that the criterion asks about."""
    criterion, draw = read_criterion(text), torch.Generator().manual_seed(4)
    logits = 3 * torch.randn(_POINTS, _OUTPUTS, generator=draw)
    best = logits.argmax(1)
    other = torch.randint(_OUTPUTS, best.shape, generator=draw)
    y = torch.where(torch.arange(_POINTS) % 2 == 0, best, other)
    abstain = criterion.abstention
    asked = torch.from_numpy(criterion.asked(np.where(y == abstain, -1, y))) & (y != abstain)
    criterion.check(_OUTPUTS)
    need(bool(asked.any()), "expected it to ask about some labels")
    return criterion, logits[asked], y[asked]


def _read(text: str) -> None:
    criterion = read_criterion(text)
    need(str(criterion) == text, f"expected {text} to be written so again, got {criterion}")
    need(read_criterion(text) == criterion, "reading it twice gives two criteria")


def _alone(text: str) -> None:
    criterion, logits, y = _answers(text)
    judged = criterion(logits, y)
    need(judged.shape == logits.shape and judged.dtype == logits.dtype, "expected logits [b, k]")
    some = judged[:20]
    rows = zip(logits[:20].split(1), y[:20].split(1), strict=True)
    need(torch.equal(torch.cat([criterion(*row) for row in rows]), some), "rows see each other")
    twice = criterion(torch.stack([logits, -logits]), y)
    both = torch.stack([judged, criterion(-logits, y)])
    need(torch.equal(twice, both), "expected several passes [t, b, k] to be judged one by one")
    broken = judged.argmax(1) != y
    need(bool(broken.any() and not broken.all()), "expected some points to be broken, not all")


def _right(text: str) -> None:
    criterion, logits, y = _answers(text)
    sure = logits.scatter(1, y[:, None], 100.0)
    need(bool((criterion(sure, y).argmax(1) == y).all()), "a sure, right decision breaks a point")
    clean = criterion.clean(logits, y).argmax(1) == y
    broken = criterion(logits, y).argmax(1) != y
    need(not bool((clean & broken).any()), "a point that is right as it is is broken too")
    most = criterion.classes(_OUTPUTS)
    need(2 <= most <= _OUTPUTS, f"expected from 2 to {_OUTPUTS} decisions to matter, got {most}")


def _exact(text: str) -> None:
    criterion, logits, y = _answers(text)
    for scale in (0.3, 1e8, 1e-8):
        rounded = (logits * 0.5).round() * scale  # many are equal
        judged, broken = criterion(rounded, y), criterion.broken(rounded, y)
        need(torch.equal(judged.argmax(1) != y, broken), "a tie is decided otherwise than `broken`")


def _undefined(text: str) -> None:
    criterion, logits, y = _answers(text)
    for place in range(_OUTPUTS):
        for value in (torch.nan, torch.inf, -torch.inf):
            wrong = logits[:4].clone()
            wrong[:, place] = value
            defined = criterion(wrong, y[:4]).isfinite().all(1)
            need(not bool(defined.any()), f"{value} in output {place} is judged as if defined")


def _sound(text: str) -> None:
    criterion, logits, y = _answers(text)
    if not criterion.provable:
        return
    reference = criterion.reference(logits, y)
    moved = logits + torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))
    exact = moved.gather(1, reference[:, None]) - moved
    needed = criterion.bounds(exact, y).scatter(1, reference[:, None], torch.inf)
    proved = (needed > 0).all(1)
    broken = criterion(moved, y).argmax(1) != y
    need(bool(proved.any()), "expected some points to be proved by exact differences of logits")
    need(not bool((proved & broken).any()), "bounds prove points that are broken")
