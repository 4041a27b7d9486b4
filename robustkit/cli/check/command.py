"""`robustkit check`: its options. What it does is in `robustkit.cli.check.run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from robustkit.cli import options
from robustkit.cli.program import debug, debugging
from robustkit.cli.supervisor import Supervised

PLACE = click.Path(path_type=Path)


@click.command(
    "check", cls=Supervised, short_help="Fail when a model is less robust than its baseline."
)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option(
    "--baseline",
    type=PLACE,
    metavar="FILE|DIR",
    help="Record, or folder of records, to compare to.",
)
@click.option("--config", type=options.FILE, metavar="FILE", help="Instead of robustkit.toml.")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME[=TOLERANCE]",
    help="robust, clean, certified, worst-class, tail-30, flags or reliability; repeatable. "
    "By default robust and flags.",
)
@click.option(
    "--tolerance", type=click.FloatRange(0, 1, max_open=True), metavar="X",
    help="Drop that is accepted, as a fraction; 0.01 by default.",
)  # fmt: skip
@click.option(
    "--confidence", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="X",
    help="Probability to be right about a false alarm, and about a false pass; 0.95 by default.",
)  # fmt: skip
@click.option(
    "--claim", type=click.Choice(["points", "population"]),
    help="Speak of the baseline's own points (default), or of what they are a sample of.",
)  # fmt: skip
@click.option(
    "--undecided", type=click.Choice(["error", "pass", "fail"]),
    help="What a gate does whose budget ended before the answer: exit 3 (default), 0 or 1.",
)  # fmt: skip
@options.max_time
@options.max_forwards
@click.option("--data", metavar="NAME|npz:PATH|...", help="Where the baseline's points are now.")
@options.data_root
@click.option("--weights", type=options.FILE, metavar="FILE", help="State dict of the one MODEL.")
@options.mean
@options.std
@click.option(
    "--replay/--no-replay", default=True, show_default=True,
    help="Try the adversarial inputs that lie beside the baseline first.",
)  # fmt: skip
@click.option("--out", type=options.OUTPUT_FOLDER, metavar="DIR", help="Folder of the run.")
@options.fresh
@options.device
@click.option("--batch-size", callback=options.batch_size, default="auto", metavar="auto|N")
@options.trust_code
@options.threads
@click.option("--junit", type=options.OUTPUT, metavar="FILE", help="Write JUnit XML.")
@click.option("--sarif", type=options.OUTPUT, metavar="FILE", help="Write SARIF 2.1.0.")
@click.option("--markdown", type=options.OUTPUT, metavar="FILE", help="Write a summary.")
@options.as_json
@options.quiet
@debug
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> int:
    """Compare models with their baselines on the same points, and fail where one has regressed.

    Without MODEL, the models of [tool.robustkit] or robustkit.toml, else those of the baseline. A
    MODEL may also be the record of a run that is over. Points come in a random order, and the run
    stops when the answer is certain.

    Exit codes: 0 passed, 1 regressed, 2 a missing or incompatible baseline or a bad request, 3 the
    run could not finish or the answer is open.
    """
    from robustkit.cli.check.run import CheckRequest, run
    from robustkit.models.trust import trusting

    with trusting(given.pop("trust_code")):
        return run(CheckRequest(**given), debug=debugging(ctx))
