"""Sets of flips for `flips:FILE`: the best of each attack on each model, for all models to face.

    python -m benchmarks.graphs --data cora --data-root DATA --share 5 --out leaderboards/flips

Each (model, attack) is written as it is found; a second call goes on with those that are missing.
Metattack does not look at the model, and its flips are nested: found once, it is cut to the budget.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from robustkit.core.rng import task_key
from robustkit.data.graphs import Pairs, decode, encode, graph_of
from robustkit.data.open import open_dataset
from robustkit.models.graphs import GraphModel, graph_model
from robustkit.models.load import load_model
from robustkit.registry import attacks, read_threat
from robustkit.search.external import Batch
from robustkit.search.flips import open_flips, write_flips

MODELS = ("gcn", "gcn_jaccard", "gcn_svd", "soft_median", "stable")
ADAPTIVE, BLIND = "prbcd", ("random_flips", "dice")


def find(model: GraphModel, nodes: torch.Tensor, spec: str, threat: Any) -> Pairs:
    """Return the flips of one attack on all `nodes` at once."""
    budget = threat.budget(len(model.edges))
    x = encode(nodes.tolist(), len(model.edges), budget)
    batch = Batch(x, model.labels[nodes], task_key(spec), 2)
    slots = decode(attacks.build(spec).perturb(model, batch, threat))[2][0]
    return slots[(slots >= 0).all(1)]


def save(file: Path, sets: dict[str, Pairs]) -> None:
    """Write the sets of flips, in order of their names."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_flips(file, dict(sorted(sets.items())))


def main(arguments: list[str] | None = None) -> None:
    """Find what is missing."""
    parser = argparse.ArgumentParser(prog="benchmarks.graphs", description=__doc__)
    parser.add_argument("--data", default="cora")
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--share", default="5", help="of the edges, in percent")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--meta", type=Path, default=None, help="a file of flips with a metattack")
    parser.add_argument("--out", type=Path, default=Path("leaderboards/flips"))
    asked = parser.parse_args(arguments)
    data = open_dataset(asked.data, root=asked.data_root)
    graph, file = graph_of(data), asked.out / f"{data.name}-{asked.share}.npz"
    threat: Any = read_threat(f"edges:{asked.share}%")
    sets = dict(open_flips(str(file))) if file.is_file() else {}
    if asked.meta is not None:
        sets["metattack"] = open_flips(str(asked.meta))["metattack"][
            : threat.budget(len(graph.edges))
        ]
        save(file, sets)
    todo = [(spec, asked.models[0]) for spec in BLIND] + [(ADAPTIVE, n) for n in asked.models]
    models: dict[str, GraphModel] = {}
    for spec, name in todo:
        label = spec if spec in BLIND else f"{spec}_on_{name}"
        if label in sets:
            continue
        if name not in models:
            models[name] = graph_model(load_model(name, data=data).model)
        began = time.monotonic()
        sets[label] = find(models[name], graph.test, spec, threat)
        print(f"{label}: {len(sets[label])} flips in {time.monotonic() - began:.1f} s", flush=True)
        save(file, sets)


if __name__ == "__main__":
    main()
