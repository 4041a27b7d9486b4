"""FGSM and PGD beside torchattacks: the same points on the same model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset
from robustkit.registry import attacks
from robustkit.search.functional import attack

torchattacks: Any = pytest.importorskip("torchattacks")
EPS = 0.03


@pytest.fixture
def points(hardened: nn.Module, bundled: Dataset) -> tuple[Tensor, Tensor]:
    """Correctly classified points: ours leaves the others as they are, torchattacks does not."""
    x, y = bundled.fetch(range(0, 1000, 12))
    right = hardened(x).argmax(1) == y
    return x[right], y[right]


def test_fgsm_takes_the_same_points(hardened: nn.Module, points: tuple[Tensor, Tensor]) -> None:
    x, y = points
    theirs = torchattacks.FGSM(hardened, eps=EPS)(x, y)
    fooled = hardened(theirs).argmax(1) != y
    ours = attack(hardened, x, y, attacks.build("fgsm"), Threat("linf", EPS))
    torch.testing.assert_close(ours[fooled], theirs[fooled], atol=1e-6, rtol=0)
    assert torch.equal(ours[~fooled], x[~fooled])


def test_pgd_is_not_weaker_at_equal_cost(
    hardened: nn.Module, points: tuple[Tensor, Tensor]
) -> None:
    """Without a random start both follow one path; ours also stops on its way."""
    x, y = points
    theirs = torchattacks.PGD(hardened, eps=EPS, alpha=EPS / 10, steps=20, random_start=False)(x, y)
    fooled = hardened(theirs).argmax(1) != y
    spec = "pgd(steps=20, step_size=0.1, random_start=False)"
    ours = attack(hardened, x, y, attacks.build(spec), Threat("linf", EPS))
    assert int(fooled.sum()) > 0
    assert bool((hardened(ours).argmax(1) != y)[fooled].all())
