"""The README's attack works as printed, from one file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from robustkit import registry
from robustkit.core.imports import load_attribute
from robustkit.core.threat import Threat
from robustkit.search.functional import attack

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("norm, eps", [("linf", 0.3), ("l2", 1.0)])
def test_the_attack_of_the_readme_finds_what_a_linear_model_must_yield(
    norm: str, eps: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = re.findall(r"```python\n(# attacks/drift.py\n.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "drift.py").write_text(block)
    registry.load_packs()
    others = {name: e for name, e in registry.attacks._entries.items() if name != "drift"}
    monkeypatch.setattr(registry.attacks, "_entries", others)
    load_attribute(f"{tmp_path / 'drift.py'}:Drift")
    model = torch.nn.Linear(6, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0] * 6, [-1.0] * 6]))
    # The margin of a point at 0.5 + 0.02 is 12 · 0.02 under logits ±sum(x − 0.5).
    shifted = torch.nn.Sequential(Center(), model)
    x = torch.full((4, 6), 0.52)
    y = shifted(x).argmax(1)
    found = attack(
        shifted, x, y, registry.attacks.build("drift(steps=20)"), Threat.parse(f"{norm}:{eps}")
    )
    assert bool((shifted(found).argmax(1) != y).all())
    assert bool(Threat.parse(f"{norm}:{eps}").contains(found, x).all())


class Center(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - 0.5
