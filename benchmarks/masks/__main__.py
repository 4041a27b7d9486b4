"""Published masks: who is fooled by defenses that were published, and broken since.

    python -m benchmarks.masks --data-root DATA                    # everything; hours on two cores
    python -m benchmarks.masks --only k_winners,denoiser --columns parity
    python -m benchmarks.masks --report                            # what is there, as a table

Every mask is trained here. A declared reference attack that knows it attacks all n points; those
that it breaks are then put to the suites, with a sample of those that it does not. Trainings and
evaluations are folders under --out: what has finished is not run again, the rest goes on.

Exits with 1, under --check, when a target is missed; with 3 when an evaluation cannot finish.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from rich.console import Console

from benchmarks.gauntlet.rows import Row, Summary, summarize
from benchmarks.gauntlet.setting import Setting
from benchmarks.gauntlet.table import account, markdown, table
from benchmarks.masks.families import MASKS
from benchmarks.masks.mask import Mask
from benchmarks.masks.run import COLUMNS, attack, row
from benchmarks.masks.train import wear
from benchmarks.options import some_of
from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset
from robustkit.data.open import open_dataset
from robustkit.errors import RobustkitError, UsageError
from robustkit.evaluation.watcher import Watcher

FOOLED, NOUN = 1.0, "mask"  # points by which a verdict on one must be too high to be fooled


@click.command()
@click.option("--n", default=100, show_default=True, help="Points of the test data.")
@click.option(
    "--controls",
    default="8",
    show_default=True,
    help="How many points that the expert leaves are attacked by the suites too, or all.",
)
@click.option("--width", default=16, show_default=True, help="Channels of the first convolution.")
@click.option("--epochs", default=3, show_default=True, help="Of every training.")
@click.option("--only", default="", help="Masks, separated by commas; by default all.")
@click.option("--columns", default="", help=f"Of {','.join(COLUMNS)}; by default all.")
@click.option("--report", "only_report", is_flag=True, help="Run nothing; show what is there.")
@click.option("--data", "data_name", default="fashion_mnist", show_default=True)
@click.option("--data-root", type=click.Path(path_type=Path), envvar="ROBUSTKIT_DATA")
@click.option("--threat", default="linf:0.1", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", type=int, default=None)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("robustkit-runs/masks"),
    show_default=True,
)
@click.option("--json", "as_json", is_flag=True)
@click.option("--markdown", "as_markdown", is_flag=True)
@click.option("--check", is_flag=True, help="Exit with 1 when a target is missed.")
def main(
    n: int,
    controls: str,
    width: int,
    epochs: int,
    only: str,
    columns: str,
    only_report: bool,
    data_name: str,
    data_root: Path | None,
    threat: str,
    seed: int,
    threads: int | None,
    out: Path,
    as_json: bool,
    as_markdown: bool,
    check: bool,
) -> None:
    """Train published masks, attack them as one who knows them, and see who is fooled."""
    if threads:
        torch.set_num_threads(threads)
    console = Console(stderr=True)
    try:
        ball, names = Threat.parse(threat), some_of(list(MASKS), only)
        asked = Asked(
            [MASKS[name](width=width, epochs=epochs, eps=ball.eps) for name in names],
            [] if only_report else some_of(COLUMNS, columns),
            None if controls == "all" else int(controls),
            ball, n, seed, out,
            *(open_dataset(data_name, root=data_root, split=split) for split in ("train", "test")),
        )  # fmt: skip
        found, failed = _gather(asked, console)
    except UsageError as error:
        raise click.UsageError(str(error)) from None
    except RobustkitError as error:
        console.print(f"could not finish: {error}")
        sys.exit(3)
    summary = summarize(found, FOOLED)
    _show(found, summary, asked, as_json=as_json, as_markdown=as_markdown)
    for text in failed:
        console.print(f"could not finish: {text}", style="red", highlight=False)
    if failed:
        sys.exit(3)
    if check and not summary.reached:
        sys.exit(1)


@dataclass(frozen=True)
class Asked:
    """What to do; `columns` is empty where nothing is to run."""

    masks: list[Mask]
    columns: list[str]
    controls: int | None
    threat: Threat
    n: int
    seed: int
    out: Path
    train: Dataset
    test: Dataset

    def folders(self, mask: Mask) -> tuple[Path, Path]:
        """Return where its training lies, and where its evaluations do."""
        trained = f"{self.train.name}-width{mask.width}-epochs{mask.epochs}-eps{mask.eps:g}"
        weights = self.out / f"{trained}-seed{self.seed}"
        return weights, weights / f"{self.threat.norm}-{self.threat.eps:g}-n{self.n}"


def _gather(asked: Asked, console: Console) -> tuple[list[Row], list[str]]:
    """Run what is missing; return the rows that are there, and what could not finish."""
    found, failed = list[Row](), list[str]()
    for mask in asked.masks:
        weights, folder = asked.folders(mask)
        if not (asked.columns or (folder / mask.name / "points.json").exists()):
            continue

        def report(text: str) -> None:
            console.print(text, highlight=False)

        masked = wear(mask, asked.train, weights, seed=asked.seed, report=report)
        setting = Setting(mask.name, masked, asked.test, asked.threat, asked.n, asked.seed,
                          "cpu", folder, Watcher())  # fmt: skip
        for column in asked.columns:
            report(f"{mask.name}: {column}")
            try:
                attack(setting, mask, masked, column, asked.controls)
            except UsageError:
                raise
            except RobustkitError as error:
                failed.append(f"{mask.name}, {column}: {error}")
        if (line := row(setting, mask, masked)) is not None:
            found.append(line)
    return found, failed


def _show(
    found: list[Row], summary: Summary, asked: Asked, *, as_json: bool, as_markdown: bool
) -> None:
    shown = [column for column in COLUMNS if any(column in line.cells for line in found)]
    title = (f"{asked.test.name}, {asked.threat}, n = {asked.n}: one point of the data is "
             f"{100 / asked.n:g} points of accuracy")  # fmt: skip
    if as_json:
        rows, total = [asdict(line) for line in found], asdict(summary)
        click.echo(json.dumps({"title": title, "rows": rows, "summary": total}))
        return
    if as_markdown:
        click.echo(markdown(found, shown, NOUN))
    else:
        Console(width=max(120, Console().width)).print(table(found, shown, title, NOUN))
    for line in account(summary, shown, NOUN):
        click.echo(line)


if __name__ == "__main__":
    main()
