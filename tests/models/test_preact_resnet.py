"""The residual network: block by block as in the paper, in size as its docstring says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from robustkit.certify.graph import trace
from robustkit.certify.ibp import input_box, intervals
from robustkit.core.threat import Threat
from robustkit.errors import UsageError
from robustkit.models.preact_resnet import PreActBlock, preact_resnet
from robustkit.registry import defenses


@pytest.mark.parametrize(("before", "after", "stride"), [(3, 3, 1), (3, 5, 1), (3, 5, 2)])
def test_a_block_is_the_residual_unit_of_the_paper(before: int, after: int, stride: int) -> None:
    torch.manual_seed(0)
    block = PreActBlock(before, after, stride).eval()
    for layer in (block.norm1, block.norm2):
        for tensor in (layer.running_mean, layer.running_var, layer.weight.data, layer.bias.data):
            assert tensor is not None
            tensor.uniform_(0.5, 1.5)
    x = torch.randn(2, before, 7, 7)

    def activated(z: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        mean, var, weight, bias = (
            t.view(-1, 1, 1)  # type: ignore[union-attr]
            for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        return (weight * (z - mean) / (var + norm.eps).sqrt() + bias).clamp_min(0)

    first = activated(x, block.norm1)
    inner = activated(F.conv2d(first, block.conv1.weight, None, stride, 1), block.norm2)
    kept = x if block.shortcut is None else F.conv2d(first, block.shortcut.weight, None, stride)
    expected = kept + F.conv2d(inner, block.conv2.weight, None, 1, 1)
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)


def test_its_size_is_what_its_docstring_says() -> None:
    network, x = preact_resnet((3, 32, 32), 10).eval(), torch.rand(1, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        assert network(x).shape == (1, 10)
    assert round(counter.get_total_flops() / 2 / 1e6) == 39
    weights = sum(p.numel() for p in network.parameters())
    assert round(weights / 1e6, 1) == 0.6
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len([layer for layer in layers if layer.weight.shape[2:] != (1, 1)]) == 8


def test_other_weights_keep_the_channels_last() -> None:
    """Loading copies into what is there."""
    network = preact_resnet((1, 28, 28), 3, 4)
    state = {k: v.clone(memory_format=torch.contiguous_format)
             for k, v in network.state_dict().items()}  # fmt: skip
    network.load_state_dict(state)
    stem = network[1]
    assert isinstance(stem, nn.Conv2d) and stem.weight.is_contiguous(
        memory_format=torch.channels_last
    )


def test_its_interval_bounds_hold_at_points_of_the_ball() -> None:
    torch.manual_seed(0)
    network, threat = preact_resnet((3, 8, 8), 3, 4).eval(), Threat("linf", 0.02)
    x = torch.rand(4, 3, 8, 8)
    last = intervals(trace(network, (3, 8, 8)), input_box(x, threat))[-1]
    with torch.no_grad():
        for _ in range(20):
            logits = network(threat.project(x + 0.02 * torch.randn_like(x).sign(), x))
            assert bool((logits >= last.low - 1e-4).all() and (logits <= last.high + 1e-4).all())


@pytest.mark.parametrize("name", ["undefended", "pgd_at", "trades", "doubly_robust"])
def test_defenses_take_it_with_a_schedule_of_its_own(name: str) -> None:
    defense = defenses.build(f"{name}(net=preact_resnet, width=4)")
    recipe, usual = defense.recipe, defenses.build(name).recipe
    assert (recipe.optimizer, usual.optimizer) == ("sgd", "adamw")
    assert recipe.average and recipe.validation and not usual.average and not usual.validation
    assert isinstance(defense.network((3, 8, 8), 3)[2], PreActBlock)
    with pytest.raises(UsageError, match="net"):
        defenses.build(f"{name}(net=resnet18)")
