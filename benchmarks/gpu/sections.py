"""What is measured on a card: each section yields rows, the first ones soon."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.engine import overhead
from benchmarks.gpu.wide_resnet import wide_resnet
from benchmarks.vs_autoattack import compare
from robustkit.core.threat import Threat
from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Dataset, select, subset
from robustkit.data.open import open_dataset
from robustkit.evaluation.evaluate import evaluate
from robustkit.models.half import Precision
from robustkit.models.load import Subject, load_model
from robustkit.models.tuning import Tuning
from robustkit.record.record import Record

Row = dict[str, Any]
_LINF = Threat("linf", 0.1)
_ATTACKS = ("apgd", "relay", "fab(targets=9)", "square")


class Section(NamedTuple):
    """What one section does, and how long it may take on a card."""

    run: Callable[[str, bool], Iterator[Row]]
    seconds: float


def tests(device: str, small: bool) -> Iterator[Row]:
    """Run the tests of the CUDA paths, which are skipped where there is no card."""
    found = sorted(Path("tests").rglob("test_*.py"))
    marked = [str(path) for path in found if "pytest.mark.gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu", *marked]
    done = subprocess.run(command, capture_output=True, text=True)
    summary = done.stdout.strip().splitlines()[-1:] or [done.stderr[-500:]]
    yield {"tests": re.sub(r" in [\d.]+s.*", "", summary[0]).strip("= "), "code": done.returncode}
    if done.returncode:
        raise SystemExit(done.stdout[-2000:])


def small_nets(device: str, small: bool) -> Iterator[Row]:
    """Run `fast` and `parity` beside pyautoattack on bundled models.

    In small the first attack breaks all points: those that survive take minutes on a CPU.
    """
    data = _bundled(4 if small else 500)
    for name in ("undefended",) if small else ("pgd_at", "undefended"):
        subject = load_model(name, data=data)
        yield from _beside(subject, data, _LINF, device, ("fast", "parity"))


def wide(device: str, small: bool) -> Iterator[Row]:
    """Run `fast` and `parity` beside pyautoattack on WRN-28-10 with random weights.

    In small the first attack breaks all points, as above.
    """
    subject, data = _wide(small, 2 if small else 64)
    threat = Threat("linf", 0.2 if small else 1 / 255)
    yield from _beside(subject, data, threat, device, ("fast", "parity"))


def engine(device: str, small: bool) -> Iterator[Row]:
    """Time steps of the engine beside bare passes; count how often the host waits."""
    data = _bundled(64 if small else 1000)
    subject = load_model("pgd_at", data=data)
    for spec in _ATTACKS:
        slots, turns = (16, 3) if small else (512, 15)
        yield {"model": "pgd_at", **overhead(subject, data, _LINF, spec, slots, turns, device)}
    subject, data = _wide(small, 32 if small else 256)
    slots, turns = (4, 2) if small else (128, 5)
    row = overhead(subject, data, Threat("linf", 1e-6), "apgd", slots, turns, device)
    yield {"model": subject.name, **row}


def graphs(device: str, small: bool) -> Iterator[Row]:
    """Time a gradient step that is replayed as a CUDA graph beside the same step as it is.

    The engine has no CUDA graphs: the ratio says what they would bring.
    """
    for batch in (4,) if small else (16, 128, 1024):
        data = _bundled(64)
        model = load_model("pgd_at", data=data).model
        yield {"model": "pgd_at", "batch": batch, **_graphed(model, data, batch, device)}
    subject, data = _wide(small, 4)
    for batch in (2,) if small else (16, 128):
        yield {
            "model": subject.name,
            "batch": batch,
            **_graphed(subject.model, data, batch, device),
        }


def precisions(device: str, small: bool) -> Iterator[Row]:
    """Search in other precisions, and compare the verdicts, which are always those of float32."""
    data = _bundled(4 if small else 500)
    subject = load_model("pgd_at", data=data)
    first: Record | None = None
    kinds: tuple[tuple[str, Precision, bool], ...] = (
        ("float32", "float32", False),
        ("TF32", "float32", True),
        ("bfloat16", "bfloat16", False),
        ("float16", "float16", False),
    )
    for label, precision, tf32 in kinds:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        record, seconds = _run(subject, data, device, tuning=Tuning(precision=precision))
        first = first or record
        yield {
            "search": label,
            "robust": record.robust,
            "verdicts that differ": _differing(first, record),
            "forwards per point": record.forwards / record.n,
            "seconds": seconds,
            "notes": "; ".join(note for note in record.notes if note.startswith("search")),
            "peak MB": _peak(device),
        }


def killed_worker(device: str, small: bool) -> Iterator[Row]:
    """Kill one of two workers on one device in the middle; the verdicts must be those of one."""
    data = _bundled(8 if small else 500)
    subject = load_model("pgd_at", data=data)
    alone, _ = _run(subject, data, device)
    yield {"workers": 1, "robust": alone.robust}
    killed = threading.Event()
    threading.Thread(target=_kill_one, args=(killed,), daemon=True).start()
    record, seconds = _run(subject, data, device, workers=2)
    yield {
        "workers": 2,
        "robust": record.robust,
        "killed": killed.is_set(),
        "verdicts that differ": _differing(alone, record),
        "seconds": seconds,
    }
    if not killed.is_set() or _differing(alone, record):
        raise SystemExit("no worker was killed, or verdicts differ")


SECTIONS = {
    "tests": Section(tests, 90),
    "precisions": Section(precisions, 90),
    "killed-worker": Section(killed_worker, 90),
    "engine": Section(engine, 60),
    "graphs": Section(graphs, 60),
    "small-nets": Section(small_nets, 150),
    "wide": Section(wide, 240),
}


def _bundled(n: int) -> Dataset:
    whole = open_dataset("bundled")
    return subset(whole, select(whole, min(n, len(whole)), 0))


def _wide(small: bool, n: int) -> tuple[Subject, Dataset]:
    """Return the network, and random images labelled as it classifies them."""
    depth, width = (10, 1) if small else (28, 10)
    model = wide_resnet(depth, width)
    x = torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = torch.cat([model(part).argmax(1) for part in x.split(16)])
    data = from_arrays("random images", x.numpy(), y.numpy(), classes=10)
    return Subject(f"wrn-{depth}-{width}", model), data


def _beside(
    subject: Subject, data: Dataset, threat: Threat, device: str, suites: tuple[str, ...]
) -> Iterator[Row]:
    for suite in suites:
        (row,) = compare(
            subject,
            data,
            threat,
            device=device,
            seed=0,
            batch=250,
            suites=(suite,),
            chunks=1,
            turns=1,
        )
        yield {**asdict(row), "peak MB": _peak(device)}


def _run(subject: Subject, data: Dataset, device: str, **options: Any) -> tuple[Record, float]:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        record = evaluate(
            subject.model, name=subject.name, data=data, threat=_LINF, suite="quick",
            device=device, folder=Path(folder), **options,
        )  # fmt: skip
    return record, time.perf_counter() - began


def _differing(one: Record, two: Record) -> int:
    return sum(a != b for a, b in zip(one.points.status, two.points.status, strict=True))


def _peak(device: str) -> float | None:
    """Return the most memory of the card that was taken since the last call."""
    if device == "cpu":
        return None
    peak = torch.cuda.max_memory_allocated() / 2**20
    torch.cuda.reset_peak_memory_stats()
    return peak


def _kill_one(killed: threading.Event) -> None:
    """Kill the first worker, once it has had the time to load its model."""
    while not multiprocessing.active_children():
        time.sleep(0.01)
    victim = multiprocessing.active_children()[0]
    time.sleep(1)
    if victim.pid is not None and victim.is_alive():
        os.kill(victim.pid, signal.SIGKILL)
        killed.set()


def _graphed(model: Any, data: Dataset, batch: int, device: str) -> Row:
    """Time a step as it is and, on a card, as a graph; the median of neighbours' ratios."""
    network: nn.Module = model.to(device).requires_grad_(False)
    x, y = (part.to(device) for part in data.fetch(range(min(len(data), batch))))
    repeat = -(-batch // len(x))
    x, y = x.repeat(repeat, 1, 1, 1)[:batch].clone(), y.repeat(repeat)[:batch].clone()

    def step() -> Tensor:
        query = x.detach().requires_grad_(True)
        loss = nn.functional.cross_entropy(network(query), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, query)
        return (x + 0.01 * gradient.sign()).clamp(0, 1)

    if device == "cpu":
        return {"eager ms": _milliseconds(step, device), "graph ms": None, "eager / graph": None}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # as the documentation asks: warm up beside the main stream
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    same = bool(torch.equal(captured, step()))
    pairs = [(_milliseconds(step, device), _milliseconds(graph.replay, device)) for _ in range(9)]
    return {
        "eager ms": statistics.median(eager for eager, _ in pairs),
        "graph ms": statistics.median(replayed for _, replayed in pairs),
        "eager / graph": statistics.median(eager / replayed for eager, replayed in pairs),
        "same step": same,
    }


def _milliseconds(run: Callable[[], Any], device: str, repeats: int = 10) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    if device != "cpu":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - began) / repeats
