"""Multiply-adds and bytes of a pass, counted."""

from __future__ import annotations

import torch
from torch import nn

from robustkit.models.layer_costs import layer_costs


def test_every_call_of_a_layer_counts_its_products() -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1, groups=2)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), shared, nn.ReLU(), shared, nn.Flatten(),
                        nn.Linear(64, 5))  # fmt: skip
    costs = layer_costs(net, torch.rand(3, 1, 4, 4))
    assert costs.work == [("0", 16 * 4 * 9), ("1", 64 * 18), ("1", 64 * 18), ("5", 320)]
    assert costs.edges == ["0", "5"]
    assert costs.middle == 2 * 64 * 18
    assert costs.size == 16 * 4 * 16 + 4 * (5 * 64 + 5)


def test_a_model_without_weights_has_no_edges() -> None:
    costs = layer_costs(nn.Flatten(), torch.rand(2, 1, 4, 4))
    assert (costs.edges, costs.middle) == ([], 0)
