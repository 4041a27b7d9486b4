"""What the gate promises, measured: on 1,000 simulated pairs of models, and on real ones.

    python -m benchmarks.gate                                # simulation, and a weakened checkpoint
    python -m benchmarks.gate --retrained model.safetensors  # and pgd_at of another training seed

Simulated pairs differ on a share of 10,000 points: half of the pairs are equally robust, half have
lost 3 points in 100. A gate stops at the ends of the parts that `robustkit check` evaluates. The
fixed-size test beside it is the paired score test with the same tolerance and error rates, on as
many points as it needs to pass an equal model and to catch the drop with probability 0.95 each,
whatever the pair: on which share of the points two models differ is not known beforehand, so the
size is that of the hardest kind of pair. The last column has the ratio to a test that is told the
share. Both get the finite-population correction where the claim is about the points.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from robustkit import gate
from robustkit.core.stats.paired import mcnemar
from robustkit.core.stats.power import score_points, simulate
from robustkit.core.threat import Threat
from robustkit.data.open import open_dataset
from robustkit.evaluation import budget
from robustkit.evaluation.evaluate import evaluate
from robustkit.models.load import load_model

_TOLERANCE, _DROP, _CONFIDENCE = 0.01, 0.03, 0.95
_NOISE = (0.005, 0.01, 0.02, 0.04)  # share of points on which equal models differ


@dataclass
class Row:
    """Some simulated pairs that are alike.

    points: those that the gate used, the median; told: those of a fixed-size test that knows the
    discordance; ratios: the gate's points by those of the fixed-size test that does not.
    """

    drop: float
    discordance: float
    pairs: int
    failed: float
    passed: float
    points: float
    fixed: int
    told: int
    ratios: list[float]

    @property
    def ratio(self) -> float:
        return float(np.median(self.ratios))


def simulated(pairs: int, total: int, seed: int, *, population: bool) -> list[Row]:
    """Simulate the gate; an eighth of the pairs for each drop and noise."""
    ends = np.array(list(accumulate(len(part) for part in budget.parts(range(total), 0))))
    fixed = max(fixed_size(noise, total, population=population) for noise in _NOISE)
    rows = []
    for number, (drop, noise) in enumerate((d, q) for d in (0.0, _DROP) for q in _NOISE):
        share = drop + noise
        runs = simulate(
            drop, _TOLERANCE, share, total, _CONFIDENCE,
            runs=pairs // 8, seed=seed + number, population=population,
        )  # fmt: skip
        points = ends[np.searchsorted(ends, runs.points)]
        rows.append(
            Row(
                drop=drop,
                discordance=share,
                pairs=len(points),
                failed=float(runs.failed.mean()),
                passed=float(runs.passed.mean()),
                points=float(np.median(points)),
                fixed=fixed,
                told=fixed_size(noise, total, population=population),
                ratios=(points / fixed).tolist(),
            )
        )
    return rows


def edge(pairs: int, total: int, seed: int, *, population: bool) -> float:
    """Return the share of false alarms where they are most likely: a drop at the tolerance."""
    runs = simulate(
        _TOLERANCE, _TOLERANCE, _TOLERANCE + 0.02, total, _CONFIDENCE,
        runs=pairs, seed=seed + 100, population=population,
    )  # fmt: skip
    return float(runs.failed.mean())


def fixed_size(noise: float, total: int, *, population: bool) -> int:
    """Points of the test that looks once: enough for both of its purposes."""
    alpha = 1 - _CONFIDENCE
    both = (
        score_points(0.0, _TOLERANCE, noise, _CONFIDENCE, alpha),
        score_points(_DROP, _TOLERANCE, _DROP + noise, _CONFIDENCE, alpha),
    )
    most = max(points or total for points in both)
    return most if population else round(most / (1 + (most - 1) / total))


def weakened(model: nn.Module, noise: float, seed: int) -> nn.Module:
    """Add normal noise to every weight, `noise` times the standard deviation of its tensor."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * parameter.std(correction=0) * draw)
    return model


def real(retrained: Path | None, noise: float) -> list[dict[str, Any]]:
    """Gate bundled models against the bundled pgd_at on 1,000 bundled images."""
    data = open_dataset("bundled")
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        clock = time.perf_counter()
        evaluate(
            load_model("pgd_at", data=data).model, name="pgd_at", data=data,
            threat=Threat.parse("linf:0.1"), suite="quick", folder=room / "baseline",
        )  # fmt: skip
        whole = time.perf_counter() - clock
        (baseline,) = gate.load_baselines(room / "baseline")
        candidates = [
            ("the same", load_model("pgd_at", data=data).model),
            ("weakened", weakened(load_model("pgd_at", data=data).model, noise, 0)),
            ("undefended", load_model("undefended", data=data).model),
        ]
        if retrained is not None:
            again = load_model("pgd_at", data=data, weights=retrained).model
            candidates.append(("retrained", again))
        rows = []
        for name, model in candidates:
            clock = time.perf_counter()
            verdict = gate.check(gate.Candidate(name, model), baseline, data, room / name)
            found = next(f for f in verdict.findings if f.metric == "robust")
            rows.append(
                {
                    "candidate": name,
                    "answer": verdict.answer,
                    "points": verdict.n,
                    "drop": found.drop,
                    "low": found.low,
                    "high": found.high,
                    "lost": found.lost,
                    "gained": found.gained,
                    "p": mcnemar(found.lost, found.gained),
                    "seconds": time.perf_counter() - clock,
                    "baseline_seconds": whole,
                }
            )
    return rows


def _simulation_table(rows: list[Row], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    heads = ("true drop", "models differ on", "pairs", "failed", "passed", "median points",
             "of fixed size", "of one told")  # fmt: skip
    for head in heads:
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(
            *(f"{row.drop:.3f}", f"{row.discordance:.3f}", str(row.pairs)),
            *(f"{row.failed:.3f}", f"{row.passed:.3f}", f"{row.points:,.0f}"),
            *(f"{row.ratio:.2f}", f"{row.points / row.told:.2f}"),
        )
    return table


def summary(rows: list[Row]) -> dict[str, float]:
    """Return the three figures that the gate is held to, and the medians by group."""
    equal, dropped = ([r for r in rows if (r.drop == 0) == same] for same in (True, False))
    ratios = [ratio for row in rows for ratio in row.ratios]
    return {
        "fixed_size": rows[0].fixed,
        "false_alarms": float(np.mean([row.failed for row in equal])),
        "caught": float(np.mean([row.failed for row in dropped])),
        "median_points": float(np.median([x * rows[0].fixed for x in ratios])),
        "median_ratio": float(np.median(ratios)),
        "median_ratio_equal": float(np.median([x for row in equal for x in row.ratios])),
        "median_ratio_dropped": float(np.median([x for row in dropped for x in row.ratios])),
    }


def _fact(name: str, value: float) -> str:
    words = name.replace("_", " ")
    return f"{words} {value:,.0f}" if value > 1 else f"{words} {value:.3f}"


def _real_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="bundled pgd_at as the baseline, quick, tolerance 0.01",
                  title_justify="left")  # fmt: skip
    for head in ("candidate", "verdict", "points", "drop", "lost / gained", "seconds"):
        table.add_column(head, justify="left" if head in ("candidate", "verdict") else "right")
    for row in rows:
        bounds = f"{row['drop']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
        table.add_row(
            *(row["candidate"], row["answer"], str(row["points"]), bounds),
            *(f"{row['lost']} / {row['gained']}", f"{row['seconds']:.1f}"),
        )
    return table


@click.command()
@click.option("--pairs", default=1000, show_default=True)
@click.option("--total", default=10_000, show_default=True, help="Points of the baseline.")
@click.option("--seed", default=0, show_default=True)
@click.option("--real/--no-real", "with_models", default=True, show_default=True)
@click.option("--retrained", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Weights of pgd_at on Fashion-MNIST from another seed.")  # fmt: skip
@click.option("--noise", default=0.15, show_default=True, help="Of the weakened checkpoint.")
@click.option("--threads", type=int, default=None)
@click.option("--json", "as_json", is_flag=True)
def main(
    pairs: int,
    total: int,
    seed: int,
    with_models: bool,
    retrained: Path | None,
    noise: float,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure false alarms, regressions caught, and points used; then gate real models."""
    if threads:
        torch.set_num_threads(threads)
    console = Console(stderr=as_json, width=max(110, Console().width))
    found: dict[str, Any] = {}
    for claim in ("points", "population"):
        rows = simulated(pairs, total, seed, population=claim == "population")
        found[claim] = {"rows": [asdict(row) for row in rows], **summary(rows)}
        console.print(_simulation_table(rows, f"claim about the {claim}, tolerance {_TOLERANCE}"))
        told = ", ".join(_fact(name, value) for name, value in summary(rows).items())
        console.print(told, highlight=False, soft_wrap=True)
        alarms = edge(pairs, total, seed, population=claim == "population")
        found[claim]["false_alarms_at_the_tolerance"] = alarms
        console.print(f"failed at a true drop of exactly {_TOLERANCE}: {alarms:.3f}")
    if with_models:
        found["real"] = real(retrained, noise)
        console.print(_real_table(found["real"]))
    if as_json:
        click.echo(json.dumps(found))


if __name__ == "__main__":
    main()
