"""`robustkit verify-record`: the model is asked again about what a record says of it."""

from __future__ import annotations

import contextlib
import secrets
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from robustkit.cli import options
from robustkit.cli.console import result, say, stderr, stdout
from robustkit.cli.program import debug
from robustkit.cli.supervisor import Supervised
from robustkit.core.text import shown_json

SCHEMA = "robustkit/verify-record/1"


@click.command("verify-record", cls=Supervised, short_help="Ask a record's model again.")
@click.argument("record", type=click.Path(path_type=Path))
@options.recorded
@click.option(
    "--sample", type=click.IntRange(min=0), metavar="N",
    help="Points to attack again; by default as many as a tenth of the run's cost pays for.",
)  # fmt: skip
@click.option("--seed", type=options.SEED, metavar="S", help="Of that sample; drawn by default.")
@options.device
@options.threads
@options.as_json
@options.quiet
@debug
def command(
    record: Path,
    sample: int | None,
    seed: int | None,
    device: str,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> int:
    """Check the digests of RECORD and its ledger, and ask the model again.

    Every clean prediction; every stored adversarial input: that it lies in the threat model, that
    the model misclassifies it, and that the record says so; every stored proof; and a random sample
    of the points that the record calls robust is attacked again with its attacks and seed. What
    could not be checked is listed. A model or data that could run code are not opened because a
    record names them: name them yourself.

    Exit codes: 0 all of it holds, 1 something differs, 2 a bad request, 3 it could not finish.
    """
    from robustkit.errors import EvidenceAltered
    from robustkit.record.evidence import without_digests

    options.use_threads(threads)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # a user's code may print
            baseline, found = _ask(record, device, sample, seed, **given)
    except EvidenceAltered as error:
        say(stderr(), "error", str(error), "bold red")
        return 1
    findings, holds = found.findings, found.holds
    if as_json:
        rows = [finding._asdict() for finding in findings]
        told = {
            **{"schema": SCHEMA, "record": record.as_posix(), "holds": holds, "checks": rows},
            **{"unchecked": found.unchecked, "passes": found.passes[0]},
            **{"passes_of_the_run": found.passes[1], "seed": found.seed},
        }
        result(shown_json(told))
        return 0 if holds else 1
    if not quiet or not holds:
        _show(found)
    if not quiet and (note := without_digests([(baseline.path, baseline.record)])):
        say(stderr(), "note", note, "yellow")
    return 0 if holds else 1


def _show(found: Any) -> None:
    """Print what was checked, and what was not."""
    from robustkit.core.terminal_table import TerminalTable
    from robustkit.errors import some

    table = TerminalTable(*("what", "checked", "differ", "points"), whole=("checked", "differ"))
    for finding in found.findings:
        listed = "; ".join(filter(None, (some(finding.points), finding.note)))
        table.add_row(finding.what, str(finding.checked), str(finding.differing), listed)
    stdout().print(table)
    for told in found.unchecked:
        stdout().print(f"Not checked: {told}.", markup=False, highlight=False, soft_wrap=True)
    taken, run = found.passes
    share = f", {taken / run:.1%} of the run's" if run else ""
    stdout().out(f"{taken:,} passes{share}; --seed {found.seed} draws this sample", highlight=False)


def _ask(record: Path, device: str, sample: int | None, seed: int | None, **given: Any) -> Any:
    """Load what the record is about, and ask."""
    from robustkit.gate.verify_record import verify_record

    baseline, model, data = opened(record, "verify-record", **given)
    drawn = secrets.randbelow(2**31) if seed is None else seed
    return baseline, verify_record(baseline, model, data, device, sample=sample, seed=drawn)


def opened(record: Path, command: str, **given: Any) -> Any:
    """Return a record with its model and data, for a command that takes `--model` and `--data`."""
    from robustkit.errors import UsageError
    from robustkit.gate.baseline import load_baselines, models_of, open_points
    from robustkit.models.load import load_model
    from robustkit.models.regression import for_targets

    if not record.exists():
        raise UsageError(f"{record}: expected a record or the folder of a run, got no such path.")
    found = load_baselines(record)
    if len(found) != 1:
        raise UsageError(f"{record} holds {len(found)} records: name one of them.")
    (baseline,) = found
    command = f"robustkit {command} {shlex.quote(str(record))}"
    name = given["model"] or models_of(found, f"{command} --model")[0]
    data = open_points(baseline, given["data"], given["data_root"], command=command)
    subject = load_model(
        name, data=data, weights=given["weights"], mean=given["mean"], std=given["std"]
    )
    return baseline, for_targets(subject.model, data, baseline.threat.criterion), data
