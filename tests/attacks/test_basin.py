"""Basin: gradients that mislead far from the adversarial inputs, and lead on near them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustkit.registry import attacks
from robustkit.search.functional import attack

EPS = 0.1


PATTERN = torch.rand(400, generator=torch.Generator().manual_seed(0)).sub(0.5).sign()


def misleading(z: Tensor) -> Tensor:
    """Class 1 where the pixels move by 0.995 eps along a pattern of signs, on average.

    Below 0.2 eps the gradient points away. Inputs are gray images of 0.5.
    """
    rise = ((z.flatten(1) - 0.5) * PATTERN).mean(1) / EPS
    rise = torch.where(rise < 0.2, 2 * rise.detach() - rise, rise)
    return torch.stack([0.995 - rise, torch.zeros_like(rise)], 1)


def broken(spec: str) -> int:
    x, y = torch.full((6, 1, 20, 20), 0.5), torch.zeros(6, dtype=torch.long)
    found = attack(misleading, x, y, spec, f"linf:{EPS}")
    return int((misleading(found).argmax(1) == 1).sum())


def test_it_gets_where_neither_part_gets() -> None:
    assert broken("basin(queries=600)") == 6
    assert broken("relay") == 0
    assert broken("square(queries=600)") == 0


@pytest.mark.parametrize("queries", [1, 7, 30])
def test_it_ends_when_its_budget_is_used(queries: int) -> None:
    search = attacks.build(f"basin(queries={queries}, rounds=3, steps=4)")
    x, y = torch.full((2, 1, 20, 20), 0.5), torch.zeros(2, dtype=torch.long)
    passes = 0

    def counted(z: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        return torch.stack([z.flatten(1).mean(1) + 9, torch.zeros(len(z))], 1)

    attack(counted, x, y, search, f"linf:{EPS}")
    assert queries <= passes <= 4 + queries + 5 * 4
