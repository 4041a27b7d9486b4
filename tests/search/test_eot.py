"""How many draws a randomized model's gradient needs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustkit.search.eot import COSINE, LEAST, MOST, draws_needed


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Noisy(nn.Module):
    """Its gradient is that of a linear model plus normal noise of known size."""

    def __init__(self, noise: float, signal: float = 1) -> None:
        super().__init__()
        self.noise, self.signal = noise, signal

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        weight = self.signal + self.noise * torch.randn_like(flat)
        return torch.stack([(flat * weight).sum(1) + 99, -flat.sum(1).detach()], 1)


@pytest.mark.parametrize("noise", [0.0, 1.5, 3.0])
def test_draws_follow_the_noise(noise: float) -> None:
    needed, forwards, backwards = draws_needed([Noisy(noise)], torch.rand(16, 1, 30, 30))
    assert forwards == backwards == 8 * 16
    formula = noise**2 * COSINE**2 / (1 - COSINE**2)
    assert needed == pytest.approx(max(LEAST, formula), rel=0.15, abs=1)


def test_the_noisiest_model_decides() -> None:
    x = torch.rand(16, 1, 30, 30)
    both = draws_needed([Noisy(0.0), Noisy(3.0)], x)[0]
    assert both == pytest.approx(9 * COSINE**2 / (1 - COSINE**2), rel=0.15, abs=1)


def test_no_signal_asks_for_the_most_and_no_gradient_for_the_least() -> None:
    x = torch.rand(4, 1, 3, 3)
    assert draws_needed([Noisy(100.0)], x)[0] == MOST
    assert draws_needed([Noisy(1.0, signal=0)], x)[0] == MOST
    assert draws_needed([lambda z: torch.rand(len(z), 2)], x) == (LEAST, 4, 0)
