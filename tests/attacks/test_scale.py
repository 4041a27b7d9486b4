"""Logits times a constant: the same model, so the same verdicts, by the closed form."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import Tensor, nn

from robustkit.core.spec import Spec
from robustkit.core.threat import Norm, Threat
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search.functional import attack

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}
EPS = {"linf": 0.05, "l2": 0.15, "l1": 0.3}  # the box, 0.2 away or more, is never active
REACH = {"apgd_l1": 1.25}  # sparse steps end near the optimum, not at it
SCALES = (1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6)
SHAPE = (3, 6, 6)
SMALL = {"queries": 200, "steps": 6, "pairs": 20}
SHORT = {"steps": 40, "legs": 1, "probes": 1}
LOSSES = ("ce", "dlr", "targeted_dlr", "margin", "targeted_margin", "probability")


class Linear(NamedTuple):
    """Twelve points of class 0; `distance` [b]: to class 1, in the norm that it was made for."""

    model: nn.Module
    x: Tensor
    y: Tensor
    distance: Tensor


def build(norm: Norm, scale: float) -> Linear:
    """Make a linear model of two classes with logits times `scale`."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(math.prod(SHAPE), generator=draw)
    x = 0.5 + 0.05 * (2 * torch.rand(12, len(weight), generator=draw) - 1)
    # None within 5% of eps: the point's verdict is then beyond the slack of any attack.
    distance = EPS[norm] * torch.linspace(0.4, 1.6, 12)
    gap = distance * weight.norm(DUAL[norm])
    x = x - ((x @ weight + gap) / weight.square().sum())[:, None] * weight
    layer = nn.Linear(len(weight), 2)
    layer.weight = nn.Parameter(torch.stack([-weight, weight]) * scale / 2, requires_grad=False)
    x = x + 0.5 - x.mean()  # back into the box; the bias makes up for it
    bias = (gap + x @ weight).double().mean().float() * scale / 2
    layer.bias = nn.Parameter(torch.stack([bias, -bias]), requires_grad=False)
    model = nn.Sequential(nn.Flatten(), layer).eval()
    logits = model(x).double()
    away = (logits[:, 0] - logits[:, 1]) / (scale * weight.double().norm(DUAL[norm]))
    x = x.view(12, *SHAPE)
    assert 0.2 < float(x.min()) < float(x.max()) < 0.8
    return Linear(model, x, torch.zeros(12, dtype=torch.long), away)


def budget(name: str, wanted: dict[str, int]) -> Spec:
    known = attacks.entry(name).options
    return Spec(name, tuple((key, value) for key, value in wanted.items() if key in known))


def broken(case: Linear, spec: str | Spec, threat: Threat, **more: Any) -> Tensor:
    z = attack(case.model, case.x, case.y, attacks.build(spec), threat, slots=16, **more)
    assert bool(threat.contains(z, case.x).all())
    wrong: Tensor = case.model(z).argmax(1) != case.y
    return wrong


def supports(name: str, norm: Norm) -> bool:
    try:
        return bool(attacks.build(name).jobs(Threat(norm, 1.0), 2))
    except UsageError:
        return False


def pairs(white: bool, norms: tuple[Norm, ...]) -> list[tuple[str, Norm]]:
    return [
        (entry.name, norm)
        for entry in attacks.entries()
        for norm in norms
        if entry.facts["white_box"] is white
        and supports(entry.name, norm)
        # Those for transfer vary the pixels of pictures, of which these have few.
        and not hasattr(entry.target, "least_side")
    ]


@pytest.mark.parametrize(("name", "norm"), pairs(True, NORMS))
def test_gradient_attacks_give_the_closed_form_at_every_scale(name: str, norm: Norm) -> None:
    reach = REACH.get(name, 1.0)
    for scale in SCALES:
        case = build(norm, scale)
        found = broken(case, budget(name, SHORT), Threat(norm, EPS[norm]))
        assert not bool((found & (case.distance > EPS[norm])).any()), scale
        assert bool(found[case.distance * reach <= EPS[norm]].all()), scale


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("spec", ["pgd(steps=20, loss={})", "apgd(steps=20, loss={})"])
def test_every_loss_gives_the_closed_form_at_every_scale(spec: str, loss: str) -> None:
    for scale in SCALES:
        case = build("l2", scale)
        found = broken(case, spec.format(loss), Threat("l2", EPS["l2"]))
        assert torch.equal(found, case.distance <= EPS["l2"]), scale


@pytest.mark.parametrize("name", ["ddn", "fmn", "fab", "fmn-l1", "fmn-linf", "fab-l1", "fab-linf"])
def test_nearest_successes_are_as_near_at_every_scale(name: str) -> None:
    attack_name, _, other = name.partition("-")
    norm: Norm = "l1" if other == "l1" else "linf" if other == "linf" else "l2"
    for scale in (1e-4, 1e2, 1e6):
        case, threat = build(norm, scale), Threat.whole(norm, math.prod(SHAPE))
        z = attack(case.model, case.x, case.y, attacks.build(attack_name), threat, nearest=True)
        assert bool((case.model(z).argmax(1) != case.y).all())
        far = threat.distance(z, case.x) / case.distance
        assert 0.999 < float(far.min()) <= float(far.max()) < 1.06, scale


@pytest.mark.parametrize("spec", ["sigma_zero(steps=100)", "fmn"])
def test_l0_finds_nearly_the_fewest_features_at_every_scale(spec: str) -> None:
    """The fewest: greedily, each moved to the edge of the box on its side."""
    for scale in (1e-4, 1.0, 1e6):
        case = build("linf", scale)
        layer = cast("nn.Linear", cast("nn.Sequential", case.model)[1])
        flat = case.x.flatten(1).double()
        weight = (layer.weight[1] - layer.weight[0]).double()
        gap = case.distance * weight.abs().sum()
        gain = torch.where(weight > 0, weight * (1 - flat), -weight * flat)
        reached = gain.sort(dim=1, descending=True).values.cumsum(1)
        fewest = (reached <= gap[:, None]).sum(1) + 1
        threat = Threat.whole("l0", len(weight))
        z = attack(case.model, case.x, case.y, attacks.build(spec), threat, nearest=True)
        assert bool((case.model(z).argmax(1) != case.y).all())
        more = threat.distance(z, case.x) - fewest
        assert 0 <= float(more.min()) <= float(more.max()) <= 2, scale


@pytest.mark.parametrize(("name", "norm"), pairs(False, NORMS))
def test_attacks_without_gradients_do_the_same_at_every_scale(name: str, norm: Norm) -> None:
    """By powers of two, which round nothing, the inputs are the same bit for bit."""
    threat, found = Threat(norm, EPS[norm]), list[Tensor]()
    wrong = torch.zeros(12, dtype=torch.bool)
    for scale in (1.0, 2.0**-13, 2.0**20):
        case = build(norm, scale)
        search = attacks.build(budget(name, SMALL))
        found.append(attack(case.model, case.x, case.y, search, threat))
        wrong = case.model(found[-1]).argmax(1) != case.y
        assert not bool((wrong & (case.distance > threat.eps)).any())
    assert bool(wrong.any())
    assert all(torch.equal(z, found[0]) for z in found[1:])
