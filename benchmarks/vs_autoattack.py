"""Suites beside the reference AutoAttack: same models, same points, one run.

    python -m benchmarks.vs_autoattack                     # bundled models, bundled images
    python -m benchmarks.vs_autoattack --suite fast --n 100 --model resnet18 --data cifar10 \
        --threat linf:8/255 --data-root DIR

Needs the extra `autoattack`. The reference runs `run_standard_evaluation` of pyautoattack, version
`standard`, with the given batch size, robustkit its suites; all get the same number of threads.
With --apart the reference runs in a process of its own, as its users have it: what robustkit sets
up for its own process (`robustkit.core.allocator`) does not speed it up.
With --chunks K the points are dealt into K parts that they take in turn, with --turns T all of it
is done T times; the time ratio is the median over parts and turns.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.nets import in_color, load_subject
from benchmarks.reference import Side, apart, fetched, reference, there
from robustkit.core.device import pick_device
from robustkit.core.packages import install_command
from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset, select, subset
from robustkit.data.open import open_dataset
from robustkit.errors import RobustkitError, UsageError
from robustkit.evaluation.evaluate import evaluate
from robustkit.models.load import Subject, bundled


@dataclass
class Comparison:
    """One row of the table."""

    suite: str
    model: str
    n: int
    threat: str
    ours: float
    reference: float
    only_ours_broke: int
    only_reference_broke: int
    forwards: list[int]
    backwards: list[int]
    seconds: list[float]
    speedup: float
    """Reference time / robustkit time, median over chunks and turns."""


def ours(
    model: nn.Module, data: Dataset, threat: Threat, device: str, seed: int, suite: str
) -> Side:
    """Run a robustkit suite on all of `data`, ledger and verification included."""
    with tempfile.TemporaryDirectory() as folder:
        clock = time.perf_counter()
        record = evaluate(
            model,
            name="model",
            data=data,
            threat=threat,
            suite=suite,
            seed=seed,
            device=device,
            folder=Path(folder),
        )
        seconds = time.perf_counter() - clock
    return Side(list(record.outcomes.values()), record.forwards, record.backwards, seconds)


def compare(
    subject: Subject,
    data: Dataset,
    threat: Threat,
    *,
    device: str,
    seed: int,
    batch: int,
    suites: Sequence[str],
    chunks: int,
    turns: int,
    pool: ProcessPoolExecutor | None = None,
) -> list[Comparison]:
    """Let all run on each chunk in turn, `turns` times; the order changes every time."""
    target = pick_device(device)
    model = subject.model.to(target)  # as a user has it: the weights may ask for gradients
    theirs: list[Side] = []
    mine: dict[str, list[Side]] = {suite: [] for suite in suites}

    def theirs_on(part: Dataset) -> Side:
        if pool is None:
            return reference(model, fetched(part), threat, target, seed, batch)
        return pool.submit(there, fetched(part), threat, target, seed, batch).result()

    for number in range(chunks * turns):
        part = subset(data, np.arange(number % chunks, len(data), chunks))
        if number % 2:
            theirs.append(theirs_on(part))
        for suite in suites:
            mine[suite].append(ours(model, part, threat, device, seed, suite))
        if not number % 2:
            theirs.append(theirs_on(part))
    return [
        _summary(
            suite, subject.name, str(threat), list(zip(mine[suite], theirs, strict=True)), chunks
        )
        for suite in suites
    ]


def _summary(
    suite: str, name: str, threat: str, pairs: list[tuple[Side, Side]], chunks: int
) -> Comparison:
    sides = tuple(zip(*pairs[:chunks], strict=True))  # a second turn repeats verdicts and passes
    standing = [[ok for side in column for ok in side.standing] for column in sides]
    both = list(zip(*standing, strict=True))
    n = len(both)
    return Comparison(
        suite=suite,
        model=name,
        n=n,
        threat=threat,
        ours=sum(standing[0]) / n,
        reference=sum(standing[1]) / n,
        only_ours_broke=both.count((False, True)),
        only_reference_broke=both.count((True, False)),
        forwards=[sum(side.forwards for side in column) for column in sides],
        backwards=[sum(side.backwards for side in column) for column in sides],
        seconds=[
            _middle([side.seconds for side in column], chunks)
            for column in zip(*pairs, strict=True)
        ],
        speedup=statistics.median(b.seconds / a.seconds for a, b in pairs),
    )


def _middle(seconds: list[float], chunks: int) -> float:
    """Return the time of all chunks together, the median over the turns."""
    turns = range(0, len(seconds), chunks)
    return statistics.median(sum(seconds[start : start + chunks]) for start in turns)


def _table(rows: list[Comparison]) -> Table:
    table = Table(title="robustkit / pyautoattack standard")
    columns = (
        "suite",
        "model",
        "n",
        "robust accuracy",
        "only ours broke",
        "only reference broke",
        "forwards per point",
        "backwards per point",
        "seconds",
        "speed-up",
    )
    for column in columns:
        table.add_column(column, justify="left" if column in ("suite", "model") else "right")
    for row in rows:
        table.add_row(
            row.suite,
            row.model,
            str(row.n),
            f"{row.ours:.4f} / {row.reference:.4f}",
            str(row.only_ours_broke),
            str(row.only_reference_broke),
            " / ".join(f"{count / row.n:.1f}" for count in row.forwards),
            " / ".join(f"{count / row.n:.1f}" for count in row.backwards),
            " / ".join(f"{seconds:.1f}" for seconds in row.seconds),
            f"{row.speedup:.2f}",
        )
    return table


@click.command()
@click.option(
    "--model",
    "models",
    multiple=True,
    help="Registered, or cnn100k, cnn700k, resnet18 (benchmarks/nets.py). Default: the bundled.",
)
@click.option("--data", "data_name", default="bundled", show_default=True)
@click.option("--data-root", type=click.Path(path_type=Path), envvar="ROBUSTKIT_DATA")
@click.option("--threat", default="linf:0.1", show_default=True)
@click.option(
    "--suite", "suites", multiple=True, default=("quick", "fast", "parity"), show_default=True
)
@click.option("--n", default=500, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--batch-size", default=250, show_default=True, help="Of the reference.")
@click.option("--chunks", default=1, show_default=True)
@click.option("--turns", default=1, show_default=True, help="Of all, for the medians of times.")
@click.option("--apart", "alone", is_flag=True, help="The reference in a process of its own.")
@click.option("--threads", type=int, default=None)
@click.option("--device", default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(
    models: tuple[str, ...],
    data_name: str,
    data_root: Path | None,
    threat: str,
    suites: tuple[str, ...],
    n: int,
    seed: int,
    batch_size: int,
    chunks: int,
    turns: int,
    alone: bool,
    threads: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Compare robustkit's suites with the reference AutoAttack, point by point."""
    if threads:
        torch.set_num_threads(threads)
    console = Console(stderr=as_json, width=max(130, Console().width))
    try:
        whole = open_dataset(data_name, root=data_root)
        data: Dataset = subset(whole, select(whole, n, seed))
        rows: list[Comparison] = []
        for name in models or bundled(data):
            subject = load_subject(name, data, Threat.parse(threat))
            if name == "resnet18" and data.shape[0] == 1:
                data = in_color(data, subject.model, len(data))
            process = apart(subject) if alone else nullcontext()
            with process as pool:
                found = compare(
                    subject,
                    data,
                    Threat.parse(threat),
                    device=device,
                    seed=seed,
                    batch=batch_size,
                    suites=suites,
                    chunks=chunks,
                    turns=turns,
                    pool=pool,
                )
            console.print(_table(found))
            rows += found
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{error.name} is missing: {install_command('autoattack')}"
        ) from None
    except (UsageError, RobustkitError) as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
