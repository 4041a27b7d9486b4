"""Graphs as data and networks on them: what is refused, gradients by pairs, permuted nodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from robustkit.data.graphs import (
    GraphSet,
    decode,
    edge_list,
    encode,
    graph_of,
    largest_component,
)
from robustkit.data.open import open_dataset
from robustkit.errors import UsageError
from robustkit.models.graphs import GraphModel, graph_model, pair_gradient
from robustkit.models.load import load_model
from robustkit.models.message_passing import Propagation, Tape
from robustkit.registry import defenses

RING = np.array([[0, 1], [1, 2], [2, 3], [0, 3]])


@pytest.mark.parametrize(
    ("edges", "told"),
    [
        (np.r_[RING, [[2, 2]]], "self-loops, first of node 2"),
        (np.r_[RING, [[1, 0]]], "undirected"),
        (np.array([[0, 1], [2, 1], [2, 3]]), "undirected"),
        (np.c_[RING, [1, 1, 0.5, 1]], "without weights, got 0.5 at edge 2"),
        (RING[:1], r"nodes 2, 3 of 4 have no edge"),
        (RING + 1, "nodes from 0 to 3"),
    ],
)
def test_what_is_no_simple_graph_is_refused(edges: np.ndarray, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        edge_list("mine", edges, 4)


def test_a_symmetric_list_and_unit_weights_are_taken_as_they_are_meant() -> None:
    both = np.r_[RING, RING[:, ::-1]]
    assert torch.equal(edge_list("mine", both, 4), edge_list("mine", RING, 4))
    weighted = np.c_[RING, np.ones(4)].astype(int)
    assert torch.equal(edge_list("mine", weighted, 4), edge_list("mine", RING, 4))
    kept, edges = largest_component(np.array([[0, 5], [5, 3], [1, 2]]), 7)
    assert kept.tolist() == [0, 3, 5]
    assert edges.tolist() == [[0, 2], [2, 1]]


def test_codes_are_exact_and_what_is_none_flips_nothing() -> None:
    pairs = torch.tensor([[0, 2**20 - 3], [7, 123_456]])
    x = encode([2**20 - 2, 0], 5069, 3, pairs)
    nodes, edges, slots = decode(x)
    assert nodes.tolist() == [2**20 - 2, 0]
    assert edges.tolist() == [5069, 5069]
    assert slots[0].tolist() == [*pairs.tolist(), [-1, -1]]
    assert bool((decode(x + 1e-7)[2] == -1).all())


def test_splits_are_stratified_and_follow_their_seed() -> None:
    graphs = [graph_of(open_dataset(f"planted(seed={seed})")) for seed in (0, 0, 1)]
    assert torch.equal(graphs[0].test, graphs[1].test)
    assert not torch.equal(graphs[0].test, graphs[2].test)
    first = graphs[0]
    for part, count in ((first.train, 5), (first.val, 5), (first.test, 40)):
        assert torch.bincount(first.labels[part]).tolist() == [count] * 3
    assert len(torch.cat(first[3:]).unique()) == first.nodes


def test_the_gradient_by_pairs_is_that_of_finite_differences() -> None:
    draw, n = torch.Generator().manual_seed(0), 12
    every = torch.triu_indices(n, n, 1).t()
    there = torch.rand(len(every), generator=draw) < 0.3
    hidden, weight = (torch.randn(n, 5, generator=draw, dtype=torch.float64) for _ in range(2))

    def value(weights: torch.Tensor, tape: Tape | None = None) -> torch.Tensor:
        along = Propagation(every, weights, n, tape=tape)
        return (along(along(hidden).tanh()) * weight).sum()

    weights = there.double()
    tape = Tape()
    value(weights, tape).backward()
    for place in range(0, len(every), 5):  # edges and others
        step = torch.zeros_like(weights).index_fill(0, torch.tensor([place]), 1e-6)
        change = float(value(weights + step).detach() - value(weights - step).detach()) / 2e-6
        assert float(tape.at(every[place : place + 1])) == pytest.approx(change, rel=1e-4, abs=1e-6)
        u, v = every[place].tolist()
        assert float(tape.dense()[u, v]) == pytest.approx(change, rel=1e-4, abs=1e-6)


@pytest.fixture(scope="module")
def data() -> GraphSet:
    opened = open_dataset("planted(n=60)")
    assert isinstance(opened, GraphSet)
    return opened


def test_numbers_of_nodes_do_not_matter(data: GraphSet) -> None:
    """With the same first weights a permuted graph gives permuted logits."""
    graph = graph_of(data)
    order = torch.randperm(graph.nodes, generator=torch.Generator().manual_seed(1))
    place = order.argsort()
    edges = place[graph.edges].sort(1).values
    turned = graph._replace(
        features=graph.features[order], labels=graph.labels[order],
        edges=edges[(edges[:, 0] * graph.nodes + edges[:, 1]).argsort()],
        **{part: place[getattr(graph, part)].sort().values for part in ("train", "val", "test")},
    )  # fmt: skip
    build = defenses.build("gcn(dropout=0.0)")
    first, second = build.fit(graph), build.fit(turned)
    a, b = first.infer(first.edges)[order], second.infer(second.edges)
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "name",
    [
        "gcn",
        "gcn_jaccard",
        "gcn_svd(rank=20)",
        "soft_median",
        "stable(width=32,epochs=100,words=0.0)",
    ],
)
def test_every_defense_learns_and_its_gradient_reaches_the_edges(name: str, data: GraphSet) -> None:
    model = graph_model(load_model(name, data=data).model)
    x, y = data.fetch(range(len(data)))
    assert float((model(x).argmax(1) == y).float().mean()) > 0.5
    one = torch.tensor([[0, 1], [4, 7]])
    z = encode(graph_of(data).test.tolist(), len(model.edges), 64, one)
    assert torch.equal(model(z)[3:5], model(z[3:5]))
    assert not torch.equal(model(z), model(x))
    tape = pair_gradient(model, lambda logits: logits[:, 0].sum(), one, torch.ones(2))
    slope = tape.at(model.edges)
    assert bool(slope.isfinite().all())
    assert bool(slope.any())


def test_the_certificate_of_cleaned_graphs_agrees_with_trying_them(data: GraphSet) -> None:
    model = graph_model(load_model("gcn_jaccard(least=0.05)", data=data).model)
    assert isinstance(model, GraphModel)
    for node in graph_of(data).test[:3].tolist():
        pairs = torch.triu_indices(60, 60, 1).t()
        survives = model.survives()
        assert survives is not None
        dropped = pairs[~survives[pairs[:, 0], pairs[:, 1]]][:40]
        clean = model.infer(model.edges)[node]
        torch.testing.assert_close(
            GraphModel.single_flips(model, node, dropped), clean.expand(len(dropped), -1)
        )


def test_cora_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cora\.npz, got no such file"):
        open_dataset("cora", root=tmp_path)
