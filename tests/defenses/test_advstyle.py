"""Adversarial style augmentation: moves lie in their box and hurt; nothing is left at test time."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustkit.core.parametric import ParametricThreat
from robustkit.core.rng import generator
from robustkit.errors import UsageError
from robustkit.models.architectures import small_cnn
from robustkit.models.training import Step
from robustkit.registry import defenses, read_threat

module = importlib.import_module("robustkit.defenses.advstyle")


def batch() -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = small_cnn((1, 28, 28), 10, 4)
    draw = generator(0, 1, 1)
    return (
        model,
        torch.rand(16, 1, 28, 28, generator=draw),
        torch.randint(10, (16,), generator=draw),
    )


def step(memory: dict[str, Tensor] | None = None) -> Step:
    return Step(0.5, generator(0, 2, 2), {} if memory is None else memory)


def test_images_move_within_the_threat_model_and_to_a_larger_loss() -> None:
    model, x, y = batch()
    threat = read_threat("style:mean,scale")
    assert isinstance(threat, ParametricThreat)
    z = module._moved(model, x, y, threat, step())
    assert threat.contains(z, x).all()
    start = module._moved(model, x, y, threat, step(), steps=0)
    with torch.no_grad():
        hurt, before = (F.cross_entropy(model(images), y) for images in (z, start))
    assert hurt > before
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    with pytest.raises(UsageError, match="a threat with parameters"):
        defenses.build("advstyle_image(threat='linf:0.1')").objective(model, x, y, step())


def test_strengths_rise_along_the_loss_within_their_bound() -> None:
    model, x, y = batch()
    defense, memory = defenses.build("advstyle"), dict[str, Tensor]()
    losses = [defense.objective(model, x, y, step(memory)) for _ in range(8)]
    assert set(memory) == {"style2", "style4"} and losses[0].requires_grad
    first = nn.Sequential(*list(model.children())[:3])(x).detach()
    spread = module._spread(first)
    strength = memory["style2"]
    assert strength.shape == spread.shape == (2, 4)
    assert (strength <= 3 * spread + 1e-6).all() and (strength >= 0).all()
    assert (strength > 1.5 * spread).any()  # it began at 1
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["advstyle", "advstyle_image"])
def test_a_step_is_repeated_and_the_network_is_plain(name: str) -> None:
    model, x, y = batch()
    defense = defenses.build(name)
    losses = [float(defense.objective(model, x, y, step()).detach()) for _ in range(2)]
    assert losses[0] == losses[1]
    kinds = [type(layer) for layer in defense.network((1, 28, 28), 10).children()]
    assert kinds == [type(layer) for layer in model.children()]
