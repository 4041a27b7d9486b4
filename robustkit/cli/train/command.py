"""`robustkit train`: its options. What it does is in `robustkit.cli.train.run`."""

from __future__ import annotations

from typing import Any

import click

from robustkit.cli import options
from robustkit.cli.program import debug
from robustkit.cli.supervisor import Supervised


@click.command("train", cls=Supervised, short_help="Train a defense and measure it.")
@click.argument("name", metavar="NAME")
@click.option(
    "--data", default="fashion_mnist", show_default=True, metavar="NAME", help="Training data."
)
@options.data_root
@click.option(
    "--out",
    type=options.OUTPUT_FOLDER,
    metavar="DIR",
    help="Folder of the weights and their card; robustkit-models/<name>-<data> by default.",
)
@click.option(
    "--epochs", type=click.IntRange(min=1), metavar="N", help="By default, the defense's own."
)
@click.option("--batch-size", type=click.IntRange(min=1), metavar="N", help="Likewise.")
@click.option(
    "--validation",
    type=click.IntRange(min=1),
    metavar="N",
    help="Leave N points out of the training and measure on them, to choose among trainings "
    "without looking at the test data; a schedule that keeps the best epoch finds it on them, and "
    "leaves out its own number by default.",
)
@options.seed
@options.device
@options.trust_code
@options.threads
@options.fresh
@options.quiet
@debug
def command(**given: Any) -> None:
    """Train the defense NAME, such as trades or "pgd_at(eps=0.1)", and measure what came out.

    The same command again resumes, step for step. DIR then holds model.safetensors and card.json.
    """
    from robustkit.cli.train.plan import TrainRequest
    from robustkit.cli.train.run import run
    from robustkit.models.trust import trusting

    with trusting(given.pop("trust_code")):
        run(TrainRequest(**given))
