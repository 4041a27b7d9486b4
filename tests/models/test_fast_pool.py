"""Pooling by a product answers as the layer does, and so does its gradient."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.models.fast_pool import Pool, speed_up


@pytest.mark.parametrize("size", [4, (3, 5), (None, 2), 14])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_answers_and_gradients_are_those_of_the_layer(
    size: Any, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    layer = nn.AdaptiveAvgPool2d(size)
    fast = copy.deepcopy(layer)
    assert speed_up(fast) == 1
    assert isinstance(fast, Pool)
    x = torch.rand(3, 5, 14, 11).to(memory_format=layout)

    def both(pool: nn.Module) -> tuple[Tensor, Tensor]:
        query = x.clone().requires_grad_(True)
        answer = pool(query)
        weights = torch.linspace(-1, 1, answer.numel()).view(answer.shape)
        return answer, torch.autograd.grad((weights * answer).sum(), query)[0]

    for new, old in zip(both(fast), both(layer), strict=True):
        torch.testing.assert_close(new, old)
    assert torch.equal(fast(x), layer(x))  # without a gradient it is the layer itself


def test_a_mean_over_the_map_and_a_class_of_its_own_stay() -> None:
    class Own(nn.AdaptiveAvgPool2d):
        pass

    assert (
        speed_up(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((1, 1)), Own(4))) == 0
    )
