"""Cuts of closed subdomains remove no input that matters; no bound is above a minimum."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn

from robustkit.certify.complete.beta_crown import (
    Multipliers,
    Objective,
    Splits,
    evaluate,
    optimize,
)
from robustkit.certify.complete.learning import Pool
from robustkit.certify.complete.relaxation import Domain, Lines
from robustkit.certify.complete.root import Prover, Root
from robustkit.certify.complete.search import Budget, Options, Tree
from robustkit.certify.graph import trace
from robustkit.core.threat import Threat

THREAT, SHAPE = Threat("linf", 0.5), (1, 2, 2)


def _prover(model: nn.Module) -> Prover:
    return Prover.of(trace(model, SHAPE), trace(copy.deepcopy(model).double(), SHAPE), THREAT)


class _Program:
    """The network as a mixed integer program over x, and v, r, z of every ReLU (big M)."""

    def __init__(self, model: nn.Sequential, root: Domain) -> None:
        layers = [layer for layer in model if isinstance(layer, nn.Linear)]
        self.inputs, self.width = root.x_low[0].numel(), root.low.shape[1]
        self.n = self.inputs + 3 * self.width
        self.rows, self.below, self.above = list[np.ndarray](), list[float](), list[float]()
        self.low = np.concatenate([root.x_low.flatten(), np.full(2 * self.width, -np.inf),
                                   np.zeros(self.width)])  # fmt: skip
        self.high = np.concatenate([root.x_high.flatten(), np.full(2 * self.width, np.inf),
                                    np.ones(self.width)])  # fmt: skip
        source, unit = list(range(self.inputs)), 0
        for layer in layers[:-1]:
            weight, bias = layer.weight.double().numpy(), layer.bias.double().numpy()
            outputs = list[int]()
            for w, b in zip(weight, bias, strict=True):
                v, r, z = (self.inputs + part * self.width + unit for part in range(3))
                low, high = float(root.low[0, unit]), float(root.high[0, unit])
                self.add({v: 1.0, **{i: -c for i, c in zip(source, w, strict=True)}}, b, b)
                self.add({r: 1.0}, 0.0, np.inf)
                self.add({r: 1.0, v: -1.0}, 0.0, np.inf)
                self.add({r: 1.0, z: -max(high, 0.0)}, -np.inf, 0.0)
                self.add({r: 1.0, v: -1.0, z: -min(low, 0.0)}, -np.inf, -min(low, 0.0))
                outputs.append(r)
                unit += 1
            source = outputs
        last = layers[-1]
        self.last, self.source = (last.weight.double().numpy(), last.bias.double().numpy()), source

    def add(self, terms: dict[int, float], below: float, above: float) -> None:
        row = np.zeros(self.n)
        for place, value in terms.items():
            row[place] += value
        self.rows.append(row)
        self.below.append(float(below))
        self.above.append(float(above))

    def minimum(self, wanted: Tensor, way: dict[int, float]) -> float:
        """Minimize wanted · logits where these units have these signs; inf: there is none."""
        low, high = self.low.copy(), self.high.copy()
        for unit, sign in way.items():
            (low if sign > 0 else high)[self.inputs + 2 * self.width + unit] = float(sign > 0)
            (low if sign > 0 else high)[self.inputs + unit] = 0.0
        direction = wanted.double().numpy()
        cost = np.zeros(self.n)
        cost[self.source] = direction @ self.last[0]
        whole = np.arange(self.n) >= self.inputs + 2 * self.width
        found = milp(
            cost,
            integrality=whole,
            bounds=Bounds(low, high),
            constraints=LinearConstraint(np.array(self.rows), self.below, self.above),
        )
        return float(found.fun + direction @ self.last[1]) if found.status == 0 else np.inf


def _case(seed: int, mlp: Any, first: int = 6) -> tuple[nn.Sequential, Prover, Tensor, Tensor]:
    """A network, a point and a margin whose exact minimum is made 0.01."""
    model = mlp(seed, (4, first, 10, 3))
    x = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(seed))
    wanted = torch.tensor([1.0, -1.0, 0.0])
    program = _Program(model, Root(_prover(model), x).exact())
    model[-1].bias[0] += 0.01 - program.minimum(wanted, {})
    return model, _prover(model), x, wanted


def test_no_cut_removes_an_input_that_matters(mlp: Any) -> None:
    """The exact minimum of the margin over the splits of every cut is above the target."""
    options = Options(plan="", first=3, iterations=2, filtered=1, cuts=64)
    learned = 0
    with torch.no_grad():
        for seed, first in ((2, 10), (4, 10), (2, 16)):
            model, prover, x, wanted = _case(seed, mlp, first)
            root = Root(prover, x)
            tree = Tree(prover, root, wanted[None], 0.0, options, Budget(nodes=2000),
                        lambda z: False)  # fmt: skip
            assert tree.run() == "proved"
            program = _Program(model, root.exact())
            for way in tree.pool.sets:
                assert program.minimum(wanted, way) > 0
            learned += len(tree.pool.sets)
    assert learned


@pytest.mark.parametrize("seed", range(4))
def test_a_bound_with_cuts_is_below_the_minimum(seed: int, mlp: Any) -> None:
    """Whatever the multipliers, in every subdomain, for cuts that every input fulfils."""
    torch.manual_seed(seed)
    with torch.no_grad():
        model, prover, x, wanted = _case(seed, mlp)
        root = Root(prover, x)
        domain, program = root.exact(), _Program(model, root.exact())
        opened = ((domain.low < 0) & (domain.high > 0))[0].nonzero().flatten().tolist()
        pool = Pool(8)
        # Sets without any input of the ball at all: cuts that hold everywhere.
        ways = [{u: float(s) for u, s in zip(pick, signs, strict=True)}
                for pick, signs in _picks(opened)]  # fmt: skip
        pool.add([way for way in ways if program.minimum(wanted, way) == np.inf], domain)
        assert pool.exact is not None
        for way in ({}, {opened[0]: 1.0}, {opened[-1]: -1.0}):
            splits = Splits.none(domain.low)
            if way:
                splits = Splits(torch.tensor([list(way)]), torch.tensor([list(way.values())]))
            splits = splits._replace(sign=splits.sign.double())
            least = program.minimum(wanted, way)
            objective = Objective(prover.exact.last, wanted[None].double())
            inside = splits.intersect(domain._replace(cuts=pool.exact))
            for scale in (0.0, 0.05, 0.5, 5.0):
                at = Multipliers.start(torch.rand_like(domain.low), splits.unit.shape[1])
                at = at._replace(cut=scale * torch.rand(1, len(pool.sets), dtype=torch.float64))
                assert float(evaluate(prover.exact, inside, objective, splits, at).bound) <= least
            at = Multipliers.start(domain.high.sign().clamp_min(0), splits.unit.shape[1],
                                   len(pool.sets))  # fmt: skip
            found = optimize(prover.exact, inside, objective, splits, at, 60)
            assert float(found.bound) <= least + 1e-9
            without = optimize(prover.exact, inside._replace(cuts=None), objective, splits, at, 60)
            assert float(found.bound) >= float(without.bound) - 0.05


def _picks(opened: list[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(30):
        pick = torch.randperm(len(opened), generator=generator)[:3].tolist()
        signs = (2 * torch.randint(0, 2, (3,), generator=generator) - 1).tolist()
        found.append((tuple(opened[i] for i in pick), tuple(signs)))
    return found


def test_the_gradient_by_multipliers_of_cuts_is_that_of_autograd(mlp: Any) -> None:
    """Units that cuts pull both ways, closed units and open ones."""
    torch.manual_seed(0)
    model = mlp(0, (4, 6, 6, 3))
    prover = _prover(model)
    domain = Root(prover, torch.full((1, *SHAPE), 0.5)).exact()._replace(slack={})
    opened = ((domain.low < 0) & (domain.high > 0))[0].nonzero().flatten().tolist()
    pool = Pool(8)
    pool.add([{opened[0]: 1.0, opened[1]: 1.0}, {opened[0]: -1.0, opened[2]: -1.0},
              {opened[3]: 1.0, opened[4]: -1.0, opened[1]: 1.0}], domain)  # fmt: skip
    splits = Splits(torch.tensor([[opened[3]]]), torch.ones(1, 1).double())
    inside = splits.intersect(domain._replace(cuts=pool.exact))
    objective = Objective(prover.exact.last, torch.randn(1, 3).double())
    weight = torch.rand(1, 3, dtype=torch.float64)
    at = Multipliers.start(torch.rand_like(domain.low))
    with torch.enable_grad():
        given = weight.clone().requires_grad_()
        run = evaluate(prover.exact, inside, objective, splits, at._replace(cut=given))
        (expected,) = torch.autograd.grad(run.bound.sum(), given)
    lines = Lines.of(inside.low, inside.high)
    with torch.no_grad():
        run = evaluate(prover.exact, inside, objective, splits, at._replace(cut=weight))
        up = prover.exact.ascend(run, lines, lines.clamp(at.alpha), objective.start)
        assert pool.exact is not None
        found = pool.exact.slopes(weight, lines.floor, lines.ceiling, up)
    torch.testing.assert_close(found, expected)


def test_implied_splits() -> None:
    """What is one split short of a cut gets the opposite of it; what has them all is empty."""
    width = 6
    low, high = -torch.ones(1, width).double(), torch.ones(1, width).double()
    none = torch.zeros(1, 0).double()
    pool, domain = Pool(4), Domain(low, high, none, none, none, {})
    pool.add([{0: 1.0, 1: -1.0}, {1: 1.0, 2: 1.0, 3: -1.0}, {0: 1.0, 1: -1.0, 4: 1.0}], domain)
    assert pool.sets == [{0: 1.0, 1: -1.0}, {1: 1.0, 2: 1.0, 3: -1.0}]  # the third is implied
    splits = Splits(torch.tensor([[0, 2], [0, 1], [4, 0], [1, 5]]),
                    torch.tensor([[1.0, 1.0], [1.0, -1.0], [1.0, 0.0], [-1.0, 1.0]]))  # fmt: skip
    grown, at, empty = pool.infer(splits, Multipliers.start(torch.zeros(4, width), 2))
    assert empty.tolist() == [False, True, False, False]
    assert at.beta.shape == grown.unit.shape
    ways = grown.listed()
    assert ways[0] == {0: 1.0, 2: 1.0, 1: 1.0, 3: 1.0}  # 1 by the first cut, then 3 by the second
    assert ways[2] == {4: 1.0}
    assert ways[3] == {1: -1.0, 5: 1.0, 0: -1.0}


def test_a_full_pool_keeps_the_shorter() -> None:
    """A shorter cut takes the place of the longest, and of those that it implies."""
    none = torch.zeros(1, 0).double()
    ends = torch.ones(1, 9).double()
    pool, domain = Pool(2), Domain(-ends, ends, none, none, none, {})
    pool.add([{0: 1.0, 1: 1.0, 2: 1.0}, {3: 1.0, 4: 1.0}], domain)
    pool.add([{5: 1.0, 6: 1.0, 7: 1.0}], domain)
    assert pool.sets == [{3: 1.0, 4: 1.0}, {0: 1.0, 1: 1.0, 2: 1.0}]
    pool.add([{5: 1.0, 6: 1.0}, {3: 1.0}], domain)
    assert pool.sets == [{3: 1.0}, {5: 1.0, 6: 1.0}]
