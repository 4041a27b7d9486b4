"""What every finite threat model must do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from robustkit.core.finite import FiniteThreat
from robustkit.core.threat import NORMS
from robustkit.integrations.conformance.fixtures import need
from robustkit.registry import Entry, read_threat


def checks(entry: Entry) -> Iterator[tuple[str, Callable[[], None]]]:
    """List the checks of one threat model, by name."""
    yield "has a name that is no norm", partial(_name, entry)
    for text in entry.facts.get("examples", ()):
        yield f"lists its variants ({text})", partial(_lists, f"{entry.name}:{text}")
        yield f"makes the same images again ({text})", partial(_repeats, f"{entry.name}:{text}")


def _name(entry: Entry) -> None:
    need(entry.name not in NORMS, f"{entry.name} is a norm already: choose another name")
    need(
        issubclass(entry.target, FiniteThreat),
        "expected a subclass of robustkit.core.finite.FiniteThreat",
    )


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
    need(str(read_threat(str(threat))) == str(threat), f"{threat} is not read as it is written")


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


_BACKWARDS: Sequence[int] = (2, 1, 0)
