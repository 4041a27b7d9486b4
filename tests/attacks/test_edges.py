"""Flipped edges: the oracle of one flip, budgets and symmetry, projection, poisoning, the file."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

import robustkit
from robustkit.core.named import NamedThreat
from robustkit.data.graphs import GraphSet, decode, encode, graph_of
from robustkit.data.open import open_dataset
from robustkit.errors import UsageError
from robustkit.models.graphs import GraphModel, graph_model, reaching
from robustkit.models.load import load_model
from robustkit.models.message_passing import Convolutions, toggled
from robustkit.registry import attacks, defenses, read_threat
from robustkit.search.external import Batch
from robustkit.search.flips import write_flips

defenses.entries()  # the packs have to be loaded before their modules are asked for
flipping = importlib.import_module("robustkit.attacks._flipping")
meta = importlib.import_module("robustkit.attacks._meta")


@pytest.fixture(scope="module")
def data() -> GraphSet:
    opened = open_dataset("planted(n=60)")
    assert isinstance(opened, GraphSet)
    return opened


@pytest.fixture(scope="module")
def gcn(data: GraphSet) -> GraphModel:
    return graph_model(load_model("gcn", data=data).model)


def threat(text: str) -> NamedThreat:
    found = read_threat(text)
    assert isinstance(found, NamedThreat)
    return found


def brute_force(model: GraphModel, node: int, label: int) -> bool:
    """Whether every single flip of any pair leaves the node its label: one dense GCN a pair."""
    network, n = model.network, model.nodes
    assert isinstance(network, Convolutions)
    base = torch.zeros(n, n, dtype=torch.float64)
    base[tuple(model.edges.t())] = 1
    base = base + base.t()
    u, v = torch.triu_indices(n, n, 1)
    for part in torch.arange(-1, len(u)).split(400):
        a = base.repeat(len(part), 1, 1)
        real = part >= 0
        rows, (i, j) = torch.arange(len(part))[real], (u[part[real]], v[part[real]])
        a[rows, i, j] = a[rows, j, i] = 1 - a[rows, i, j]
        a = a + torch.eye(n, dtype=torch.float64)
        scale = a.sum(2) ** -0.5
        a = scale[:, :, None] * a * scale[:, None]
        hidden = (a @ (model.features.double() @ network.w1.double()) + network.b1).relu()
        logits = (a[:, node : node + 1] @ (hidden @ network.w2.double()) + network.b2)[:, 0]
        if bool((logits.argmax(1) != label).any()):
            return False
    return True


def test_one_flip_is_exact_by_search_and_by_certificate(data: GraphSet, gcn: GraphModel) -> None:
    points = list(range(0, len(data), 4))
    record = robustkit.evaluate(
        gcn, data, "edges@node:1", suite=None, attacks=["exact_flip"], points=points,
        certify="budget-1",
    )  # fmt: skip
    nodes, labels = graph_of(data).test[points].tolist(), data.labels[points].tolist()
    truth = [brute_force(gcn, node, label) for node, label in zip(nodes, labels, strict=True)]
    assert 0 < sum(truth) < len(truth)
    assert [status in ("certified", "robust") for status in record.points.status] == truth
    assert record.certified == record.robust == sum(truth) / len(truth)
    assert not record.flags
    assert all(d in (None, 1.0) for d in record.points.distance)


def test_single_flips_in_closed_form(data: GraphSet, gcn: GraphModel) -> None:
    node = int(graph_of(data).test[0])
    pairs = reaching(gcn.edges, node, gcn.nodes)[::7]
    torch.testing.assert_close(
        gcn.single_flips(node, pairs), GraphModel.single_flips(gcn, node, pairs)
    )


GLOBAL = ["random_flips", "dice", "fga", "pgd_topology(steps=20)", "prbcd(steps=30,block=600)",
          "metattack(steps=5)"]  # fmt: skip


@pytest.mark.parametrize("spec", GLOBAL)
def test_one_set_of_flips_within_the_budget_is_for_all_nodes(
    spec: str, data: GraphSet, gcn: GraphModel
) -> None:
    budget = threat("edges:5%")
    x, y = data.fetch(range(len(data)))
    z = attacks.build(spec).perturb(gcn, Batch(x, y, 3, 3), budget)
    assert bool(budget.contains(z, x).all())
    assert torch.equal(attacks.build(spec).perturb(gcn, Batch(x, y, 3, 3), budget), z)
    assert len(z.flatten(1)[:, 1:].unique(dim=0)) == 1
    slots = decode(z)[2][0]
    used = slots[(slots >= 0).all(1)]
    assert 0 < len(used) <= 0.05 * len(gcn.edges)
    assert bool((used[:, 0] < used[:, 1]).all())
    assert len(used.unique(dim=0)) == len(used)
    again = toggled(toggled(gcn.edges, used, gcn.nodes), used, gcn.nodes)
    assert torch.equal(again, gcn.edges)  # flipped twice is as it was


def test_gradients_beat_chance(data: GraphSet, gcn: GraphModel) -> None:
    right = {}
    for spec in ("random_flips", "prbcd(steps=60,block=1000)"):
        record = robustkit.evaluate(gcn, data, "edges:10%", suite=None, attacks=[spec])
        right[spec.partition("(")[0]] = record.robust
    assert right["prbcd"] < right["random_flips"] - 0.1


@pytest.mark.parametrize("wrong", ["loop", "twice", "many", "node", "half", "order"])
def test_what_no_adversary_may_do_is_not_inside(wrong: str, data: GraphSet) -> None:
    x = data.fetch([0])[0]
    pairs = torch.tensor([[1, 2], [3, 4]])
    told, nodes = threat("edges@node:2"), graph_of(data).test[:1].tolist()
    edges = len(graph_of(data).edges)
    assert float(told.distance(encode(nodes, edges, 64, pairs), x)) == 2
    bad = {
        "loop": torch.tensor([[1, 1]]), "twice": torch.tensor([[1, 2], [1, 2]]),
        "many": torch.tensor([[1, 2], [1, 3], [1, 4]]), "order": torch.tensor([[2, 1]]),
    }.get(wrong, pairs)  # fmt: skip
    z = encode([nodes[0] + 1] if wrong == "node" else nodes, edges, 64, bad)
    if wrong == "half":
        z[..., 2] += 2.0**-22
    assert not bool(told.contains(z, x))


def test_projection_onto_a_budget_is_the_nearest_point() -> None:
    draw = np.random.default_rng(0)
    for _ in range(5):
        given = draw.normal(0.4, 0.8, 10)
        oracle = minimize(
            lambda s, g=given: ((s - g) ** 2).sum(), np.full(10, 0.2), method="SLSQP",
            bounds=[(0, 1)] * 10, constraints={"type": "ineq", "fun": lambda s: 3 - s.sum()},
            options={"ftol": 1e-12, "maxiter": 500},
        )  # fmt: skip
        found = flipping.onto_budget(torch.from_numpy(given), 3)
        np.testing.assert_allclose(found.numpy(), oracle.x, atol=1e-5)


def test_a_file_of_flips_is_judged_set_by_set_and_poisons_alike(
    data: GraphSet, gcn: GraphModel, tmp_path: Path
) -> None:
    sets = {"few": torch.tensor([[0, 1], [2, 9]]), "more": torch.tensor([[0, 4], [1, 9], [5, 7]])}
    file = tmp_path / "sets.npz"
    write_flips(file, sets)
    record = robustkit.evaluate(gcn, data, f"flips:{file}")
    poisoned = load_model("gcn(poison=true)", data=data).model
    x, y = data.fetch(range(len(data)))
    told = threat(f"flips:{file}")
    for (name, pairs), variant in zip(sets.items(), told.variants, strict=True):  # type: ignore[attr-defined]
        z = told.images(x, range(len(x)), variant)  # type: ignore[attr-defined]
        edges = toggled(gcn.edges, pairs, gcn.nodes)
        truth = gcn.infer(edges).argmax(1)[graph_of(data).test] == y
        assert record.corruptions is not None
        assert record.corruptions.kinds[name] == pytest.approx(float(truth.float().mean()))
        anew = defenses.build("gcn").fit(graph_of(data)._replace(edges=edges)).infer(edges)
        torch.testing.assert_close(poisoned(z), anew[graph_of(data).test])
        assert not torch.allclose(poisoned(z), gcn(z), atol=1e-3)


def test_meta_flips_leave_no_node_alone_and_go_on(data: GraphSet) -> None:
    graph = graph_of(data)
    known = meta.Labelled(graph.features, graph.labels, graph.train, 3)
    whole = meta.meta_flips(known, graph.edges, 4, steps=5)
    assert torch.equal(meta.meta_flips(known, graph.edges, 4, steps=5, begun=whole[:2]), whole)
    left = toggled(graph.edges, whole, graph.nodes)
    assert len(left.unique()) == graph.nodes


def test_what_does_not_fit_is_refused(data: GraphSet, tmp_path: Path) -> None:
    for text in ("edges:5", "edges:0%", "edges@node:0", "edges@node:x", "flips:none.npz"):
        with pytest.raises(UsageError, match="expected"):
            read_threat(text)
    x: Tensor = torch.rand(4, 1, 6, 6)
    images = (x, torch.tensor([0, 1, 0, 1]))
    with pytest.raises(UsageError, match="needs nodes of a graph"):
        robustkit.evaluate(lambda z: z.flatten(1)[:, :2], images, "edges:5%")
    with pytest.raises(UsageError, match="has no graph"):
        load_model("gcn", data="bundled")
    with pytest.raises(UsageError, match="slots"):
        write_flips(tmp_path / "f.npz", {"all": torch.triu_indices(60, 60, 1).t()})
        read_threat(f"flips:{tmp_path / 'f.npz'}").check(data.shape, data.labels)  # type: ignore[attr-defined]
