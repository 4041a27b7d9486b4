"""What the engine costs beside the bare model, and how cost and memory grow.

    python -m benchmarks.engine                                   # bundled models
    python -m benchmarks.engine --model resnet18 --data cifar10 --threat linf:8/255 --data-root DIR

Steps of the engine and bare passes of the same model on the same batch take turns; the ratio is the
median over the turns. The bare pass is that of the model as the engine has it, tuned; beside it
stands the pass of the model as it was given, which is what other libraries call.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.nets import in_color, load_subject
from robustkit.core.device import pick_device
from robustkit.core.threat import Threat
from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Dataset, select, subset
from robustkit.data.open import open_dataset
from robustkit.evaluation.evaluate import evaluate
from robustkit.models.load import Subject
from robustkit.models.readiness import private_copy
from robustkit.models.tuning import AUTOMATIC, tune
from robustkit.registry import attacks
from robustkit.search.engine import Engine, SlotPool
from robustkit.search.functional import TrustingJudge
from robustkit.search.tasks import Work

_SEARCHES = ("apgd", "relay", "fab(targets=9)", "square")


class _Doubter(TrustingJudge):
    """Confirms nothing, so that every slot stays occupied."""

    def confirm(self, work: Any, z: Tensor, x: Tensor, y: Tensor) -> list[bool]:
        return [False] * len(work)


def overhead(
    subject: Subject, data: Dataset, threat: Threat, spec: str, slots: int, turns: int, device: str
) -> dict[str, Any]:
    """Time steps of the engine and bare passes in turn; count synchronizations of a step."""
    target = pick_device(device)
    model = private_copy(subject.model, target, subject.name)
    x, y = (part.to(target) for part in data.fetch(range(min(len(data), 4 * slots))))
    search, tuned = attacks.build(spec), tune(model, x[:16], AUTOMATIC)
    with torch.no_grad():
        logits = model(x)
    right = (logits.argmax(1) == y).nonzero().flatten().tolist()[:slots]
    ranked = logits.argsort(1, descending=True)
    judge = _Doubter(x, y, ranked, search.jobs(threat, logits.shape[1]), spec, 0, threat)
    engine = Engine(tuned.model, threat, slots)
    pool = SlotPool(engine, search, iter([Work(point, 0) for point in right]), judge, slots)
    pool.refill()
    bare = _bare(tuned.model, pool.state.query, gradient=search.uses_gradient)
    given = _bare(model, pool.state.query, gradient=search.uses_gradient)

    def step() -> None:
        pool.advance()
        pool.harvest()

    runs = (step, bare, given)
    for warm in runs:
        warm()
        warm()
    ratios, faster = [], []
    for turn in range(turns):
        times = {run: _clock(run, target) for run in (runs if turn % 2 else reversed(runs))}
        ratios.append(times[step] / times[bare])
        faster.append(times[given] / times[step])
    return {
        "attack": spec,
        "slots": len(pool.work),
        "step / bare pass": statistics.median(ratios),
        "pass as given / step": statistics.median(faster),
        "host syncs per step": _syncs(step, target),
    }


def _bare(model: Any, x: Tensor, *, gradient: bool) -> Callable[[], None]:
    def forward() -> None:
        with torch.no_grad():
            model(x)

    def both() -> None:
        query = x.detach().requires_grad_(True)
        torch.autograd.grad(model(query).sum(), query)

    return both if gradient else forward


def _clock(run: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    for _ in range(5):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def _syncs(step: Callable[[], None], device: torch.device) -> float | None:
    """Count the reads of device values by the host; they cost nothing on a CPU."""
    if device.type != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(10):
            step()
    reads = ("aten::_local_scalar_dense", "aten::nonzero", "aten::item")
    return float(sum(e.count for e in profile.key_averages() if e.key in reads)) / 10


class _Books(TrustingJudge):
    """Adds up the passes of tasks that ended."""

    forwards = 0

    def settle(self, outcomes: Any) -> None:
        self.forwards += sum(item.forwards for item in outcomes)


def occupancy(
    subject: Subject, data: Dataset, threat: Threat, spec: str, slots: int, device: str
) -> float:
    """Return the share of rows passed through the model that belonged to a running task."""
    target = pick_device(device)
    model = private_copy(subject.model, target, subject.name)
    x, y = (part.to(target) for part in data.fetch(range(len(data))))
    with torch.no_grad():
        logits = model(x)
    search, right = attacks.build(spec), (logits.argmax(1) == y).nonzero().flatten().tolist()
    jobs, ranked = search.jobs(threat, logits.shape[1]), logits.argsort(1, descending=True)
    books, engine = _Books(x, y, ranked, jobs, spec, 0, threat), Engine(model, threat, slots)
    queue = iter([Work(point, job) for job in range(len(jobs)) for point in right])
    engine.run(search, queue, len(right) * len(jobs), books)
    return books.forwards / engine.evaluated


def growth(subject: Subject, data: Dataset, threat: Threat, suite: str, device: str) -> list[Any]:
    """Evaluate with different numbers of points and slots: passes, time, occupancy by stage."""
    rows = []
    for n, slots in ((len(data) // 4, None), (len(data), None), (len(data), 32), (len(data), 256)):
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            record = evaluate(
                subject.model,
                name=subject.name,
                data=subset(data, select(data, n, 0)),
                threat=threat,
                suite=suite,
                device=device,
                batch_size=slots,
                folder=Path(folder),
            )
            seconds = time.perf_counter() - begun
        stages = {stage.attack: stage.forwards / n for stage in record.stages}
        rows.append(
            {
                "n": n,
                "slots": slots or "auto",
                "ms per point": 1e3 * seconds / n,
                "forwards per point": stages,
            }
        )
    return rows


def peak(n: int) -> int:
    """Return the peak memory in bytes of a process that evaluates `n` small images from a file."""
    program = [sys.executable, "-m", "benchmarks.engine", "--only-memory", str(n)]
    return int(subprocess.run(program, check=True, capture_output=True, text=True).stdout)


def _remember(n: int) -> None:
    """Evaluate `n` random images from a memory-mapped file, and print the peak memory."""
    import numpy as np

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10)).eval()
    with tempfile.TemporaryDirectory() as folder:
        images = np.lib.format.open_memmap(
            Path(folder) / "x.npy", mode="w+", dtype=np.uint8, shape=(n, 3, 32, 32)
        )
        labels = np.empty(n, dtype=np.int64)
        for start in range(0, n, 500):
            x = torch.randint(0, 256, (min(500, n - start), 3, 32, 32), generator=generator)
            images[start : start + len(x)] = x.numpy()
            with torch.no_grad():
                labels[start : start + len(x)] = model(x.float() / 255).argmax(1).numpy()
        evaluate(
            model, name="linear", data=from_arrays("random", images, labels),
            threat=Threat("linf", 1e-3), suite="quick", batch_size=64, device="cpu",
            save_adversarial=False, folder=Path(folder) / "run",
        )  # fmt: skip
    unit = 1 if sys.platform == "darwin" else 1024
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _show(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title)
    for heading in rows[0]:
        table.add_column(heading)
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    console.print(table)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key}: {count:.1f}" for key, count in value.items())
    return f"{value:.3f}" if isinstance(value, float) else str("–" if value is None else value)


def _growth(
    subject: Subject, data: Dataset, threat: Threat, given: dict[str, Any]
) -> dict[str, Any]:
    return {
        "occupied slots": [
            {"attack": spec, "points": given["n"],
             "share": occupancy(subject, subset(data, select(data, given["n"], 0)), threat, spec,
                                given["slots"], given["device"])}
            for spec in ("apgd(steps=20)", "relay", "apgd(loss=targeted_dlr, steps=20)")
        ],
        "growth": growth(subject, subset(data, select(data, given["n"], 0)), threat,
                         given["suite"], given["device"]),
        "peak memory": [{"n": n, "MiB": peak(n) / 2**20} for n in (1000, 10000)],
    }  # fmt: skip


@click.command()
@click.option(
    "--model",
    default="pgd_at",
    show_default=True,
    help="Registered, or cnn100k, cnn700k, resnet18 (benchmarks/nets.py).",
)
@click.option("--data", "data_name", default="bundled", show_default=True)
@click.option("--data-root", type=click.Path(path_type=Path), envvar="ROBUSTKIT_DATA")
@click.option("--threat", default="linf:0.1", show_default=True)
@click.option("--slots", default=128, show_default=True)
@click.option("--turns", default=15, show_default=True)
@click.option("--n", default=200, show_default=True, help="Points for the growth table.")
@click.option("--suite", default="quick", show_default=True, help="For the growth table.")
@click.option("--device", default="auto", show_default=True)
@click.option("--threads", type=int, default=None)
@click.option("--only-steps", is_flag=True, help="Leave the other tables out.")
@click.option("--only-memory", type=int, default=None, hidden=True)
@click.option("--json", "as_json", is_flag=True)
def main(**given: Any) -> None:
    """Measure the engine's overhead, and how cost and memory grow."""
    if given["only_memory"]:
        _remember(given["only_memory"])
        return
    if given["threads"]:
        torch.set_num_threads(given["threads"])
    data = open_dataset(given["data_name"], root=given["data_root"])
    name, threat, device = given["model"], Threat.parse(given["threat"]), given["device"]
    subject = load_subject(name, data, threat)
    if name == "resnet18" and data.shape[0] == 1:
        data = in_color(data, subject.model, min(len(data), 2 * given["slots"]))
    found: dict[str, Any] = {
        "one step of the engine": [
            overhead(subject, data, threat, spec, given["slots"], given["turns"], device)
            for spec in _SEARCHES
        ],
    }
    if not given["only_steps"]:
        found |= _growth(subject, data, threat, given)
    if given["as_json"]:
        click.echo(json.dumps(found))
        return
    console = Console(width=max(120, Console().width))
    for title, rows in found.items():
        _show(console, f"{title}: {subject.name}", rows)


if __name__ == "__main__":
    main()
