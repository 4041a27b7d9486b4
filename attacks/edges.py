"""Edges that an adversary adds or removes, as threat models: around a node, or for all nodes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from robustkit.core.finite import FiniteThreat, Variant
from robustkit.core.named import NamedThreat
from robustkit.core.text import number
from robustkit.core.types import Images, Scalars
from robustkit.data.graphs import HEAD, decode, encode, flips_of
from robustkit.errors import UsageError
from robustkit.registry import threats
from robustkit.search.flips import open_flips


@dataclass(frozen=True)
class _Flips(NamedThreat):
    """What both threat models of flips share: an input is a node with distinct flipped pairs."""

    suite, searched_by, discrete = "edges", "flips", True

    def check(self, shape: Sequence[int], labels: Any) -> None:
        """Refuse what is no node of a graph."""
        if len(shape) != 3 or tuple(shape[:2]) != (1, 1) or shape[2] <= HEAD or shape[2] % 2:
            raise UsageError(
                f"{self} needs nodes of a graph, such as --data cora or planted, got inputs "
                f"{list(shape)}."
            )

    @property
    def instead(self) -> str:
        """Flips."""
        return (
            "flips edges of a graph: leave out --attack and --suite, or name prbcd, pgd_topology, "
            "fga, dice, random_flips or --suite edges."
        )

    def _counted(self, z: Images, x: Images) -> tuple[Tensor, Tensor]:
        """Return the number of flips [b], infinite where `z` is no input of its node, and m."""
        node, edges, _ = decode(x.cpu())
        claimed, same, slots = decode(z.cpu())
        given = z.cpu().flatten(1)[:, HEAD:]
        told = flips_of(slots)
        count = torch.tensor([float(len(one)) for one in told], dtype=torch.float64)
        used = (slots >= 0).all(2)
        # Exactly one slot a pair, u < v, and nothing in the others: no loop, no half, no double.
        ordered = (slots[..., 0] < slots[..., 1]) | ~used
        empty = (given.view(len(z), -1, 2) == 0).all(2)
        fair = ordered.all(1) & (used | empty).all(1) & (used.sum(1) == count)
        fair &= (claimed == node) & (same == edges) & (node >= 0)
        count = count.masked_fill(~fair, torch.inf)
        unmoved = (z.cpu() == x.cpu()).flatten(1).all(1)
        return count.masked_fill(unmoved, 0.0), edges


@threats.register("edges@node", cites="arXiv:1805.07984", examples=("3", "1"))
@dataclass(frozen=True)
class EdgesAtNode(_Flips):
    """At most so many flipped pairs, wherever they lie, chosen for each node by itself.

    Zügner et al. 2018. `edges@node:3`: for every node another graph may be shown that differs in
    three pairs from the clean one; added and removed edges count alike, self-loops are none. The
    distance is the number of flips, counted exactly. Evasion: the model stays as it was trained,
    unless the defense says poison=true.
    """

    proved_by = ("budget-1",)

    @classmethod
    def read(cls, text: str) -> Self:
        """Read what follows `edges@node:`."""
        if not re.fullmatch(r"[1-9]\d{0,3}", text):
            raise UsageError(f"expected edges@node:3, a number of flips, got edges@node:{text}")
        return cls(f"edges@node:{text}", float(text))  # type: ignore[arg-type]

    def distance(self, z: Images, x: Images, points: Sequence[int] | None = None) -> Scalars:
        """How many pairs are flipped; infinite for what is no input of the node."""
        count: Scalars = self._counted(z, x)[0].to(z.device)
        return count

    def budget(self, edges: int) -> int:
        """How many flips there may be in a graph of so many edges."""
        return int(self.eps)


@threats.register("edges", cites="arXiv:2110.14038", examples=("5%", "0.5%"))
@dataclass(frozen=True)
class Edges(_Flips):
    """One set of flipped pairs for all nodes, at most so large a share of the edges: `edges:5%`.

    One graph must fool all nodes. The attack chooses one set in view of all points of the run; a
    node is robust if it is classified rightly on both graphs. The distance is the share in
    percent, counted exactly. An attack of its own for each node is `edges@node`; a set that is
    stored, `flips:FILE`.
    """

    shared = True

    @classmethod
    def read(cls, text: str) -> Self:
        """Read what follows `edges:`."""
        found = re.fullmatch(r"([\d.]+)\s*%", text)
        share = number(found[1]) if found and re.fullmatch(r"\d+(\.\d+)?", found[1]) else 0.0
        if not 0 < share <= 100:
            raise UsageError(f"expected edges:5%, a share of the edges, got edges:{text}")
        return cls(f"edges:{share:.6g}%", share)  # type: ignore[arg-type]

    def distance(self, z: Images, x: Images, points: Sequence[int] | None = None) -> Scalars:
        """Flips in percent of the clean edges; infinite for what is no input of the node."""
        count, edges = self._counted(z, x)
        share: Scalars = (100 * count / edges).to(z.device)
        return share

    def budget(self, edges: int) -> int:
        """How many flips there may be in a graph of so many edges."""
        most = int(self.eps * edges / 100)
        return most + 1 if 100 * (most + 1) / edges <= self.eps else most


@threats.register("flips", cites="")
@dataclass(frozen=True)
class StoredFlips(FiniteThreat):
    """Sets of flipped pairs that a file holds, each shown to all nodes: `flips:FILE.npz`.

    What `write_flips` of `robustkit.search.flips` wrote: sets by name. The record has the accuracy
    over the nodes under each: of one graph that all nodes see. The lowest (`worst`) is the robust
    accuracy; `robust` asks for a set of its own for each node, which no adversary has. With
    poison=true in the defense, it is trained anew on each of the graphs.
    """

    discrete = True

    @classmethod
    def read(cls, text: str) -> Self:
        """Read what follows `flips:`."""
        sets = open_flips(text)
        return cls(f"flips:{text}", float(max(map(len, sets.values()))))  # type: ignore[arg-type]

    @property
    def _file(self) -> str:
        return self.norm.partition(":")[2]

    def digest(self) -> str:
        """Of the file."""
        return hashlib.sha256(Path(self._file).read_bytes()).hexdigest()

    @property
    def variants(self) -> Sequence[Variant]:
        """The sets, with how many pairs each flips."""
        return [Variant(name, len(pairs)) for name, pairs in open_flips(self._file).items()]

    def check(self, shape: Sequence[int], labels: Any) -> None:
        """Refuse what is no node of a graph, and inputs with too few slots."""
        EdgesAtNode.read("1").check(shape, labels)
        encode([0], 1, (shape[2] - HEAD) // 2, max(open_flips(self._file).values(), key=len))

    def images(self, x: Images, points: Sequence[int], variant: Variant) -> Images:
        """Put the flips into the slots."""
        node, _, slots = decode(x.cpu())
        pairs = open_flips(self._file)[variant.kind]
        found = encode(node.tolist(), 0, slots.shape[1], pairs)
        found[..., 1] = x.cpu()[..., 1]
        return found
