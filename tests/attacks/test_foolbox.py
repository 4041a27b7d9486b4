"""DDN and FMN beside Foolbox: the same budget finds inputs as close on the same points."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.core.threat import Norm, Threat
from robustkit.data.dataset import Dataset
from robustkit.registry import attacks
from robustkit.search.functional import attack

STEPS, POINTS = 60, 24


@pytest.fixture(scope="module")
def foolbox() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("foolbox")


CASES: list[tuple[str, Norm, str]] = [
    ("DDNAttack", "l2", f"ddn(steps={STEPS})"),
    ("L2FMNAttack", "l2", f"fmn(steps={STEPS})"),
    ("LInfFMNAttack", "linf", f"fmn(steps={STEPS})"),
    ("L1FMNAttack", "l1", f"fmn(steps={STEPS})"),
    ("L0FMNAttack", "l0", f"fmn(steps={STEPS})"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("theirs", "norm", "ours"), CASES)
def test_distances_are_as_short(
    theirs: str, norm: Norm, ours: str, foolbox: Any, hardened: nn.Module, bundled: Dataset
) -> None:
    x, y = bundled.fetch(range(0, 1000, 1000 // POINTS))
    right = hardened(x).argmax(1) == y
    x, y = x[right], y[right]
    threat = Threat.whole(norm, 784)
    wrapped = foolbox.PyTorchModel(hardened, bounds=(0, 1), device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, reference, _ = getattr(foolbox.attacks, theirs)(steps=STEPS)(
            wrapped, x, y, epsilons=None
        )
    found = attack(hardened, x, y, attacks.build(ours), threat, nearest=True)
    assert float(middle(hardened, found, x, y, threat)) <= 1.05 * float(
        middle(hardened, reference, x, y, threat)
    )


def middle(model: nn.Module, z: Tensor, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """Median distance; what does not fool the model is infinitely far."""
    fooled = model(z).argmax(1) != y
    return torch.where(fooled, threat.distance(z, x), torch.inf).median()
