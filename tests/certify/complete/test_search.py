"""Branch and bound is exact on tiny networks and sound on all."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustkit.certify.affine import LinearOp, widening
from robustkit.certify.complete.beta_crown import (
    Multipliers,
    Objective,
    Splits,
    evaluate,
    optimize,
)
from robustkit.certify.complete.branching import candidates, children, choose
from robustkit.certify.complete.counterexample import Breaker
from robustkit.certify.complete.points import Verified
from robustkit.certify.complete.root import Prover, Root
from robustkit.certify.complete.search import Budget, Options, Outcome, Tree
from robustkit.certify.complete.verifier import build_verifier, obstacle
from robustkit.certify.graph import trace
from robustkit.core.threat import Norm, Threat


def _search(
    model: nn.Module, x: Tensor, threat: Threat, wanted: Tensor, label: int, nodes: int = 2000,
    **options: Any,
) -> Outcome:  # fmt: skip
    shape = tuple(x.shape[1:])
    with torch.no_grad():
        graphs = trace(model, shape), trace(copy.deepcopy(model).double(), shape)
        prover = Prover.of(*graphs, threat)
        tree = Tree(prover, Root(prover, x), wanted, 0.0, Options(**options), Budget(nodes=nodes),
                    lambda z: bool((model(z).argmax(1) != label).any()))  # fmt: skip
        return tree.run()


@pytest.mark.parametrize("seed", range(6))
def test_exact_on_tiny_networks(seed: int, mlp: Any, exact_minimum: Any) -> None:
    """Just below the exact radius's margin both plans prove, just above they break or stay open."""
    model, x = mlp(seed, (4, 5, 4, 3)), torch.rand(1, 1, 2, 2)
    label = int(model(x).argmax())
    wanted = torch.eye(3)[label] - torch.eye(3)[(label + 1) % 3]
    threat = Threat("linf", 0.25)
    low, high = (x - threat.eps).clamp_min(0), (x + threat.eps).clamp_max(1)
    least = exact_minimum(model, low, high, wanted)
    assert np.isfinite(least)
    # Shift the margin by the last bias: its exact minimum becomes ± 0.01.
    for shift, outcome in ((0.01, "proved"), (-0.01, "open")):
        moved = copy.deepcopy(model)
        moved[-1].bias[label] += shift - least
        for plan in ("", "ll"):
            got = _search(moved, x, threat, wanted[None], label, plan=plan)
            assert (got == "proved") == (outcome == "proved")


@pytest.mark.parametrize("norm", ["linf", "l1"])
@pytest.mark.parametrize("seed", range(2))
def test_the_last_subdomains_are_solved_exactly(
    seed: int, norm: Norm, mlp: Any, exact_minimum: Any
) -> None:
    """A margin just above zero is proved, one just below zero broken, whatever its root's gap."""
    model, x = mlp(seed, (25, 4, 4, 2)), torch.rand(1, 1, 5, 5)
    label = int(model(x).argmax())
    wanted = torch.eye(2)[label] - torch.eye(2)[1 - label]
    threat = Threat(norm, {"linf": 0.2, "l1": 3.0}[norm])
    low, high = (x - threat.eps).clamp_min(0), (x + threat.eps).clamp_max(1)
    ball = (x, threat.eps) if norm == "l1" else None
    least = exact_minimum(model, low, high, wanted, ball)
    for shift, outcome in ((2e-5, "proved"), (-2e-5, "broken")):
        moved = copy.deepcopy(model)
        moved[-1].bias[label] += shift - least
        assert _search(moved, x, threat, wanted[None], label) == outcome


def _verify(model: nn.Module, x: Tensor, y: int, threat: Threat, **budget: Any) -> Verified:
    shape = tuple(x.shape[1:])
    wide = replace(threat, eps=threat.limit(x[0].numel()))
    verifier = build_verifier(model, shape, threat, wide)
    assert verifier is not None
    return verifier.verify(x, y, Budget(**budget))


CASES = [(seed, "linf") for seed in range(4)] + [(s, n) for s in range(2) for n in ("l2", "l1")]


@pytest.mark.parametrize(("seed", "norm"), CASES)
def test_never_proved_where_broken(seed: int, norm: Norm, mlp: Any, residual: Any) -> None:
    """On random architectures: a proof excludes what thousands of inputs and descents find."""
    model = residual(seed) if seed % 2 else mlp(seed, (25, 8, 8, 3))
    generator = torch.Generator().manual_seed(seed)
    outcomes = set()
    for eps in (0.001, 0.02, 0.05, 0.4):
        threat = Threat(norm, eps * {"linf": 1, "l2": 4, "l1": 12}[norm])
        x = torch.rand(1, 1, 5, 5, generator=generator)
        y = int(model(x).argmax())
        found = _verify(model, x, y, threat, nodes=500)
        outcomes.add(found.outcome)
        if found.outcome == "proved":
            wide = x.expand(4000, -1, -1, -1)
            noise = torch.randn(wide.shape, generator=generator) * threat.eps
            breaker = Breaker(model, x, y, threat)
            assert not any([breaker(part) for part in threat.project(wide + noise, wide).split(64)])
        if found.outcome == "broken":
            assert found.example is not None
            assert bool(threat.contains(found.example, x))
            assert int(model(found.example).argmax()) != y
    assert "proved" in outcomes


def test_planted_counterexample(mlp: Any) -> None:
    """A corner where a narrow bump turns the decision is never proved away."""
    model = mlp(0, (4, 6, 6, 2))
    first, second, last = (layer for layer in model if isinstance(layer, nn.Linear))
    for layer in (first, second, last):
        layer.weight.zero_()
        layer.bias.zero_()
    first.weight[0], first.bias[0] = 1.0, -3.9  # on only within 0.1 of the corner (1, 1, 1, 1)
    second.weight[0, 0] = 1.0
    last.weight[1, 0], last.bias[0] = 20.0, 1.0  # 1 against 20 · 0.1 at the corner
    x = torch.full((1, 1, 2, 2), 0.5)
    assert _verify(model, x, 0, Threat("linf", 0.5), nodes=200).outcome == "broken"
    assert _verify(model, x, 0, Threat("linf", 0.45), nodes=200).outcome == "proved"


def test_children_are_not_below_their_parent(mlp: Any) -> None:
    """A split only shrinks the domain; warm multipliers keep the parent's bound."""
    model, x = mlp(1, (6, 10, 10, 3)), torch.rand(1, 1, 2, 3, generator=torch.Generator())
    shape, threat = (1, 2, 3), Threat("linf", 0.3)
    graphs = trace(model, shape), trace(copy.deepcopy(model).double(), shape)
    prover = Prover.of(*graphs, threat)
    root, none = Root(prover, x), Splits.none(torch.zeros(1, 1))
    domain = root.fast()
    alpha = (domain.high > -domain.low).float()
    objective = Objective(prover.fast.last, torch.tensor([[1.0, -1.0, 0.0]]))
    begin = Multipliers.start(alpha)
    parent = optimize(prover.fast, domain, objective, none, begin, 20)
    units = candidates(prover.fast, domain, parent, none, 6)
    for unit in units[0][units[0] >= 0]:
        splits, _ = children(none, unit[None])
        at = Multipliers.start(parent.best.alpha.expand(2, -1), 2)
        both = objective._replace(wanted=objective.wanted.expand(2, -1))
        found = optimize(prover.fast, splits.intersect(domain), both, splits, at, 5)
        assert bool((found.bound >= parent.bound - 1e-4).all())


def test_the_chosen_unit_has_the_best_children(mlp: Any) -> None:
    """Bounds on the way to a choice are those of the children, each bounded by itself."""
    model, x = mlp(1, (6, 10, 10, 3)), torch.rand(1, 1, 2, 3, generator=torch.Generator())
    shape, threat = (1, 2, 3), Threat("linf", 0.3)
    graphs = trace(model, shape), trace(copy.deepcopy(model).double(), shape)
    prover = Prover.of(*graphs, threat)
    domain, none = Root(prover, x).fast(), Splits.none(torch.zeros(1, 1))
    alpha = (domain.high > -domain.low).float()
    objective = Objective(prover.fast.last, torch.tensor([[1.0, -1.0, 0.0]]))
    begin = Multipliers.start(alpha)
    parent = optimize(prover.fast, domain, objective, none, begin, 20)
    units = candidates(prover.fast, domain, parent, none, 6)
    assert int((units >= 0).sum()) > 2
    unit, bounds = choose(prover.fast, domain, objective, none, parent.best, units)
    scores = {}
    for one in units[0][units[0] >= 0]:
        split, _ = children(none, one[None])
        at = Multipliers.start(parent.best.alpha.expand(2, -1), 2)
        both = objective._replace(wanted=objective.wanted.expand(2, -1))
        found = evaluate(prover.fast, split.intersect(domain), both, split, at).bound
        if one == unit[0]:
            torch.testing.assert_close(bounds, found)
        low = found.clamp_max(0)
        scores[int(one)] = float(low.min() + 0.5 * low.max())
    assert scores[int(unit)] == pytest.approx(max(scores.values()), abs=1e-6)


def test_budget_leaves_a_point_undecided_and_repeats(mlp: Any) -> None:
    """The same nodes give the same outcome; more of them decide."""
    model, x = mlp(7, (9, 14, 14, 3)), torch.full((1, 1, 3, 3), 0.5)
    y = int(model(x).argmax())
    few = [_verify(model, x, y, Threat("linf", eps), nodes=0) for eps in _EPS]
    again = [_verify(model, x, y, Threat("linf", eps), nodes=0) for eps in _EPS]
    assert [found[:2] for found in few] == [found[:2] for found in again]
    many = [_verify(model, x, y, Threat("linf", eps), nodes=4000).outcome for eps in _EPS]
    assert "undecided" in [found.outcome for found in few]
    assert "undecided" not in many
    assert many == sorted(many, key=["proved", "broken"].index)


_EPS = [step / 40 for step in range(1, 21, 4)]


def test_memory_is_a_budget(mlp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that is full leaves the point undecided."""
    model, x = mlp(7, (9, 14, 14, 3)), torch.full((1, 1, 3, 3), 0.5)
    y = int(model(x).argmax())
    found = [_verify(model, x, y, Threat("linf", eps), nodes=4000) for eps in _EPS]
    hard = next(eps for eps, one in zip(_EPS, found, strict=True) if one.nodes)
    monkeypatch.setattr("robustkit.certify.complete.search._POOL", 0)
    assert _verify(model, x, y, Threat("linf", hard)).outcome == "undecided"


def test_a_margin_of_zero_ends_undecided(mlp: Any) -> None:
    """Two classes that are always equal: the first is the answer, and nothing proves it."""
    model = mlp(5, (4, 2, 2, 2))
    model[-1].weight[1], model[-1].bias[1] = model[-1].weight[0], model[-1].bias[0]
    found = _verify(model, torch.full((1, 1, 2, 2), 0.5), 0, Threat("linf", 0.4))
    assert found.outcome == "undecided"


def test_a_network_too_large_is_undecided(mlp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and never an error."""
    monkeypatch.setattr("robustkit.certify.complete.points._LARGEST", 5)
    found = _verify(mlp(5, (4, 3, 3, 2)), torch.rand(1, 1, 2, 2), 0, Threat("linf", 1e-6))
    assert (found.outcome, found.nodes) == ("undecided", 0)


def test_time_ends_the_tightening_too(mlp: Any) -> None:
    """Bounds stay as they are, and sound."""
    model, x = mlp(7, (9, 14, 14, 3)), torch.full((1, 1, 3, 3), 0.5)
    y = int(model(x).argmax())
    radii = (1e-4, *_EPS)
    outcomes = [_verify(model, x, y, Threat("linf", eps), seconds=0).outcome for eps in radii]
    assert set(outcomes) == {"proved", "undecided"}


@pytest.mark.parametrize("cuts", [0, 8])
def test_batches_and_order_change_no_verdict(
    cuts: int, mlp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given enough time: batches of 4 and of 1,000 subdomains, points forwards and backwards."""
    model, shape = mlp(7, (9, 14, 14, 3)), (1, 3, 3)
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(3))
    y, threat = model(x).argmax(1), Threat("linf", 0.15)
    built = build_verifier(model, shape, threat, replace(threat, eps=threat.limit(9)))
    assert built is not None
    verifier = replace(built, options=Options(plan="", first=2, cuts=cuts))
    outcomes = []
    for chunk, points in ((1, [0, 1, 2, 3]), (2**18, [3, 2, 1, 0])):
        monkeypatch.setattr("robustkit.certify.complete.search.CHUNK", chunk)
        found = {p: verifier.verify(x[p : p + 1], int(y[p]), Budget(nodes=5000)) for p in points}
        outcomes.append([found[p].outcome for p in range(4)])
        assert any(one.nodes for one in found.values())
    assert outcomes[0] == outcomes[1]
    assert "undecided" not in outcomes[0]


def test_zeros_round_nothing(mlp: Any) -> None:
    """A unit that is off everywhere is no summand of the layer behind it."""
    model, shape = mlp(3, (4, 8, 8, 3)), (1, 2, 2)
    model[1].bias[2:] = -100.0
    prover = Prover.of(trace(model, shape), trace(copy.deepcopy(model).double(), shape),
                       Threat("linf", 0.1))  # fmt: skip
    graph, root = prover.exact.graph, Root(prover, torch.rand(1, *shape))
    second = [at for at, node in enumerate(graph.nodes) if isinstance(node.op, LinearOp)][1]
    op, low, high = graph.nodes[second].op, *root.boxes[graph.nodes[second].inputs[0]]
    size = torch.maximum(low.abs(), high.abs())
    assert int((size > 0).sum()) <= 2
    ratio = root.exact().slack[second] / widening(op, size)  # type: ignore[arg-type]
    assert bool((ratio <= (2 + 1 + 2) / (8 + 1 + 2) + 1e-6).all())


def test_float64_decides_what_it_refused_at_first(mlp: Any) -> None:
    """Where rounding costs more than float32 was asked for, float32 goes on."""
    model, x = mlp(7, (9, 14, 14, 3)), torch.full((1, 1, 3, 3), 0.5)
    threat, wanted = Threat("linf", 0.15), torch.tensor([[1.0, -1.0, 0.0]])
    graphs = trace(model, (1, 3, 3)), trace(copy.deepcopy(model).double(), (1, 3, 3))
    with torch.no_grad():
        prover = Prover.of(*graphs, threat)
        tree = Tree(prover, Root(prover, x), wanted, 0.0, Options(), Budget(), lambda z: False)
        splits = Splits.none(torch.zeros(1, 1))
        alpha = (tree.root.fast().high > -tree.root.fast().low).float()
        at = Multipliers.start(alpha)
        assert not bool(tree._sure(splits, at, torch.tensor([7.0]), 1e-4).any())
        exact = evaluate(
            prover.exact,
            tree.root.exact(),
            tree._objective(1).double(),
            Splits(splits.unit, splits.sign.double()),
            at.double(),
        ).bound
    assert exact < 0
    assert tree.enough > 7.0 - float(exact)


@pytest.mark.parametrize("seed", range(2))
def test_fewer_units_than_candidates(seed: int, mlp: Any) -> None:
    """Two ReLUs in all: there is one unit to choose at last."""
    model, x = mlp(seed, (4, 2, 2)), torch.full((1, 1, 2, 2), 0.5)
    radii = [0.4 * step / 10 for step in range(1, 11)]
    y = int(model(x).argmax())
    outcomes = [_verify(model, x, y, Threat("linf", eps)).outcome for eps in radii]
    assert outcomes == sorted(outcomes, key=["proved", "broken"].index)


def test_max_pooling_is_named() -> None:
    """Branch and bound does not split its windows."""
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                        nn.Linear(2, 3)).requires_grad_(False)  # fmt: skip
    assert obstacle(trace(net, (1, 3, 3))) == "MaxPool"
