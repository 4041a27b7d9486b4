"""`robustkit verify`: its arguments and options. What it does is in `robustkit.cli.verify.run`."""

from __future__ import annotations

from pathlib import Path

import click

from robustkit.cli import options
from robustkit.cli.program import debug

_PATH = click.Path(path_type=Path)


@click.command("verify", short_help="Answer a VNN-LIB property of an ONNX network.")
@click.argument("paths", nargs=-1, required=True, type=_PATH, metavar="NETWORK PROPERTY")
@click.option("--network", metavar="NAME=FILE", help="The network, where PROPERTY is given alone.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="Seconds for an instance; 300 by default, or what instances.csv says.",
)
@click.option(
    "--out", type=options.OUTPUT, metavar="FILE",
    help="Write the answer there too: that of one instance as the competition reads it, of a "
    "folder as CSV.",
)  # fmt: skip
@options.seed
@options.threads
@options.quiet
@debug
def command(
    paths: tuple[Path, ...],
    network: str | None,
    timeout: float | None,
    out: Path | None,
    seed: int,
    threads: int | None,
    quiet: bool,
) -> int:
    """Tell whether an input of the ONNX file NETWORK meets PROPERTY (VNN-LIB 1.0 or 2.0).

    Prints unsat (proved: none does), sat with a counterexample that onnxruntime confirms, unknown,
    or timeout. Files may be gzipped. Given one folder or its instances.csv, answers every instance.

    Exit codes: 0 answered, whatever the answer, 2 a bad request, 3 an instance ended in an error.
    """
    from robustkit.cli.verify.run import verify_all, verify_one

    options.use_threads(threads)
    if network is None and len(paths) == 1:
        return verify_all(paths[0], timeout, out, seed, quiet=quiet)
    if network is None and len(paths) == 2:
        return verify_one(paths[0], paths[1], timeout, out, seed, quiet=quiet)
    if network is not None and len(paths) == 1:
        file = Path(network.partition("=")[2] or network)
        return verify_one(file, paths[0], timeout, out, seed, quiet=quiet)
    raise click.UsageError(
        "expected NETWORK PROPERTY, PROPERTY --network NAME=FILE, or a folder with instances.csv."
    )


@click.command("supports", short_help="Tell what verify can read, as VNN-LIB 2.0 asks it.")
@click.option("--onnx-operators", "asked", flag_value="operators", help="One a line.")
@click.option("--onnx-opset-versions", "asked", flag_value="opsets", help="Least and greatest.")
@click.option("--vnnlib-versions", "asked", flag_value="versions", help="Least and greatest.")
@click.option("--serialise-assignments", "asked", flag_value="assignments", help="false: as text.")
@click.option("--multiple-network-theories", "asked", flag_value="networks", help="One network.")
@click.option("--hidden-node-theories", "asked", flag_value="hidden", help="None.")
@click.option(
    "--multiple-input-output-theories", "asked", flag_value="ends", help="One input, one output."
)
@click.option(
    "--arithmetic-complexity-theories", "asked", flag_value="arithmetic", help="Up to linear."
)
@debug
def supports(asked: str | None) -> int:
    """Answer one question about `robustkit verify`, in the words of the standard."""
    from robustkit.cli.verify.run import capabilities

    if asked is None:
        raise click.UsageError("expected one of the options: `robustkit supports --help`.")
    click.echo(capabilities(asked))
    return 0
