"""What every threat model of a pack must do: one that lists its inputs, or has parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from robustkit.core.finite import FiniteThreat
from robustkit.core.named import NamedThreat
from robustkit.core.parametric import STEPS, ParametricThreat
from robustkit.core.tabular import TabularThreat
from robustkit.core.threat import NORMS
from robustkit.integrations.conformance.fixtures import need
from robustkit.registry import Entry, read_threat, suites


def checks(entry: Entry) -> Iterator[tuple[str, Callable[[], None]]]:
    """List the checks of one threat model, by name."""
    yield "has a name that is no norm", partial(_name, entry)
    for text in entry.facts.get("examples", ()):
        yield f"reads what it writes ({text})", partial(_reads, f"{entry.name}:{text}")
        if issubclass(entry.target, ParametricThreat):
            yield f"tells its own images ({text})", partial(_tells, f"{entry.name}:{text}")
            yield f"moves points alone ({text})", partial(_alone, f"{entry.name}:{text}")
        if issubclass(entry.target, FiniteThreat):
            yield f"lists its variants ({text})", partial(_lists, f"{entry.name}:{text}")
            yield f"makes the same images again ({text})", partial(_repeats, f"{entry.name}:{text}")


def _name(entry: Entry) -> None:
    need(entry.name not in NORMS, f"{entry.name} is a norm already: choose another name")
    need(
        issubclass(entry.target, NamedThreat),
        "expected a subclass of robustkit.core.finite.FiniteThreat, of "
        "robustkit.core.parametric.ParametricThreat, or of robustkit.core.named.NamedThreat",
    )
    need(entry.target.suite in suites, f"expected a registered suite, got {entry.target.suite!r}")


def _reads(text: str) -> None:
    threat = read_threat(text)
    need(str(read_threat(str(threat))) == str(threat), f"{threat} is not read as it is written")
    x = torch.linspace(0, 1, 3 * 28 * 28).view(3, 1, 28, 28)
    # Variants are others than the point, and rules come with data.
    listed = isinstance(threat, FiniteThreat | TabularThreat)
    inside = listed or bool(threat.contains(x, x).all())
    need(inside, "expected a point to lie in the threat model around it")


def _read(text: str) -> FiniteThreat:
    threat = read_threat(text)
    assert isinstance(threat, FiniteThreat)
    return threat


def _lists(text: str) -> None:
    threat = _read(text)
    need(bool(threat.variants), "expected at least one variant, got none")
    need(len(set(threat.variants)) == len(threat.variants), "a variant is listed twice")
    largest = max(variant.severity for variant in threat.variants)
    need(threat.eps == largest, f"expected eps = {largest}, the largest severity: {threat.eps}")


def _repeats(text: str) -> None:
    threat, points = _read(text), [5, 0, 12]
    x = torch.linspace(0, 1, 3 * 28 * 28).view(3, 1, 28, 28)
    for variant in threat.variants[:: max(1, len(threat.variants) // 5)]:
        made = threat.images(x, points, variant)
        need(
            made.shape == x.shape and made.dtype == x.dtype, "expected float32 images [b, c, h, w]"
        )
        need(bool(((made >= 0) & (made <= 1)).all()), f"{variant} leaves [0, 1]")
        alone = [threat.images(x[k : k + 1], points[k : k + 1], variant) for k in _BACKWARDS]
        again = torch.cat(alone).flip(0)
        need(torch.equal(made, again), f"{variant} depends on the batch, or on what came before")


def _moved(text: str) -> tuple[ParametricThreat, Tensor, Tensor, Tensor]:
    threat = read_threat(text)
    assert isinstance(threat, ParametricThreat)
    x = torch.linspace(0.1, 0.9, 3 * 28 * 28).view(3, 1, 28, 28)
    size = len(x), threat.size(x.shape[1:])
    draw = torch.Generator().manual_seed(0)
    positions = torch.randint(-STEPS, STEPS + 1, size, generator=draw)
    return threat, x, positions, threat.made(x, positions)


def _tells(text: str) -> None:
    threat, x, positions, made = _moved(text)
    need(threat.eps == 1, f"expected eps = 1, the whole of every range: {threat.eps}")
    need(torch.equal(threat.made(x, torch.zeros_like(positions)), x), "position 0 moves a point")
    need(bool(threat.contains(made, x).all()), "expected its own images to be contained")
    again = threat.made(x, threat.positions(made, x)[0])
    need(torch.equal(again, made), "the positions of an image do not make it again")
    other = made.clone()
    other[:, 0, 14, 14] = 1 - other[:, 0, 14, 14]
    need(not bool(threat.contains(other, x).any()), "a pixel of its own is taken for a move")


def _alone(text: str) -> None:
    threat, x, positions, made = _moved(text)
    alone = [threat.made(x[k : k + 1], positions[k : k + 1]) for k in _BACKWARDS]
    need(torch.equal(torch.cat(alone).flip(0), made), "an image depends on the batch")
    need(bool(((made >= 0) & (made <= 1)).all()), "an image leaves [0, 1]")
    need(made.shape == x.shape and made.dtype == x.dtype, "expected float32 images [b, c, h, w]")


_BACKWARDS: Sequence[int] = (2, 1, 0)
