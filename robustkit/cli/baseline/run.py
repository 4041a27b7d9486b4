"""What `robustkit baseline` does."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustkit.cli.console import say, stderr, stdout
from robustkit.cli.evaluate.plan import claim, make
from robustkit.cli.evaluate.request import Request
from robustkit.cli.evaluate.run import evaluate_one
from robustkit.cli.options import use_threads
from robustkit.cli.screen import Screen
from robustkit.core import files
from robustkit.core.terminal_table import TerminalTable
from robustkit.core.text import slug
from robustkit.errors import UsageError
from robustkit.gate import config as configuration
from robustkit.gate.baseline import load_baselines
from robustkit.gate.config import Config, ModelEntry
from robustkit.record.record import Record, load, save

LOG = "log.jsonl"


@dataclass(frozen=True)
class BaselineRequest:
    """What was asked for; None: not at all."""

    reason: str
    models: tuple[str, ...] = ()
    baseline: Path | None = None
    config: Path | None = None
    data: str | None = None
    data_root: Path | None = None
    threat: str | None = None
    criterion: str | None = None
    suite: str | None = None
    certify: str | None = None
    n: int | None = None
    seed: int | None = None
    weights: Path | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    examples: bool = False
    fresh: bool = False
    device: str = "auto"
    threads: int | None = None
    quiet: bool = False


def run(asked: BaselineRequest) -> None:
    """Evaluate each model and put its record where `check` looks for baselines.

    Raises:
        UsageError: when the request is refused; nothing was written then.
    """
    use_threads(asked.threads)
    if not asked.reason.strip():
        raise UsageError("--reason: expected why the old baseline no longer holds, got nothing.")
    setup = configuration.load(asked.config or configuration.find(Path.cwd()))
    entries = [setup.entry(name) for name in asked.models] or setup.models
    if not entries:
        raise UsageError(
            "no model is named: give a MODEL, or list some in robustkit.toml (`robustkit init`)."
        )
    if asked.weights and len(entries) != 1:
        raise UsageError(f"--weights goes with exactly one MODEL, got {len(entries)}.")
    with contextlib.redirect_stdout(sys.stderr):
        plans = [make(_request(entry, asked, setup)) for entry in entries]
        found = []
        with Screen(len(plans), quiet=asked.quiet) as screen:
            for plan in plans:
                claim(plan)
                (subject,) = plan.subjects
                ((_, record),) = evaluate_one(plan, subject, screen.lane(subject.name))
                screen.end(subject.name)
                found.append((record, plan.folder(subject)))
    for entry, (record, folder) in zip(entries, found, strict=True):
        place = asked.baseline or setup.place(entry.baseline or setup.baseline)
        path = _put(record, folder, place, asked)
        if not asked.quiet:
            stdout().out(f"{record.defense}: robust {record.robust:.4f} ({path})", highlight=False)


def show(place: Path | None) -> None:
    """Print the baselines in a folder, by default that of the configuration."""
    setup = configuration.load(configuration.find(Path.cwd()))
    table = TerminalTable(
        *("model", "data", "threat", "suite", "n", "robust", "started", "commit", "reason"),
        least=("n", "commit", "started", "suite"),
        whole=("n", "robust", "started", "commit"),
    )
    for baseline in load_baselines(place or setup.place(setup.baseline)):
        record = baseline.record
        cells = (
            *(record.defense, record.data.name, str(baseline.threat), record.suite or ""),
            *(str(record.n), f"{record.robust:.4f}", record.started[:10]),
            *(record.commit.hash[:8] if record.commit else "",),
            str(record.arguments.get("reason", "")),
        )
        table.add_row(*cells)
    stdout().print(table)


def _request(entry: ModelEntry, asked: BaselineRequest, setup: Config) -> Request:
    mean, std = asked.mean or entry.mean, asked.std or entry.std
    return Request(
        models=(entry.model,),
        data=asked.data or entry.data or setup.data or "bundled",
        data_root=asked.data_root or setup.root,
        threat=asked.threat or entry.threat or setup.threat,
        criterion=asked.criterion or entry.criterion or setup.criterion,
        suite=asked.suite or entry.suite or setup.suite,
        certify=asked.certify or setup.certify,
        n=asked.n or entry.n or setup.n,
        sample=setup.sample,
        seed=setup.seed if asked.seed is None else asked.seed,
        device=asked.device if asked.device != "auto" else setup.device,
        weights=asked.weights or setup.weights(entry),
        mean=tuple(mean) if mean else None,
        std=tuple(std) if std else None,
        fresh=asked.fresh,
        quiet=asked.quiet,
    )


def _put(record: Record, folder: Path, place: Path, asked: BaselineRequest) -> Path:
    """Write the record, with its reason, over the one before; remember both in the log."""
    threat = f"{record.threat.kind}-{record.threat.eps:g}"
    name = slug(f"{record.defense}-{record.data.name}-{threat}-{record.suite}")
    path = place / name / "record.json"
    before = _robust(path)
    arguments = {**record.arguments, "reason": asked.reason}
    ledger = path.with_name("ledger.sqlite")
    ledger.unlink(missing_ok=True)  # of the run before, which does not bear out the new record
    save(record.model_copy(update={"arguments": arguments}), path)
    if asked.examples:
        files.copy(folder / "ledger.sqlite", ledger)
    _log(place / LOG, {
        "when": record.started,
        "commit": record.commit.hash if record.commit else None,
        "baseline": name,
        "robust_before": before,
        "robust": record.robust,
        "reason": asked.reason,
    })  # fmt: skip
    return path


def _robust(path: Path) -> float | None:
    """Return the robust accuracy of the baseline that is replaced; None: none, or unreadable."""
    try:
        return load(path).robust if path.exists() else None
    except UsageError as error:
        say(stderr(), "note", f"the baseline before cannot be read: {error}", "bold yellow")
        return None


def _log(path: Path, entry: dict[str, Any]) -> None:
    known = path.read_bytes() if path.exists() else b""
    files.write(known + json.dumps(entry).encode() + b"\n", path)
