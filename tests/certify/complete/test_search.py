"""Branch and bound is exact on tiny networks and sound on all."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from robustkit.certify.complete.root import Prover, Root
from robustkit.certify.complete.search import Budget, Options, Outcome, Tree
from robustkit.certify.graph import trace
from robustkit.core.threat import Threat


def _mlp(seed: int, sizes: tuple[int, ...]) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval().requires_grad_(False)


def _exact(model: nn.Sequential, x: Tensor, threat: Threat, wanted: Tensor) -> float:
    """Minimize wanted · logits over the linf ball: one linear program per activation pattern."""
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    weights = [(la.weight.double().numpy(), la.bias.double().numpy()) for la in layers]
    low = (x - threat.eps).clamp_min(0).double().flatten().tolist()
    high = (x + threat.eps).clamp_max(1).double().flatten().tolist()
    hidden = [len(b) for _, b in weights[:-1]]
    least = np.inf
    for pattern in itertools.product((0.0, 1.0), repeat=sum(hidden)):
        signs = np.split(np.array(pattern), np.cumsum(hidden)[:-1])
        a, c = np.eye(len(low)), np.zeros(len(low))
        rows, limits = [], []
        for (w, b), on in zip(weights[:-1], signs, strict=True):
            a, c = w @ a, w @ c + b
            rows.append((1 - 2 * on)[:, None] * a)  # on: −v ≤ 0, off: v ≤ 0
            limits.append(-(1 - 2 * on) * c)
            a, c = on[:, None] * a, on * c
        w, b = weights[-1]
        direction = wanted.double().numpy()
        a, c = direction @ w @ a, direction @ (w @ c + b)
        found = linprog(a, np.concatenate(rows), np.concatenate(limits),
                        bounds=list(zip(low, high, strict=True)), method="highs")  # fmt: skip
        if found.status == 0:
            least = min(least, found.fun + float(c))
    return float(least)


def _search(
    model: nn.Module, x: Tensor, threat: Threat, wanted: Tensor, label: int, nodes: int = 2000,
    **options: object,
) -> Outcome:  # fmt: skip
    shape = tuple(x.shape[1:])
    with torch.no_grad():
        graphs = trace(model, shape), trace(copy.deepcopy(model).double(), shape)
        prover = Prover.of(*graphs, threat)
        tree = Tree(prover, Root(prover, x), wanted, 0.0, Options(**options), Budget(nodes=nodes),
                    lambda z: bool((model(z).argmax(1) != label).any()))  # fmt: skip
        return tree.run()


@pytest.mark.parametrize("plan", ["", "ll"])
@pytest.mark.parametrize("seed", range(6))
def test_exact_on_tiny_networks(seed: int, plan: str) -> None:
    """Just below the exact radius's margin it proves, just above it breaks or stays open."""
    model, x = _mlp(seed, (4, 5, 4, 3)), torch.rand(1, 1, 2, 2)
    label = int(model(x).argmax())
    wanted = torch.eye(3)[label] - torch.eye(3)[(label + 1) % 3]
    threat = Threat("linf", 0.25)
    least = _exact(model, x, threat, wanted)
    assert np.isfinite(least)
    # Shift the margin by the last bias: its exact minimum becomes ± 0.01.
    for shift, outcome in ((0.01, "proved"), (-0.01, "open")):
        moved = copy.deepcopy(model)
        moved[-1].bias[label] += shift - least
        got = _search(moved, x, threat, wanted[None], label, plan=plan)
        assert (got == "proved") == (outcome == "proved")
