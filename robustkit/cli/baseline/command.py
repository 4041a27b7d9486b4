"""`robustkit baseline`: record new baselines, and list those that there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from robustkit.cli import options
from robustkit.cli.program import debug
from robustkit.cli.supervisor import Supervised

PLACE = click.Path(file_okay=False, path_type=Path)


@click.group("baseline", short_help="Record the baselines that `robustkit check` compares to.")
def command() -> None:
    """Record new baselines with their reason, or list those that there are."""


@command.command("update", cls=Supervised)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--reason", required=True, metavar="TEXT", help="Why the old one no longer holds.")
@click.option("--baseline", type=PLACE, metavar="DIR", help="Folder of the baselines.")
@click.option("--config", type=options.FILE, metavar="FILE", help="Instead of robustkit.toml.")
@click.option("--data", metavar="NAME|npz:PATH|...", help="As for evaluate.")
@options.data_root
@click.option("--threat", metavar="linf:8/255", help="As for evaluate.")
@options.criterion
@click.option("--suite", metavar="NAME", help="As for evaluate.")
@click.option(
    "--certify",
    type=options.Certificate(["auto", "ibp", "crown", "alpha-crown", "complete", "smoothing"]),
    help="As for evaluate.",
)  # fmt: skip
@click.option("--n", type=click.IntRange(min=1), metavar="N", help="As for evaluate.")
@click.option("--seed", type=options.SEED, metavar="S", help="As for evaluate.")
@click.option("--weights", type=options.FILE, metavar="FILE", help="State dict of the one MODEL.")
@options.mean
@options.std
@click.option(
    "--examples", is_flag=True, help="Keep the adversarial inputs too, so that checks replay them."
)
@options.fresh
@options.device
@options.trust_code
@options.threads
@options.quiet
@debug
def update(**given: Any) -> None:
    """Evaluate the models, and make what comes out their new baselines.

    Without MODEL, those of the configuration. The reason stands in the record and in log.jsonl.
    """
    from robustkit.cli.baseline.run import BaselineRequest, run
    from robustkit.models.trust import trusting

    with trusting(given.pop("trust_code")):
        run(BaselineRequest(**given))


@command.command("list")
@click.argument("place", required=False, type=click.Path(path_type=Path), metavar="[DIR]")
@debug
def listing(place: Path | None) -> None:
    """List the baselines, each with its numbers and its reason."""
    from robustkit.cli.baseline.run import show

    show(place)
