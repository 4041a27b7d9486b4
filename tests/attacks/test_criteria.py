"""Linear models: the exact radius under each criterion is the value of linear programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import combinations, product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from torch import Tensor, nn

from robustkit.certify.certifier import build_certifier
from robustkit.certify.complete.search import Budget
from robustkit.certify.complete.verifier import build_verifier
from robustkit.core.threat import Threat
from robustkit.errors import UsageError
from robustkit.integrations.conformance import validate
from robustkit.registry import criteria, read_criterion
from robustkit.search.functional import attack
from robustkit.search.suites import line_up

FEATURES, OUTPUTS, POINTS = 6, 5, 12
Matrix = NDArray[np.float64]
# What must be the larger for a break: every entry on the left than every one on the right.
BREAKS: dict[str, Callable[[int], list[tuple[list[int], list[int]]]]] = {
    "untargeted": lambda y: [([j], [y]) for j in range(OUTPUTS) if j != y],
    "targeted:3": lambda y: [([3], [0, 1, 2, 4])],
    "groups:0,2|1|3,4": lambda y: [
        ([j], own) for own in ([0, 2], [1], [3, 4]) if y in own for j in range(OUTPUTS)
        if j not in own
    ],
    "reject:4": lambda y: [([j], [y, 4]) for j in range(4) if j != y],
    "top2": lambda y: [
        (list(pair), [y]) for pair in combinations([j for j in range(OUTPUTS) if j != y], 2)
    ],
}  # fmt: skip


def model() -> tuple[nn.Module, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(6)
    layer = nn.Linear(FEATURES, OUTPUTS)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=draw))
        layer.bias.copy_(0.1 * torch.randn(OUTPUTS, generator=draw))
    x = torch.randn(200, FEATURES, generator=draw)
    return nn.Sequential(layer).eval(), x, layer(x).argmax(1).detach()


def points(text: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Points whose decision is right, and that the criterion asks about."""
    net, x, y = model()
    rows = (y != 3) & (y != 4)
    return net, x[rows][:POINTS], y[rows][:POINTS]


def radius(text: str, net: nn.Module, x: Tensor, y: int) -> float:
    """Least t such that some move by at most t in linf breaks the point: the best linear program.

    Variables: the move [d] and t; minimize t.
    """
    weight = net[0].weight.detach().double().numpy()  # type: ignore[index]
    logits = net(x[None])[0].detach().double().numpy()
    eye = np.eye(FEATURES)
    one = -np.ones((FEATURES, 1))
    ball = np.block([[eye, one], [-eye, one]])
    best = np.inf
    for larger, smaller in BREAKS[text](y):
        pairs = list(product(larger, smaller))
        rows = np.array([[*(weight[s] - weight[b]), 0.0] for b, s in pairs])
        limits = [logits[b] - logits[s] for b, s in pairs]
        found = linprog(
            [*np.zeros(FEATURES), 1.0], np.vstack([rows, ball]),
            [*limits, *np.zeros(2 * FEATURES)], bounds=[(None, None)] * FEATURES + [(0, None)],
        )  # fmt: skip
        best = min(best, found.fun if found.status == 0 else np.inf)
    return best


ATTACKS = ("apgd(loss=ce, steps=80, restarts=2)", "apgd(loss=dlr, steps=80, restarts=2)")


@pytest.mark.parametrize("text", BREAKS)
def test_attacks_and_certificates_meet_at_the_exact_radius(text: str) -> None:
    net, x, y = points(text)
    radii = torch.tensor([radius(text, net, z, int(k)) for z, k in zip(x, y, strict=True)])
    assert radii.isfinite().all()
    assert (radii > 0).all()
    proved = 0
    for eps in radii.quantile(torch.tensor([0.3, 0.8], dtype=radii.dtype)).tolist():
        threat = Threat("linf", eps, -20.0, 20.0, read_criterion(text))
        certifier = build_certifier(net, (FEATURES,), threat, "ibp")
        assert certifier is not None
        holds = certifier.prove(x, y)
        moved = [(attack(net, x, y, search, threat) != x).any(1) for search in ATTACKS]
        broken = torch.stack(moved).any(0)
        # Several logits have to be passed at once: the attacks get within 5% of the least radius.
        assert broken[radii < eps / 1.05].all()
        assert not broken[radii > eps].any()
        assert not holds[radii < eps].any()
        if text == "untargeted":  # bounds of a linear model are exact
            assert holds[radii > eps * 1.001].all()
        proved += int(holds.sum())
    assert proved > 0


def test_a_loss_is_exceeded_where_a_corner_of_the_ball_says_so() -> None:
    """The cross-entropy of a linear model is convex: its maximum over a box lies in a corner."""
    net, x, y = points("loss>2")
    signs = torch.tensor(list(product((-1.0, 1.0), repeat=FEATURES)))
    for eps in (0.1, 0.3, 0.5):
        threat = Threat("linf", eps, -20.0, 20.0, read_criterion("loss>2"))
        found = attack(net, x, y, "apgd(loss=ce, steps=60, restarts=2)", threat)
        for z, k, start in zip(found, y, x, strict=True):
            worst = nn.functional.cross_entropy(
                net(start + eps * signs), k.expand(len(signs)), reduction="none"
            ).amax()
            assert abs(worst - 2) < 0.02 or (worst > 2) == (not torch.equal(z, start))
    threat = Threat("linf", 0.1, criterion=read_criterion("loss>2"))
    with pytest.raises(UsageError, match="prove nothing about the criterion loss>2"):
        build_certifier(net, (FEATURES,), threat, "crown")
    assert build_certifier(net, (FEATURES,), threat, "auto") is None


@pytest.mark.parametrize("text", ["targeted:3", "groups:0,1|2|3", "reject:3"])
def test_branch_and_bound_agrees_with_a_grid(text: str) -> None:
    draw = torch.Generator().manual_seed(11)
    net = nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 4)).eval()
    with torch.no_grad():
        for part in net.parameters():
            part.copy_(torch.randn(part.shape, generator=draw))
        net[2].weight -= net[2].weight.mean(1, keepdim=True)  # type: ignore[operator]
    criterion = read_criterion(text)
    x = 2 * torch.rand(400, 2, generator=draw) - 1
    y = net(x).argmax(1)
    keep = y != 3
    threat = Threat("linf", 0.3, -4.0, 4.0, criterion)
    verifier = build_verifier(net, (2,), threat, threat)
    assert verifier is not None
    line = torch.linspace(-0.3, 0.3, 61)
    outcomes = set()
    for z, k in list(zip(x[keep].split(1), y[keep].split(1), strict=True))[:5]:
        moved = z + torch.cartesian_prod(line, line)
        worst = bool((criterion(net(moved), k.expand(len(moved))).argmax(1) != k).any())
        found = verifier.verify(z, int(k), Budget(nodes=8))
        outcomes.add(found.outcome)
        assert found.outcome != "proved" or not worst
        if found.example is not None:
            assert criterion(net(found.example), k).argmax(1) != k
            assert threat.contains(found.example, z)
    assert outcomes >= {"proved", "broken"}


@pytest.mark.parametrize("name", list(criteria))
def test_every_criterion_keeps_its_contract(name: str) -> None:
    assert [v for v in validate([("criterion", criteria.entry(name))]) if not v.passed] == []


def test_a_criterion_that_hides_undefined_answers_fails_the_contract(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @dataclasses.dataclass(frozen=True)
    class Blind(type(read_criterion("top2"))):  # type: ignore[misc]
        """A point is broken as with top2, NaN or not."""

        def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
            judged: Tensor = super().__call__(logits.nan_to_num(), y)
            return judged

    monkeypatch.setattr(criteria, "_entries", dict(criteria._entries))
    criteria._entries["top"] = criteria.entry("top")._replace(target=Blind)
    failed = [v for v in validate([("criterion", criteria.entry("top"))]) if not v.passed]
    assert any("judged as if defined" in v.detail for v in failed)


def test_attacks_of_other_libraries_are_refused() -> None:
    threat = Threat("linf", 0.1, criterion=read_criterion("targeted:3"))
    with pytest.raises(UsageError, match="attacks of other libraries know no criterion"):
        line_up(None, ["torchattacks:PGD"], threat)


def test_frozen_threats_keep_their_criterion_at_another_eps() -> None:
    threat = Threat("linf", 0.1, criterion=read_criterion("top2"))
    assert str(dataclasses.replace(threat, eps=0.2)) == "linf:0.2 top2"
