"""The stem answers as the convolution does, and so does its gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from robustkit.models.fast_conv import Stem, speed_up

LAYERS = [
    {"in_channels": 1, "out_channels": 8, "kernel_size": 4, "stride": 2, "padding": 1},
    {"in_channels": 3, "out_channels": 6, "kernel_size": 3, "padding": 1, "bias": False},
    {"in_channels": 2, "out_channels": 5, "kernel_size": (3, 2), "stride": (2, 1),
     "padding": (1, 0), "dilation": (1, 2)},
]  # fmt: skip


def gradient(layer: nn.Module, x: Tensor) -> Tensor:
    query = x.clone().requires_grad_(True)
    answer = layer(query)
    weights = torch.linspace(-1, 1, answer.numel()).view_as(answer)
    return torch.autograd.grad((weights * answer).sum(), query)[0]


@pytest.mark.parametrize("options", LAYERS)
def test_answers_and_gradients_are_those_of_the_layer(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(**options).requires_grad_(False)  # type: ignore[arg-type]
    fast = copy.deepcopy(layer)
    assert speed_up(fast) == 1
    assert isinstance(fast, Stem)
    x = torch.rand(4, layer.in_channels, 9, 11)
    assert torch.equal(fast(x), layer(x))
    torch.testing.assert_close(gradient(fast, x), gradient(layer, x))


def test_weights_that_learn_keep_their_gradient() -> None:
    layer = nn.Conv2d(1, 2, 3)
    speed_up(layer)
    x = torch.rand(2, 1, 5, 5, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert x.grad is not None


def test_only_plain_convolutions_of_few_channels_are_changed() -> None:
    class Own(nn.Conv2d):
        """May do anything."""

    layers = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.Conv2d(8, 4, 3),
        nn.Conv2d(2, 4, 3, groups=2),
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(2, 4, 3, padding="same"),
        Own(1, 2, 3),
    )
    names = list(layers.state_dict())
    assert speed_up(layers) == 1
    assert [isinstance(layer, Stem) for layer in layers] == [True] + 5 * [False]
    assert list(layers.state_dict()) == names


def test_hooks_still_hear_it() -> None:
    layer = nn.Conv2d(1, 2, 3).requires_grad_(False)
    heard: list[int] = []
    layer.register_forward_hook(lambda *_: heard.append(1))
    speed_up(layer)
    layer(torch.rand(1, 1, 4, 4, requires_grad=True))
    assert heard == [1]
