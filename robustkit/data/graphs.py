"""Graphs whose nodes are classified: a point is a node, and flipped pairs of nodes are its input.

An input is [1, 1, 2 + 2 B] in [0, 1]: the node, the number of edges of the clean graph, and B slots
of flipped pairs (u, v), u < v, each number stored as (number + 1) / 2^20, which float32 holds
exactly; 0: the slot is unused. The graph itself is in the data set and in the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from robustkit.core.rng import task_key
from robustkit.core.types import Images
from robustkit.data import npz
from robustkit.data.dataset import Dataset, ImageSet
from robustkit.errors import UsageError, some
from robustkit.registry import datasets

SCALE = 2**20
HEAD = 2  # numbers ahead of the slots
Pairs = Int[Tensor, "p 2"]


class Graph(NamedTuple):
    """An undirected graph without weights, loops and isolated nodes.

    Attributes:
        features: binary words of the nodes, uint8 [n, d].
        labels: int64 [n].
        edges: pairs u < v, ascending, int64 [m, 2].
        train, val, test: nodes, ascending.
    """

    features: Tensor
    labels: Tensor
    edges: Pairs
    train: Tensor
    val: Tensor
    test: Tensor

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class GraphSet(ImageSet):
    """The nodes of one split of a graph as a data set; the defenses for graphs read `graph`."""

    graph: Graph | None = None


def graph_of(data: Dataset) -> Graph:
    """Return the graph of a data set.

    Raises:
        UsageError: for data without one.
    """
    found = getattr(data, "graph", None)
    if not isinstance(found, Graph):
        raise UsageError(
            f"{data.name} has no graph: defenses for graphs need one, such as --data cora or "
            "--data planted."
        )
    return found


def edge_list(name: str, edges: NDArray[Any], nodes: int) -> Pairs:
    """Return the edges of a simple undirected graph as pairs u < v, ascending.

    Both directions of every edge, as in a symmetric list, count once.

    Args:
        edges: [m, 2], or [m, 3] with weights.

    Raises:
        UsageError: for weights, self-loops, directed edges and nodes without an edge, with the
            cure.
    """
    found = np.asarray(edges)
    if found.ndim == 2 and found.shape[1] == 3:
        if (found[:, 2] != 1).any():
            row = int(np.flatnonzero(found[:, 2] != 1)[0])
            raise UsageError(
                f"{name}: expected edges without weights, got {found[row, 2]:g} at edge {row}. "
                "Decide which edges there are: edges[edges[:, 2] >= threshold][:, :2]."
            )
        found = found[:, :2]
    if found.ndim != 2 or found.shape[1] != 2 or not np.issubdtype(found.dtype, np.integer):
        raise UsageError(
            f"{name}: expected edges as integers [m, 2], got {found.dtype} {list(found.shape)}."
        )
    found = found.astype(np.int64)
    if len(found) and not (found.min() >= 0 and found.max() < nodes):
        raise UsageError(
            f"{name}: expected nodes from 0 to {nodes - 1}, got {found.min()} to {found.max()}."
        )
    if (loops := found[:, 0] == found[:, 1]).any():
        raise UsageError(
            f"{name}: {int(loops.sum())} edges are self-loops, first of node "
            f"{found[loops][0, 0]}: leave them out, edges[edges[:, 0] != edges[:, 1]]. Models add "
            "their own."
        )
    there = {(int(u), int(v)) for u, v in found}
    alone = [(u, v) for u, v in sorted(there) if (v, u) not in there]
    if alone and (len(alone) < len(there) or any(u > v for u, v in alone)):
        u, v = next(((u, v) for u, v in alone if u > v), alone[0])
        raise UsageError(
            f"{name}: expected undirected edges, each as u < v or in both directions, got {u} to "
            f"{v} in one. To drop directions: np.sort(edges, axis=1)."
        )
    pairs = np.unique(np.sort(found, 1), axis=0)
    isolated = np.setdiff1d(np.arange(nodes), pairs)
    if len(isolated):
        raise UsageError(
            f"{name}: nodes {some(isolated.tolist())} of {nodes} have no edge: leave "
            "them out and renumber the others, robustkit.data.graphs.largest_component does both."
        )
    return torch.from_numpy(pairs)


def largest_component(
    edges: NDArray[Any], nodes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the nodes of the largest component, and its edges in their numbering."""
    ends = np.asarray(edges, dtype=np.int64)
    matrix = sparse.coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), (nodes, nodes))
    _, number = sparse.csgraph.connected_components(matrix, directed=False)
    kept = np.flatnonzero(number == np.bincount(number).argmax())
    place = np.full(nodes, -1)
    place[kept] = np.arange(len(kept))
    inside = place[ends]
    return kept, inside[(inside >= 0).all(1)]


def split_of(labels: NDArray[Any], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return nodes to train, to validate and to test: 10, 10 and 80% of every class."""
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    draw = np.random.default_rng(seed)
    for label in np.unique(labels):
        order = draw.permutation(np.flatnonzero(labels == label))
        tenth = max(1, round(len(order) / 10))
        for part, chosen in zip(parts, np.split(order, [tenth, 2 * tenth]), strict=True):
            part += chosen.tolist()
    train, val, test = (torch.tensor(sorted(part), dtype=torch.int64) for part in parts)
    return train, val, test


def encode(nodes: Sequence[int], edges: int, slots: int, flips: Pairs | None = None) -> Images:
    """Return the inputs [b, 1, 1, 2 + 2 · slots] of nodes, under flips that are the same for all.

    Raises:
        UsageError: for more flips than slots.
    """
    pairs = torch.zeros(0, 2, dtype=torch.int64) if flips is None else flips
    if len(pairs) > slots:
        raise UsageError(
            f"expected at most {slots} flips, the slots of the data, got {len(pairs)}: open the "
            f"data with more, such as cora(slots={len(pairs)})."
        )
    x = torch.zeros(len(nodes), HEAD + 2 * slots, dtype=torch.float64)
    x[:, 0] = torch.tensor(list(nodes), dtype=torch.float64) + 1
    x[:, 1] = edges + 1
    x[:, HEAD : HEAD + 2 * len(pairs)] = pairs.flatten().double() + 1
    return (x / SCALE).float()[:, None, None]


def decode(x: Images) -> tuple[Tensor, Tensor, Tensor]:
    """Return nodes [b], edges of the clean graph [b], and the slots [b, B, 2], −1: unused.

    What is no code, of inputs that nobody has made by `encode`, becomes −1 too.
    """
    numbers = x.flatten(1).double() * SCALE
    whole = torch.where((numbers == numbers.round()) & (numbers >= 1), numbers, 0).long() - 1
    return whole[:, 0], whole[:, 1], whole[:, HEAD:].reshape(len(x), -1, 2)


def flips_of(slots: Tensor) -> list[tuple[tuple[int, int], ...]]:
    """Return the pairs u < v of each input, ascending, of slots [b, B, 2] that hold any."""
    used = ((slots >= 0).all(2) & (slots[..., 0] != slots[..., 1])).numpy()
    listed = slots.sort(2).values.numpy()
    return [
        tuple(sorted({(int(u), int(v)) for u, v in row[mask]})) if mask.any() else ()
        for row, mask in zip(listed, used, strict=True)
    ]


def node_set(name: str, graph: Graph, names: Sequence[str], slots: int, split: str) -> GraphSet:
    """Return the nodes to train on, or to test, as a data set."""
    nodes = (graph.train if split == "train" else graph.test).numpy()
    labels = graph.labels.numpy()

    def read(indices: NDArray[np.int64]) -> NDArray[np.float32]:
        return encode(nodes[indices].tolist(), len(graph.edges), slots).numpy()

    return GraphSet(
        name=name, family=name.partition("(")[0], shape=(1, 1, HEAD + 2 * slots),
        classes=len(names), labels=labels[nodes], read=read, class_names=tuple(names), graph=graph,
        note="nodes of one graph depend on each other: intervals over nodes say nothing about "
        "other graphs or splits",
    )  # fmt: skip


@datasets.register("cora", threat="edges@node:3", cites="McCallum et al. 2000", license="")
@dataclass(frozen=True)
class Cora:
    """Papers that cite each other: 2,485 nodes, 5,069 edges, 1,433 words, seven fields.

    The largest component of `graphs/cora.npz` in the data root (keys `features`, uint8 bits
    [2708, 180] of 1,433 words; `labels`; `classes`; `edges`). 10% of every class to train, 10% to
    validate, 80% to test.

    Attributes:
        seed: of the split.
        slots: most flips of an input; 1,013 are 20% of the edges.
    """

    seed: int = 0
    slots: int = 1024

    def open(self, root: Path, split: str, download: bool) -> GraphSet:
        """Read the file; nothing is downloaded.

        Raises:
            UsageError: where it is missing or no such graph.
        """
        path = root / "graphs" / "cora.npz"
        if not path.is_file():
            raise UsageError(
                f"cora: expected {path}, got no such file: name the folder that holds "
                "graphs/cora.npz by --data-root."
            )
        found = {key: npz.array(path, key) for key in ("features", "labels", "classes", "edges")}
        words = np.unpackbits(found["features"], axis=1)[:, :1433]
        kept, edges = largest_component(found["edges"], len(words))
        labels = found["labels"][kept].astype(np.int64)
        graph = Graph(
            torch.from_numpy(np.ascontiguousarray(words[kept])), torch.from_numpy(labels),
            edge_list("cora", edges, len(kept)), *split_of(labels, self.seed),
        )  # fmt: skip
        name = f"cora(seed={self.seed})" if self.seed else "cora"
        return node_set(name, graph, list(map(str, found["classes"])), self.slots, split)


@datasets.register("planted", threat="edges@node:1", cites="", license="")
@dataclass(frozen=True)
class Planted:
    """A random graph of a few classes: edges within a class are likelier, words of a class too.

    A planted partition with five edges a node on average, four in five of them within the class,
    and 60 words, of which a third belong to a class. Drawn, not read: for a first try and tests.

    Attributes:
        n: nodes.
        seed: of the draw and of the split.
        slots: most flips of an input.
    """

    n: int = 150
    seed: int = 0
    slots: int = 64

    def open(self, root: Path, split: str, download: bool) -> GraphSet:
        """Draw the graph; no file is read."""
        draw = np.random.default_rng(task_key(f"planted/{self.n}/{self.seed}"))
        labels = np.arange(self.n) % 3
        same = labels[:, None] == labels
        chance = np.where(same, 4 * 3 / self.n, 1 * 1.5 / self.n)
        there = np.triu(draw.uniform(size=chance.shape) < chance, 1)
        for node in np.flatnonzero(~(there | there.T).any(1)):  # one of its own class
            other = draw.choice(np.flatnonzero(same[node] & (np.arange(self.n) != node)))
            there[min(node, other), max(node, other)] = True
        words = np.arange(60) // 20 == labels[:, None]
        features = (draw.uniform(size=words.shape) < np.where(words, 0.16, 0.06)).astype(np.uint8)
        graph = Graph(
            torch.from_numpy(features), torch.from_numpy(labels),
            edge_list("planted", np.argwhere(there), self.n), *split_of(labels, self.seed),
        )  # fmt: skip
        return node_set(f"planted(n={self.n},seed={self.seed})", graph, "abc", self.slots, split)
