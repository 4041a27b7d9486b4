"""What the checks use: one small model whose rows are bitwise independent, and its points."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from robustkit.core.criterion import Criterion
from robustkit.core.named import NamedThreat
from robustkit.core.threat import Threat
from robustkit.registry import Entry

THREATS = (Threat("linf", 0.04), Threat("l2", 0.35), Threat("l1", 1.8), Threat("l0", 6))


class Unmet(Exception):
    """A check that did not pass; the message says what was expected and what was got."""


def need(holds: bool, message: str) -> None:
    """Raise `Unmet` unless `holds`."""
    if not holds:
        raise Unmet(message)


def documented(entry: Entry) -> None:
    """Expect a docstring, frozen options with defaults, and the facts of its kind."""
    need(bool(entry.summary), "expected a docstring whose first line says what it is, got none")
    params = entry.target.__dataclass_params__
    need(params.frozen, "expected a frozen dataclass: @dataclass(frozen=True)")
    lacking = [
        field.name
        for field in dataclasses.fields(entry.target)
        if field.init
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if issubclass(entry.target, (NamedThreat, Criterion)):  # is read from a text, which gives them
        lacking = []
    need(not lacking, f"expected a default for every option, got none for {', '.join(lacking)}")
    need("cites" in entry.facts, 'expected cites="..." in its registration, "" where it is new')


class Rows(nn.Module):
    """Smooth, four classes, inputs [b, 1, 6, 6]: no kernel mixes the rows of a batch."""

    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(2)
        self.prototypes = torch.rand(4, 1, 6, 6, generator=draw)
        self.first = nn.Parameter(torch.randn(12, 36, generator=draw) / 6)
        self.second = nn.Parameter(torch.randn(4, 12, generator=draw))
        self.linear = nn.Parameter(2 * self.prototypes.flatten(1))
        self.register_buffer("offset", -self.prototypes.flatten(1).square().sum(1))

    def forward(self, x: Tensor) -> Tensor:
        """[b, 1, 6, 6] -> [b, 4]."""
        flat = x.flatten(1)[:, None]
        hidden = (flat * self.first).sum(2).tanh()[:, None]
        logits: Tensor = (flat * self.linear).sum(2) + (hidden * self.second).sum(2) + self.offset
        return logits


def points(model: Rows, count: int = 24) -> tuple[Tensor, Tensor]:
    """Points that the model gets right, but for every fifth."""
    draw = torch.Generator().manual_seed(3)
    index = torch.arange(count)
    noise = torch.rand(count, 1, 6, 6, generator=draw)
    x = 0.4 * model.prototypes[index % 4] + 0.6 * noise
    with torch.no_grad():
        y = model(x).argmax(1)
    return x, torch.where(index % 5 == 2, (y + 1) % 4, y)
