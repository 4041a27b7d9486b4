"""Published masks: who is fooled by defenses that were published, and broken since.

    python -m benchmarks.masks --data-root DATA                    # everything; hours on two cores
    python -m benchmarks.masks --only k_winners,denoiser --columns parity
    python -m benchmarks.masks --report                            # what is there, as a table

Every mask is trained here. A declared reference attack that knows it attacks all n points; those
that it breaks are then put to the suites, with a sample of those that it does not. Trainings and
evaluations are folders under --out: what has finished is not run again, the rest goes on.

Exits with 1, under --check, when a target is missed, or not judged: a mask that was asked for has
not been evaluated, or --n is below 50; with 2 when there is nothing to report; with 3 when an
evaluation cannot finish.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console

from benchmarks.gauntlet.rows import Row, summarize
from benchmarks.gauntlet.setting import Setting
from benchmarks.gauntlet.table import show
from benchmarks.masks.families import MASKS
from benchmarks.masks.mask import Mask
from benchmarks.masks.run import COLUMNS, attack, row
from benchmarks.masks.train import wear
from benchmarks.options import POSITIVE, Asked, masked_gradients, nothing_run, some_of
from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset
from robustkit.data.open import open_dataset
from robustkit.errors import RobustkitError, UsageError
from robustkit.evaluation.watcher import Watcher

FOOLED, NOUN = 1.0, "mask"  # points by which a verdict on one must be too high to be fooled


@click.command()
@masked_gradients(
    n=100, data="fashion_mnist", out="masks", rows="Masks", keeper="the expert leaves",
    columns=COLUMNS,
)  # fmt: skip
@click.option("--width", type=POSITIVE, default=16, show_default=True,
              help="Channels of the first convolution.")  # fmt: skip
@click.option("--epochs", type=POSITIVE, default=3, show_default=True, help="Of every training.")
def main(asked: Asked, width: int, epochs: int) -> None:
    """Train published masks, attack them as one who knows them, and see who is fooled."""
    console = Console(stderr=True)
    try:
        ball, names = _ball(asked.threat), some_of(list(MASKS), asked.only)
        task = Task(
            [MASKS[name](width=width, epochs=epochs, eps=ball.eps) for name in names],
            [] if asked.only_report else some_of(COLUMNS, asked.columns),
            ball, asked,
            *(open_dataset(asked.data_name, root=asked.data_root, split=split)
              for split in ("train", "test")),
        )  # fmt: skip
        found, failed = _gather(task, console)
    except UsageError as error:
        raise click.UsageError(str(error)) from None
    except RobustkitError as error:
        console.print(f"could not finish: {error}")
        sys.exit(3)
    title = f"{task.test.name}, {ball}, n = {asked.n}"
    if asked.only_report and not found:
        raise nothing_run(f"evaluations of {title}", asked.out)
    shown = [column for column in COLUMNS if any(column in line.cells for line in found)]
    summary = summarize(found, FOOLED, names, asked.n)
    sys.exit(show(asked, found, summary, shown, title, failed, NOUN))


def _ball(text: str) -> Threat:
    ball = Threat.parse(text)
    if ball.norm != "linf":
        raise UsageError(
            "expected a threat model in linf, such as linf:0.1, as the masks are trained at its "
            f"eps, got {text!r}."
        )
    return ball


@dataclass(frozen=True)
class Task:
    """What to do; `columns` is empty where nothing is to run."""

    masks: list[Mask]
    columns: list[str]
    threat: Threat
    asked: Asked
    train: Dataset
    test: Dataset

    def folders(self, mask: Mask) -> tuple[Path, Path]:
        """Return where its training lies, and where its evaluations do."""
        trained = f"{self.train.name}-width{mask.width}-epochs{mask.epochs}-eps{mask.eps:g}"
        weights = self.asked.out / f"{trained}-seed{self.asked.seed}"
        return weights, weights / f"{self.threat.norm}-{self.threat.eps:g}-n{self.asked.n}"


def _gather(task: Task, console: Console) -> tuple[list[Row], list[str]]:
    """Run what is missing; return the rows that are there, and what could not finish."""
    found, failed, seed = list[Row](), list[str](), task.asked.seed
    for mask in task.masks:
        weights, folder = task.folders(mask)
        if not (task.columns or (folder / mask.name / "points.json").exists()):
            continue

        def report(text: str) -> None:
            console.print(text, highlight=False)

        masked = wear(mask, task.train, weights, seed=seed, report=report)
        setting = Setting(mask.name, masked, task.test, task.threat, task.asked.n, seed,
                          "cpu", folder, Watcher())  # fmt: skip
        for column in task.columns:
            report(f"{mask.name}: {column}")
            try:
                attack(setting, mask, masked, column, task.asked.controls)
            except UsageError:
                raise
            except RobustkitError as error:
                failed.append(f"{mask.name}, {column}: {error}")
        if (line := row(setting, mask, masked)) is not None:
            found.append(line)
    return found, failed


if __name__ == "__main__":
    main()
