"""Criteria against plain counting: what breaks a point, by how much, and what proves that not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from robustkit.core.criterion import UNTARGETED
from robustkit.core.losses import LOSSES, margin
from robustkit.core.threat import Threat
from robustkit.errors import UsageError
from robustkit.registry import read_criterion, read_threat

Logits = list[float]
GROUPS = ((0, 2, 4), (1,), (3, 5))


def _groups(z: Logits, y: int) -> float:
    own = next(group for group in GROUPS if y in group)
    return max(z[i] for i in own) - max(z[j] for j in range(6) if j not in own)


# By how much a point with logits z and label y holds: the definitions, in plain Python.
HELD: dict[str, Callable[[Logits, int], float]] = {
    "untargeted": lambda z, y: z[y] - max(z[j] for j in range(6) if j != y),
    "targeted:3": lambda z, y: max(z[j] for j in range(6) if j != 3) - z[3],
    "groups:0,2,4|1|3,5": _groups,
    "reject:5": lambda z, y: max(z[y], z[5]) - max(z[j] for j in range(5) if j != y),
    "top2": lambda z, y: z[y] - sorted((z[j] for j in range(6) if j != y), reverse=True)[1],
    "top4": lambda z, y: z[y] - sorted((z[j] for j in range(6) if j != y), reverse=True)[3],
    "loss>1.5": lambda z, y: 1.5 - math.log(sum(math.exp(v - z[y]) for v in z)),
}


def answers(text: str) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(600, 6, generator=draw)
    y = torch.randint(5, (600,), generator=draw)
    asked = y != 3 if text == "targeted:3" else y >= 0
    return logits[asked], y[asked]


@pytest.mark.parametrize("text", HELD)
def test_verdict_and_margin_are_those_of_the_definition(text: str) -> None:
    logits, y = answers(text)
    judged = read_criterion(text)(logits, y)
    held = torch.tensor([HELD[text](z, k) for z, k in zip(logits.tolist(), y.tolist())])  # noqa: B905
    assert torch.equal(judged.argmax(1) != y, held < 0)
    assert 0 < int((held < 0).sum()) < len(held)
    assert torch.allclose(-margin(judged, y, y), held, atol=1e-5)


def _top(z: Logits, k: int) -> list[int]:
    return sorted(range(6), key=lambda i: (-z[i], i))[:k]


# Which points are broken, by the decision alone: of equal logits the lower class.
BROKEN: dict[str, Callable[[Logits, int], bool]] = {
    "untargeted": lambda z, y: _top(z, 1) != [y],
    "targeted:3": lambda z, y: _top(z, 1) == [3],
    "groups:0,2,4|1|3,5": lambda z, y: not any({y, *_top(z, 1)} <= set(group) for group in GROUPS),
    "reject:5": lambda z, y: _top(z, 1)[0] not in (y, 5),
    "top2": lambda z, y: y not in _top(z, 2),
    "top4": lambda z, y: y not in _top(z, 4),
    "loss>1.5": lambda z, y: math.log(math.fsum(math.exp(v - z[y]) for v in z)) > 1.5,
}


@pytest.mark.parametrize("scale", [1.0, 1e8])
@pytest.mark.parametrize("text", BROKEN)
def test_ties_and_large_logits_are_decided_as_the_model_decides(text: str, scale: float) -> None:
    logits, y = answers(text)
    tied = logits.round().clamp(-1, 1)
    held = [not BROKEN[text](z, k) for z, k in zip(tied.tolist(), y.tolist())]  # noqa: B905
    if text.startswith("loss") and scale > 1:  # then only the largest logits count
        held = [z[k] == max(z) and z.count(z[k]) < 5 for z, k in zip(tied.tolist(), y.tolist())]  # noqa: B905
    judged = read_criterion(text)(tied * scale, y)
    assert (judged.argmax(1) == y).tolist() == held
    assert 0 < sum(held) < len(held)


@pytest.mark.parametrize("text", HELD)
def test_the_margin_rises_along_its_gradient_and_every_loss_has_one(text: str) -> None:
    logits, y = answers(text)
    criterion = read_criterion(text)
    z = logits.clone().requires_grad_(True)
    target = criterion(logits, y).scatter(1, y[:, None], -torch.inf).argmax(1)
    for name, loss in LOSSES.items():
        (gradient,) = torch.autograd.grad(loss(criterion(z, y), y, target).sum(), z)
        assert gradient.isfinite().all(), name
        if name == "margin":
            moved = logits + 1e-3 * gradient
            nearer = margin(criterion(moved, y), y, y) - margin(criterion(logits, y), y, y)
            assert (nearer > 0).all()


def test_the_plain_question_costs_nothing() -> None:
    logits = torch.randn(3, 4)
    assert UNTARGETED(logits, torch.zeros(3, dtype=torch.long)) is logits
    assert str(read_threat("linf:8/255")) == "linf:0.0313725"
    assert "criterion" not in read_threat("linf:8/255").facts()


def test_a_threat_model_carries_its_criterion() -> None:
    threat = read_threat("l2:0.5 groups:1,3|0,2")
    assert threat == Threat("l2", 0.5, criterion=read_criterion("groups:0,2|1,3"))
    assert read_threat(str(threat)) == threat
    assert str(read_threat("corruption:fog@3 top5")) == "corruption:fog@3 top5"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("targetd:3", "Did you mean 'targeted'"),
        ("targeted:shoe", "expected numbers of classes, such as targeted:3, got 'shoe'"),
        ("targeted:1,2", "expected one class"),
        ("groups:0,1|1,2", "class 1 is listed twice"),
        ("groups:0,1", "at least two groups"),
        ("top0", "expected top5 or another k from 1 on, got top0"),
        ("loss>-1", "expected loss>2 or another loss > 0"),
        ("loss>nan", "expected loss>2 or another loss > 0"),
        ("untargeted:1", "expected untargeted alone"),
        ("", "criterion: expected a text"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        read_criterion(text)


@pytest.mark.parametrize(
    ("text", "outputs", "told"),
    [
        ("targeted:10", 10, "expected classes from 0 to 9"),
        ("groups:0,1|3", 4, "class 2 is in no group"),
        ("groups:0,1|2,3,4", 4, "expected classes from 0 to 3"),
        ("reject:10", 10, "expected classes from 0 to 9"),
        ("top5", 4, "every class is among its first 5"),
    ],
)
def test_a_model_that_it_is_not_defined_for_is_refused(text: str, outputs: int, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        read_criterion(text).check(outputs)


def test_an_output_that_abstains_is_no_class_of_the_data() -> None:
    labels = torch.tensor([0, 1, 2]).numpy()
    assert read_criterion("reject:3").asked(labels).all()
    with pytest.raises(UsageError, match="output 2 is a class of the data"):
        read_criterion("reject:2").asked(labels)
