"""The measures behind "the same model" and "not randomized", at and beyond their tolerances."""

from __future__ import annotations

import pytest
import torch

from robustkit.models.agreement import (
    OTHER_DEVICE,
    SAME_KERNEL,
    logit_distance,
    repeats,
    row_change,
    row_distance,
    same_model,
)

LOGITS = torch.tensor([[3.0, 4.0], [0.0, 10.0]])


def test_measures_are_relative_to_their_length() -> None:
    moved = LOGITS + torch.tensor([[0.0, 0.5], [0.0, 0.0]])
    assert logit_distance(moved, LOGITS) == pytest.approx(0.05)
    assert row_change(moved, LOGITS) == pytest.approx(0.1)
    longer = float(moved[0].norm())
    assert row_distance(moved, LOGITS) == row_distance(LOGITS, moved) == pytest.approx(0.5 / longer)
    for measure in (logit_distance, row_change, row_distance):
        assert measure(8 * moved, 8 * LOGITS) == pytest.approx(measure(moved, LOGITS))
        assert measure(0 * LOGITS, 0 * LOGITS) == 0


@pytest.mark.parametrize(("change", "same"), [(0.9, True), (1.1, False)])
def test_entries_decide_whether_passes_repeat(change: float, same: bool) -> None:
    moved = LOGITS.clone()
    moved[1, 1] += change * (1e-4 * 10 + 1e-5)
    assert repeats(moved, LOGITS) is same
    moved[1, 1] = 10 + change * (1e-3 * 10 + 1e-3)
    assert same_model(moved, LOGITS) is same
    assert not same_model(LOGITS[:, :1], LOGITS)


def test_rounding_is_harmless_and_another_network_is_not() -> None:
    draw = torch.Generator().manual_seed(0)
    x, first, second = (torch.randn(64, 64, generator=draw) for _ in range(3))
    exact = (x.double() @ first.double()).float()
    assert row_distance(x @ first, exact) < SAME_KERNEL
    assert logit_distance(x @ first, exact) < OTHER_DEVICE
    assert row_distance(x @ second, exact) > 100 * SAME_KERNEL
    assert logit_distance(x @ second, exact) > 100 * OTHER_DEVICE
