"""Proofs side by side with the search that found them: seconds of both, their ratio, and sizes.

    python -m benchmarks.proofs --nets DIR --net mnist-cnn-a-adv --eps 0.3 --n 20

DIR is that of benchmarks.complete. Without it the bundled model ibp is verified on the bundled
images. Every point that is proved has its proof stored and checked in the same run, on one thread;
seconds are CPU seconds of the process. A ratio is that of one point.
"""

from __future__ import annotations

import io
import statistics
import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.complete import load
from robustkit.certify.complete.plain import plain
from robustkit.certify.complete.record import Recorder
from robustkit.certify.complete.search import Budget
from robustkit.certify.complete.verifier import build_verifier
from robustkit.core.threat import Threat
from robustkit.data.open import open_dataset
from robustkit.models.load import load_model
from robustkit.verify.proofs.checker import Refused, check
from robustkit.verify.proofs.domain import Ball
from robustkit.verify.proofs.network import build


def _bundled(n: int) -> tuple[nn.Module, Tensor, Tensor]:
    data = open_dataset("bundled")
    model = load_model("ibp", data=data).model
    assert isinstance(model, nn.Module)
    return model.eval().requires_grad_(False), *data.fetch(list(range(n)))


@click.command()
@click.option("--nets", type=click.Path(path_type=Path, exists=True), help="The folder.")
@click.option("--net", default="mnist-cnn-a-adv", show_default=True)
@click.option("--eps", type=float, default=0.1, show_default=True)
@click.option("--n", type=int, default=20, show_default=True)
@click.option("--timeout", type=float, default=30.0, show_default=True, help="Of a point.")
def main(nets: Path | None, net: str, eps: float, n: int, timeout: float) -> None:
    """Prove the first N points and check the proofs."""
    torch.set_num_threads(1)
    model, x, y = _bundled(n) if nets is None else load(nets, net)
    threat, shape, console = Threat("linf", eps), tuple(x.shape[1:]), Console()
    wide = replace(threat, eps=threat.limit(x[0].numel()))
    verifier = build_verifier(model, shape, threat, wide)
    if verifier is None:
        raise click.UsageError("branch and bound does not know this network")
    network = build(*plain(verifier.prover.exact.graph))
    proving, checking, sizes, refused = [], [], [], 0
    for p in (p for p in range(min(n, len(x))) if int(model(x[p : p + 1]).argmax()) == int(y[p])):
        record, began = Recorder(network.width), time.process_time()
        budget = Budget(timeout, clock=time.process_time)
        found = verifier.verify(x[p : p + 1], int(y[p]), budget, record)
        took = time.process_time() - began
        if found.outcome != "proved":
            continue
        arrays = record.result(network.nodes[-1].shape[0], int(y[p]))
        began = time.process_time()
        ball = Ball(x[p : p + 1].double(), wide.norm, wide.eps, wide.lower, wide.upper)
        try:
            with torch.no_grad():
                check(network, ball, int(y[p]), 0.0, arrays or {})
        except (Refused, KeyError):
            refused += 1
            continue
        checking.append(time.process_time() - began)
        proving.append(took)
        content = io.BytesIO()
        np.savez_compressed(content, **(arrays or {}))  # type: ignore[arg-type]
        sizes.append(len(content.getvalue()) / 1000)
        told = f"{p}: {found.nodes} subdomains, proved in {took:.2f} s, checked in"
        console.print(f"{told} {checking[-1]:.2f} s, {sizes[-1]:.0f} kB")
    if not proving:
        console.print("no point was proved")
        return
    ratios = [c / t for c, t in zip(checking, proving, strict=True)]
    console.print(
        f"{len(proving)} proofs accepted, {refused} not stored; proving {sum(proving):.1f} s, "
        f"checking {sum(checking):.1f} s, ratio {sum(checking) / sum(proving):.3f} (median of a "
        f"point {statistics.median(ratios):.3f}); {statistics.median(sizes):.1f} kB a proof "
        f"(largest {max(sizes):.0f} kB)"
    )


if __name__ == "__main__":
    main()
