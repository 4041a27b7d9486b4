"""`robustkit verify-proof`: stored proofs are checked again, by code that did not find them."""

from __future__ import annotations

from pathlib import Path

import click

from robustkit.cli import options
from robustkit.cli.console import result, say, stderr, stdout
from robustkit.cli.program import debug
from robustkit.cli.supervisor import Supervised
from robustkit.core.text import shown_json

SCHEMA = "robustkit/verify-proof/1"


@click.command("verify-proof", cls=Supervised, short_help="Check stored proofs again.")
@click.argument("folder", type=options.FOLDER)
@options.threads
@options.as_json
@options.quiet
@debug
def command(folder: Path, threads: int | None, as_json: bool, quiet: bool) -> int:
    """Check every proof that `robustkit evaluate --save-proofs` left in FOLDER.

    FOLDER is a run's, or its proofs. Every bound is computed again in float64 with outward
    rounding, by a checker that shares no code with what found the proofs; digests tie the network,
    the points and the record together.

    Exit codes: 0 all proofs hold, 1 one does not, 2 a bad request, 3 it could not finish.
    """
    from robustkit.gate.verify_proofs import proof_folders, verify_proofs

    options.use_threads(threads)
    found = [verify_proofs(place) for place in proof_folders(folder)]
    holds = not any(checked.failures for checked in found)
    if as_json:
        rows = [
            {"folder": checked.folder.as_posix(), "proofs": len(checked.points),
             "failures": [failure._asdict() for failure in checked.failures], "note": checked.note}
            for checked in found
        ]  # fmt: skip
        result(shown_json({"schema": SCHEMA, "holds": holds, "checks": rows}))
        return 0 if holds else 1
    for checked in found:
        for failure in checked.failures:
            point = f"point {failure.point}" if failure.point >= 0 else str(checked.folder)
            stdout().out(f"{point}: {failure.found}", highlight=False)
        if not quiet:
            failed = len({failure.point for failure in checked.failures if failure.point >= 0})
            whole = "" if not any(failure.point < 0 for failure in checked.failures) else (
                "; the folder itself does not hold"
            )  # fmt: skip
            told = f"{len(checked.points) - failed} of {len(checked.points)} proofs hold{whole}"
            stdout().out(f"{checked.folder}: {told}.", highlight=False)
            if checked.note:
                say(stderr(), "note", checked.note, "yellow")
    return 0 if holds else 1
