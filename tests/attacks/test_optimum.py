"""Linear models: their nearest adversarial example is at the logit gap over a dual norm."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from robustkit.core.spec import Spec
from robustkit.core.threat import Norm, Threat
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search.functional import attack
from robustkit.search.protocol import Search

DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}
DISTANCE = {"linf": 0.05, "l2": 0.15, "l1": 0.3}  # the box, 0.45 away or more, is never active
SHAPES = [(80,), (3, 6, 6), (1, 7, 9)]
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
# Those for transfer vary the pixels of pictures: they leave out what is best for the model itself.
WHITE = [
    entry.name
    for entry in attacks.entries()
    if entry.facts["white_box"] and not hasattr(entry.target, "least_side")
]
# Sparse steps end near the optimum, not at it, as in the reference; in few dimensions farther off.
REACH = {"apgd_l1": 1.25}
AIMED = ["apgd", "apgd_l1", "pgd", "fab"]  # attacks that can aim at one class after the other


class Linear(NamedTuple):
    """`distance` [b]: to the nearest point with a wrong label."""

    model: nn.Module
    x: Tensor
    y: Tensor
    distance: Tensor


def build(
    norm: Norm, shape: tuple[int, ...], classes: int, batch: int, contested: bool = False
) -> Linear:
    """Make a model with one class near and the others at three times its distance or more.

    `contested`: the others are at one to two times its distance, and logits grow at uneven speed.
    """
    generator = torch.Generator().manual_seed(10 * classes + batch)
    features = math.prod(shape)
    layer = nn.Linear(features, classes)
    weight = torch.randn(classes, features, generator=generator)
    y = torch.full((batch,), int(torch.randint(classes, (1,), generator=generator)))
    label = int(y[0])
    x = 0.5 + 0.05 * (2 * torch.rand(batch, *shape, generator=generator) - 1)
    apart = (weight - weight[label]).norm(DUAL[norm], dim=1)
    if not contested:
        # At even speed, 4 nats of logit to the nearest class, which rules the cross-entropy.
        speed = 4 / DISTANCE[norm] / apart.clamp_min(1e-9)
        weight = weight[label] + (weight - weight[label]) * speed[:, None]
        apart = (weight - weight[label]).norm(DUAL[norm], dim=1)
    factors = (1 if contested else 3) + torch.rand(classes, generator=generator)
    factors[(label + 1) % classes] = 1
    gaps = DISTANCE[norm] * factors * apart
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = nn.Parameter(-(weight @ x[0].flatten()) - gaps, requires_grad=False)
    # The other points keep their distances but for a tenth: they lie beside the first one.
    x = x[:1] + 0.002 * DISTANCE[norm] * (x - x[:1])
    logits = nn.Sequential(nn.Flatten(), layer)(x).double()
    gap = (logits[:, label : label + 1] - logits) / apart.double()
    gap[:, label] = torch.inf
    assert bool((logits.argmax(1) == y).all())
    return Linear(nn.Sequential(nn.Flatten(), layer).eval(), x, y, gap.amin(1))


def fooled(case: Linear, search: Search[Any], norm: Norm, eps: float) -> Tensor:
    """Attack; whatever comes back must lie in the threat model, changed exactly where it fools."""
    threat = Threat(norm, eps)
    z = attack(case.model, case.x, case.y, search, threat, slots=16)
    assert bool(threat.contains(z, case.x).all())
    wrong: Tensor = case.model(z).argmax(1) != case.y
    assert torch.equal(wrong, (z != case.x).flatten(1).any(1))
    return wrong


def supports(name: str, norm: Norm) -> bool:
    try:
        return bool(attacks.build(name).jobs(Threat(norm, 0.1), 10))
    except UsageError:
        return False


def pairs(names: Iterable[str]) -> list[tuple[str, Norm]]:
    return [(name, norm) for name in names for norm in NORMS if supports(name, norm)]


@pytest.mark.parametrize(("name", "norm"), pairs(WHITE))
def test_gradient_attacks_reach_the_optimum(name: str, norm: Norm) -> None:
    search, reach = attacks.build(name), REACH.get(name, 1.05)
    for shape, batch, classes in zip(SHAPES, (1, 3, 8), (2, 10, 3), strict=True):
        case = build(norm, shape, classes, batch)
        assert fooled(case, search, norm, reach * float(case.distance.max())).all()


@pytest.mark.parametrize(("name", "norm"), pairs(AIMED))
def test_aimed_attacks_find_the_nearest_of_many(name: str, norm: Norm) -> None:
    """Where several classes are near, and the steepest way does not lead to the nearest one."""
    search = attacks.build(name if name == "fab" else f"{name}(loss=targeted_margin)")
    for shape, batch, classes in zip(SHAPES, (1, 3, 8), (10, 3, 10), strict=True):
        case = build(norm, shape, classes, batch, contested=True)
        reach = REACH.get(name, 1.05)
        assert fooled(case, search, norm, reach * float(case.distance.max())).all()


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize(("name", "norm"), pairs(attacks))
def test_no_attack_does_better_than_the_optimum(name: str, classes: int, norm: Norm) -> None:
    known = attacks.entry(name).options
    options = [(key, value) for key, value in (("pairs", 8), ("queries", 500)) if key in known]
    search = attacks.build(Spec(name, tuple(options)))
    case = build(norm, SHAPES[1], classes, 3, contested=True)
    assert not fooled(case, search, norm, 0.95 * float(case.distance.min())).any()
