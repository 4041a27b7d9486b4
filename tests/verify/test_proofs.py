"""Stored proofs: true ones are accepted, what breaks a rule or says something false is not."""

from __future__ import annotations

import ast
import copy
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog, minimize
from torch import Tensor, nn
from torch.nn import functional as F

from robustkit.certify.complete.plain import plain
from robustkit.certify.complete.record import Recorder, bare
from robustkit.certify.complete.search import Budget, Options
from robustkit.certify.complete.verifier import build_verifier
from robustkit.certify.graph import trace
from robustkit.core.threat import Norm, Threat
from robustkit.errors import UsageError
from robustkit.evaluation.stages.proofs import apart
from robustkit.verify.proofs.checker import Refused, check
from robustkit.verify.proofs.domain import Ball, Domain
from robustkit.verify.proofs.network import Network, build

CHECKER = Path(__file__).parents[2] / "robustkit" / "verify" / "proofs"
Arrays = dict[str, NDArray[Any]]
# Searches that tighten intervals first, and searches that split instead.
_BOXES = Options(plan="l", first=10)
_TREES = Options(plan="", first=3, tightening=0, iterations=8)


class Proof(NamedTuple):
    """A network, a statement about a point, and its proof."""

    model: nn.Module
    net: Network
    ball: Ball
    label: int
    arrays: Arrays

    def holds(self) -> bool:
        try:
            with torch.no_grad():
                check(self.net, self.ball, self.label, 0.0, self.arrays)
        except (Refused, *BROKEN):
            return False
        return True


BROKEN = (IndexError, KeyError, ValueError, RuntimeError, OverflowError, TypeError)


class Residual(nn.Module):
    """Strides, a sum, a concatenation, pooling and batch normalization, over [1, 5, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.third = nn.Conv2d(6, 4, 3, stride=2, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(4, 3)
        self.norm.running_mean = torch.empty(3).uniform_(-0.2, 0.2)
        self.norm.running_var = torch.empty(3).uniform_(0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        """[b, 1, 5, 5] -> [b, 3]."""
        a = F.relu(self.norm(self.first(x)))
        b = F.relu(self.second(a)) - a
        c = F.relu(self.third(torch.cat([a, b], 1)))
        logits: Tensor = self.head(self.pool(c).flatten(1))
        return logits


def mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def prove(model: nn.Module, x: Tensor, threat: Threat, options: Options = _BOXES) -> Proof | None:
    """Search for a proof of one point; None where it ends without one."""
    model = model.eval().requires_grad_(False)
    shape = tuple(x.shape[1:])
    wide = replace(threat, eps=threat.limit(x[0].numel()))
    verifier = build_verifier(model, shape, threat, wide)
    assert verifier is not None
    verifier = replace(verifier, options=options)
    net = build(*plain(verifier.prover.exact.graph))
    label, record = int(model(x).argmax()), Recorder(net.width)
    if verifier.verify(x, label, Budget(nodes=100), record).outcome != "proved":
        return None
    arrays = record.result(net.nodes[-1].shape[0], label)
    assert arrays is not None
    ball = Ball(x.double(), wide.norm, wide.eps, wide.lower, wide.upper)
    return Proof(model, net, ball, label, arrays)


def some_proofs(norm: Norm = "linf") -> list[Proof]:
    """Proofs of small networks, by bounds alone and by trees."""
    found, eps = [], {"linf": 0.3, "l2": 0.5, "l1": 0.8}[norm]
    for seed in range(4):
        torch.manual_seed(seed)
        model, x = (Residual(), torch.rand(1, 1, 5, 5)) if seed == 1 else (
            mlp(4, 12, 12, 3), torch.rand(1, 1, 2, 2)
        )  # fmt: skip
        model.eval().requires_grad_(False)
        last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
        for share in (
            0.0,
            0.6,
            0.4,
            0.3,
            0.2,
            0.2,
            0.2,
        ):  # the margin shrinks until nothing is proved
            first, second = model(x)[0].topk(2).values
            last.bias[int(model(x).argmax())] -= share * (first - second)
            threat = Threat(norm, eps / (5 if seed == 1 else 1))
            proof = prove(copy.deepcopy(model), x, threat, _BOXES if seed < 2 else _TREES)
            if proof is None:
                break
            found.append(proof)
    return found


@pytest.fixture(scope="module")
def proofs() -> list[Proof]:
    """Proofs in linf."""
    return some_proofs()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_what_the_search_proves_is_accepted(norm: Norm, proofs: list[Proof]) -> None:
    """Trees, intervals and slopes, residual and plain networks."""
    found = proofs if norm == "linf" else some_proofs(norm)
    assert len(found) > 5
    assert all(proof.holds() for proof in found)
    leaves = [len(proof.arrays["beta"]) for proof in found]
    assert norm != "linf" or max(leaves) > 0  # some needed splits


def test_intervals_alone_prove_what_they_can() -> None:
    """A proof without slopes or splits holds where interval bounds do, and not elsewhere."""
    torch.manual_seed(0)
    proof = prove(mlp(25, 8, 8, 3), torch.rand(1, 1, 5, 5), Threat("linf", 0.02))
    assert proof is not None
    plainly = proof._replace(arrays=bare(proof.net.width, 3, proof.label))
    small = plainly._replace(ball=proof.ball._replace(eps=1e-4))
    assert small.holds()
    assert not plainly._replace(ball=proof.ball._replace(eps=0.5)).holds()
    assert not small._replace(label=(proof.label + 1) % 3).holds()


def test_nothing_false_is_accepted(exact_minimum: Any) -> None:
    """Against enumeration: proofs moved to other biases hold only where the margins are positive.

    Every proof is checked on the network as it is and with the bias of its class lowered step by
    step, through the exact least margin: with its own multipliers and with random ones.
    """
    generator = np.random.default_rng(0)
    accepted = refused = 0
    for seed in range(6):
        torch.manual_seed(seed)
        proof = prove(mlp(4, 4, 4, 3), torch.rand(1, 1, 2, 2), Threat("linf", 0.1))
        if proof is None:
            continue
        x, eps, rows = proof.ball.x, proof.ball.eps, torch.eye(3)
        least = min(
            exact_minimum(
                proof.model, (x - eps).clamp_min(0), (x + eps).clamp_max(1),
                rows[proof.label] - rows[j],
            )
            for j in range(3)
            if j != proof.label
        )  # fmt: skip
        assert least > 0
        for share in (0.0, 0.5, 0.9, 0.99, 1.0, 1.01, 1.5):
            moved = copy.deepcopy(proof.net)
            last = moved.nodes[-1]
            last.bias[proof.label] -= share * least
            last.bulk[proof.label] = last.bias[proof.label].abs()
            arrays = dict(proof.arrays)
            if share and generator.random() < 0.5:
                drawn = generator.integers(0, 65536, len(arrays["alpha"]))
                arrays["alpha"] = drawn.astype(np.uint16)
            holds = proof._replace(net=moved, arrays=arrays).holds()
            assert not (holds and share >= 1)
            accepted, refused = accepted + holds, refused + (not holds)
    assert accepted >= 5
    assert refused >= 10


def test_intervals_of_one_class_serve_no_other(proofs: list[Proof]) -> None:
    """Steps that rest on the margin of a class are refused before the tree of another."""
    tried = 0
    for proof in proofs:
        plan = proof.arrays["plan"]
        for step in range(len(plan) - 1):
            j = int(plan[step, 2])
            if plan[step, 0] != 0 or j < 0:
                continue
            other = plan.copy()
            other[step, 2] = 3 - proof.label - j
            assert other[step, 2] not in (proof.label, j)
            forged = proof._replace(arrays={**proof.arrays, "plan": other})
            with pytest.raises(Refused, match="a step of class"), torch.no_grad():
                check(forged.net, forged.ball, forged.label, 0.0, forged.arrays)
            tried += 1
    assert tried > 0


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_ball_and_box_are_minimized_over_together(norm: Norm) -> None:
    """Against a solver: near it from below, and above what ball and box apart show."""
    net = build(*plain(trace(mlp(9, 4, 3).double(), (1, 3, 3))))
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 1, 3, 3, generator=generator).double().round(decimals=1)
    a = torch.randn(8, 1, 3, 3, generator=generator).double()
    for eps in (0.1, 0.7, 2.0):
        domain = Domain(net, Ball(x, norm, eps, 0.0, 1.0), [])
        found, size = domain._least(0, a)
        for row, least in zip(a, found, strict=True):
            best = minimum(row.flatten().numpy(), x.flatten().numpy(), eps, norm)
            assert best - 1e-5 <= float(least) <= best + 1e-6
        assert bool((size >= found.abs()).all())


def minimum(a: NDArray[Any], x: NDArray[Any], eps: float, norm: Norm) -> float:
    """Minimize a · x' over ball and box with a solver."""
    n, zero = len(x), np.zeros(len(x))
    if norm == "l1":  # x' = x + p − q
        bounds = [*((0, 1 - v) for v in x), *((0, v) for v in x)]
        done = linprog(np.concatenate([a, -a]), np.ones((1, 2 * n)), [eps], bounds=bounds)
        return float(done.fun + a @ x)
    done = minimize(lambda d: a @ d, zero, jac=lambda d: a, method="SLSQP", tol=1e-12,
                    bounds=list(zip(-x, 1 - x, strict=True)), options={"maxiter": 500},
                    constraints={"type": "ineq", "fun": lambda d: eps**2 - d @ d,
                                 "jac": lambda d: -2 * d})  # fmt: skip
    return float(done.fun + a @ x)


# Tampering. A change that leaves a true statement truly proved is no forgery: of those below that
# keep all rules, the statement is asked of an adversarial input instead.


def _narrowed(proof: Proof, rng: Any) -> Proof | None:
    """Give a unit a bound that its multipliers do not show: a row for another unit's slopes."""
    arrays = dict(proof.arrays)
    plan = arrays["plan"].copy()
    step = int(rng.integers(len(plan)))
    plan[step, int(rng.choice([0, 2, 3, 4]))] += int(rng.choice([-1, 1, 2, 7]))
    return proof._replace(arrays={**arrays, "plan": plan})


def _missing(proof: Proof, rng: Any) -> Proof | None:
    """Leave out a class, a leaf, or the end of an array."""
    arrays = dict(proof.arrays)
    if rng.random() < 0.5:
        names = [name for name in ("tree", "beta", "alpha", "unit", "gamma") if len(arrays[name])]
        name = str(rng.choice(names))
        arrays[name] = arrays[name][: int(rng.integers(len(arrays[name])))]
        return proof._replace(arrays=arrays)
    steps = [i for i, row in enumerate(arrays["plan"]) if row[0] == 1]
    drop = int(rng.choice(steps))
    arrays["plan"] = np.delete(arrays["plan"], drop, 0)
    arrays["mask"] = np.delete(arrays["mask"], drop, 0)
    return proof._replace(arrays=arrays)


def _tree(proof: Proof, rng: Any) -> Proof | None:
    """Turn a split into a leaf, or a leaf into a split."""
    arrays = dict(proof.arrays)
    tree, at = arrays["tree"].copy(), int(rng.integers(len(arrays["tree"])))
    tree[at] = int(rng.integers(proof.net.width)) if tree[at] < 0 else -1
    return proof._replace(arrays={**arrays, "tree": tree})


def _range(proof: Proof, rng: Any) -> Proof | None:
    """Put a multiplier out of its range: negative, above one, infinite or not a number."""
    arrays = dict(proof.arrays)
    names = [name for name in ("beta", "alpha", "gamma") if len(arrays[name])]
    if not names:
        return None
    name = str(rng.choice(names))
    part = arrays[name].astype(np.float32) / (65535 if name == "alpha" else 1)
    bad = [-0.5, np.nan, np.inf, -np.inf, 1.5 if name == "alpha" else -1e-6]
    part[int(rng.integers(len(part)))] = rng.choice(bad)
    return proof._replace(arrays={**arrays, name: part})


def _statement(proof: Proof, rng: Any) -> Proof | None:
    """Another label, a larger eps, another norm's ball, or a point that is not in the box."""
    kind, ball = int(rng.integers(4)), proof.ball
    if kind == 0:
        return proof._replace(label=(proof.label + int(rng.integers(1, 3))) % 3)
    if kind == 1:
        return proof._replace(ball=ball._replace(eps=1.0))
    if kind == 2:
        return proof._replace(ball=ball._replace(x=ball.x + 2))
    return proof._replace(ball=ball._replace(x=torch.full_like(ball.x, torch.nan)))


def _weights(proof: Proof, rng: Any) -> Proof | None:
    """Turn the sign of the last layer, or favour another class there."""
    net = copy.deepcopy(proof.net)
    last = net.nodes[-1]
    if rng.random() < 0.5:
        last.weight.neg_()
        last.bias.neg_()
    else:
        last.bias[(proof.label + 1) % 3] += 100.0
        last.bulk[(proof.label + 1) % 3] += 100.0
    return proof._replace(net=net)


TAMPERINGS = (_narrowed, _missing, _tree, _range, _statement, _weights)


def _true(proof: Proof) -> bool:
    """Whether thousands of inputs of the ball, corners among them, leave the statement standing."""
    x, eps = proof.ball.x, proof.ball.eps
    if not 0 <= proof.label < 3 or not bool(x.isfinite().all()):
        return False
    noise = torch.rand(2000, *x.shape[1:], generator=torch.Generator().manual_seed(0)).double()
    z = (x + eps * torch.cat([2 * noise - 1, (2 * noise - 1).sign()])).clamp(0, 1)
    return bool((proof.model.double()(z).argmax(1) == proof.label).all())


def test_a_thousand_tampered_proofs_are_refused(proofs: list[Proof]) -> None:
    """All that break a rule or change the statement; others are seen to state what is true.

    Splits that are moved, and steps whose rows change, may leave another proof of the same
    statement, and a larger ball may be proved by the same: such are not counted.
    """
    rng = np.random.default_rng(0)
    refused, same = dict.fromkeys(TAMPERINGS, 0), 0
    while sum(refused.values()) < 1000:
        tamper = TAMPERINGS[int(rng.integers(len(TAMPERINGS)))]
        proof = proofs[int(rng.integers(len(proofs)))]
        forged = tamper(proof, rng)
        if forged is None:
            continue
        if not forged.holds():
            refused[tamper] += 1
            continue
        same += 1
        assert tamper not in (_range, _weights), tamper.__name__
        assert tamper is _statement or forged[:4] == proof[:4]
        assert _true(forged)  # a larger ball may be proved too
    assert min(refused.values()) >= 50
    assert same < 100


def test_logits_are_compared_within_what_float32_may_lose() -> None:
    """A ReLU at zero is clipped on one side: the middle of its interval is no evaluation."""
    model = mlp(4, 3, 2).double().requires_grad_(False)
    x = torch.rand(2, 1, 2, 2, dtype=torch.float64)
    first = model[1]
    assert isinstance(first, nn.Linear)
    first.bias[0] -= first(x[:1].flatten(1))[0, 0]
    graph = trace(model, (1, 2, 2))
    network, logits = build(*plain(graph)), graph.values(x)[-1]
    assert apart(network, x, logits) <= 0
    assert apart(network, x, logits + 1e-3) == pytest.approx(1e-3, rel=0.1)


def test_an_operation_that_proofs_do_not_know_is_named() -> None:
    """Before anything runs."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 4), nn.Sigmoid(), nn.Linear(4, 3))
    with pytest.raises(UsageError, match="sigmoid"):
        plain(trace(model.eval().double(), (1, 5, 5)))


def test_the_checker_stands_alone_and_is_small() -> None:
    """It imports nothing of robustkit but itself, and has at most 300 lines of code."""
    lines = 0
    for path in sorted(CHECKER.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert not name.startswith("robustkit") or name.startswith(
                    "robustkit.verify.proofs"
                )
        code = {n.lineno for n in ast.walk(tree) if isinstance(n, (ast.stmt, ast.expr, ast.arg))}
        docs = {
            line
            for n in ast.walk(tree)
            if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(n)
            for line in range(n.body[0].lineno, (n.body[0].end_lineno or 0) + 1)
        }
        lines += 0 if path.name == "folder.py" else len(code - docs)
    assert lines <= 300
