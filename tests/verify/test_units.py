"""Hidden units that jump where their gradient is zero are told from those that merely bend."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustkit.verify.diagnostics.counted_model import CountedModel
from robustkit.verify.diagnostics.units import of_units

BOX = (0.0, 1.0)


class Activation(nn.Module):
    """A function as a module of its own."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, f: Tensor) -> Tensor:
        return self.function(f)


def _winners(f: Tensor) -> Tensor:
    return f * (f >= f.topk(64, dim=1).values[:, -1:])


JUMP: dict[str, Callable[[Tensor], Tensor]] = {
    "band": lambda f: torch.where(f.abs() < 0.2, 0.0, f),
    "winners": _winners,
    "rounded": lambda f: (4 * f).round() / 4,
    "gate": lambda f: f * (f > 0.2),
    "detached": lambda f: (1.1 * f).sign() * 0.5,
}
BEND: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "steep": lambda f: 5 * f.clamp(-0.1, 0.1),
    "softshrink": lambda f: nn.functional.softshrink(f, 0.2),
    "tanh": torch.tanh,
    "normalized": lambda f: (f - f.mean(1, keepdim=True)) / f.std(1, keepdim=True),
    "centered": lambda f: f - 0.3,
}


def _flags(function: Callable[[Tensor], Tensor]) -> set[str]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Flatten(), nn.Linear(36, 512), Activation(function), nn.Linear(512, 4)
        )
        x = torch.rand(16, 1, 6, 6)
    counted = CountedModel(net.requires_grad_(False), "net")
    found = {flag.name for flag in of_units(counted, x, BOX)}
    assert counted.forwards == 32
    return found


@pytest.mark.parametrize("name", JUMP)
def test_jumps_are_flagged(name: str) -> None:
    assert _flags(JUMP[name]) == {"jumping_units"}


@pytest.mark.parametrize("name", BEND)
def test_bends_are_not(name: str) -> None:
    assert _flags(BEND[name]) == set()


def test_layers_of_pytorch_take_no_pass() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 4))
    counted = CountedModel(net, "net")
    assert of_units(counted, torch.rand(4, 1, 6, 6), BOX) == []
    assert counted.forwards == 0


class Named(nn.Module):
    """An activation that takes its slope by name."""

    def forward(self, f: Tensor, *, gain: float) -> Tensor:
        return torch.relu(gain * f)


def test_what_is_called_by_name_is_left_alone() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.last = Named(), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.last(self.act(x, gain=2.0))
            return logits

    assert of_units(CountedModel(Net().eval(), "net"), torch.rand(6, 4), BOX) == []
