"""Complete verification on the nets and points of the literature: verified, broken, undecided.

    python -m benchmarks.complete --nets DIR --net mnist-cnn-a-adv --eps 0.3 --out points.jsonl

DIR holds the nets of the SDP-FO paper (Dathathri et al. 2020) as safetensors and its points as npz;
by default it is $ROBUSTKIT_DATA/verification. Every point is attacked first (suite quick); what
stands is verified, one point after the other on one thread, and a line is written for each. Started
again with the same --out, it goes on with the points that are missing there, and with those that
were undecided after less than --timeout. Seconds are CPU
seconds of the process, so that other work on the machine does not count.
"""

from __future__ import annotations

import copy
import json
import os
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

import robustkit
from robustkit.certify.complete.points import PointVerifier
from robustkit.certify.complete.root import Prover
from robustkit.certify.complete.search import Budget, Options
from robustkit.certify.graph import trace
from robustkit.core.threat import Threat
from robustkit.models.architectures import Normalize, cnn_a

METHODS = {
    "beta-crown": Options(plan="", filtered=1),
    "kfsb": Options(plan=""),
    "cuts": Options(plan="", cuts=64),
    "margin": Options(),
}
_STATISTICS = [[125.3, 123.0, 113.9], [63.0, 62.1, 66.7]]  # of CIFAR-10, as the nets were trained


def load(folder: Path, name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network of the paper, and the points x [200, c, h, w] in [0, 1] and labels."""
    mnist = name.startswith("mnist")
    layers = cnn_a((1, 28, 28) if mnist else (3, 32, 32), 10)[-8:]  # without normalization
    net = nn.Sequential(*layers)  # numbered from 0, as the weights are
    net.load_state_dict(load_file(folder / f"{name.replace('-', '_')}.safetensors"))
    if not mnist:
        mean, std = torch.tensor(_STATISTICS) / 255
        net = nn.Sequential(Normalize(mean, std), net)
    with np.load(folder / ("mnist_sdp.npz" if mnist else "cifar10_sdp.npz")) as held:
        x, y = torch.tensor(held["x"]).float() / 255, torch.tensor(held["y"]).long()
    x = x[:, None] if mnist else x.permute(0, 3, 1, 2).contiguous()
    return net.eval().requires_grad_(False), x, y


def attacked(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> list[str]:
    """Return what an attack leaves of every point: misclassified, broken or robust."""
    with tempfile.TemporaryDirectory() as place:
        record = robustkit.evaluate(
            model, data=(x, y), threat=threat, suite="quick", folder=place, device="cpu",
            progress=False, save_adversarial=False,
        )  # fmt: skip
    return list(record.points.status)


@click.command()
@click.option("--nets", type=click.Path(path_type=Path, exists=True), help="The folder.")
@click.option("--net", default="mnist-cnn-a-adv", show_default=True)
@click.option("--eps", type=float, default=0.3, show_default=True)
@click.option("--n", type=int, default=200, show_default=True)
@click.option("--points", help="Only these, such as 0,8,17.")
@click.option("--timeout", type=float, default=200.0, show_default=True)
@click.option("--method", type=click.Choice(list(METHODS)), default="margin", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("complete.jsonl"))
def main(
    nets: Path | None, net: str, eps: float, n: int, points: str | None, timeout: float,
    method: str, out: Path,
) -> None:  # fmt: skip
    """Verify the first N points; print counts and the mean seconds of those verified."""
    chosen = range(min(n, 200)) if points is None else [int(p) for p in points.split(",")]
    torch.set_num_threads(1)
    folder = nets or Path(os.environ.get("ROBUSTKIT_DATA", "data")) / "verification"
    model, x, y = load(folder, net)
    threat = Threat("linf", eps)
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {line["point"]: line for line in lines}
    with out.open("a") as file:
        if not done:
            for p, status in enumerate(attacked(model, x, y, threat)):
                if status != "robust":
                    done[p] = {"point": p, "outcome": status}
                    file.write(json.dumps(done[p]) + "\n")
        shape = tuple(x.shape[1:])
        wide = replace(threat, eps=threat.limit(x[0].numel()))
        graphs = trace(model, shape), trace(copy.deepcopy(model).double(), shape)
        verifier = PointVerifier(Prover.of(*graphs, wide), model, threat, METHODS[method])
        for p in chosen:
            if p in done and done[p].get("timeout", timeout) >= timeout:
                continue
            budget = Budget(timeout, clock=time.process_time)
            found = verifier.verify(x[p : p + 1], int(y[p]), budget)
            done[p] = {
                "point": p, "outcome": found.outcome, "nodes": found.nodes,
                "seconds": round(time.process_time() - budget.started, 2),
                **({"timeout": timeout} if found.outcome == "undecided" else {}),
            }  # fmt: skip
            file.write(json.dumps(done[p]) + "\n")
            file.flush()
    tell([done[p] for p in chosen])


def tell(lines: list[dict[str, object]]) -> None:
    """Print the counts, and what verified points took."""
    counts = Counter(str(line["outcome"]) for line in lines)
    took = [float(str(line["seconds"])) for line in lines if line["outcome"] == "proved"]
    mean = sum(took) / max(1, len(took))
    told = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    Console().print(f"{told} of {len(lines)}; mean of proved {mean:.2f} CPU seconds")


if __name__ == "__main__":
    main()
