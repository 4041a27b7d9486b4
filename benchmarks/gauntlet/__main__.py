"""The gauntlet: who is fooled by masked gradients, where the truth is known by construction.

    python -m benchmarks.gauntlet                                  # everything; hours on two cores
    python -m benchmarks.gauntlet --columns parity,adaptive --only gradients
    python -m benchmarks.gauntlet --columns standard,rand          # beside it, in another terminal
    python -m benchmarks.gauntlet --report                         # what is there, as a table

A robust model is wrapped in defenses that mask its gradient and decide (nearly) as before. Of the
n points, those that the bare model decides rightly and loses under attack are attacked through
every wrapper, with a sample of those that it keeps; the rest counts as the truth has it. Every
evaluation is a folder under --out, and what has finished there is not run again. The reference
columns need the extra `autoattack`.

Exits with 1, under --check, when a target is missed; with 3 when an evaluation cannot finish.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
from rich.console import Console

from benchmarks.gauntlet.rows import Row, summarize
from benchmarks.gauntlet.run import COLUMNS, REFERENCES, attack, chosen, rows
from benchmarks.gauntlet.setting import Setting, prepare
from benchmarks.gauntlet.table import show
from benchmarks.gauntlet.wrapper import Entry
from benchmarks.options import Asked, listed, masked_gradients
from robustkit.core.packages import install_command
from robustkit.core.threat import Threat
from robustkit.data.open import open_dataset
from robustkit.errors import RobustkitError, UsageError
from robustkit.evaluation.watcher import Watcher
from robustkit.models.load import load_model
from robustkit.registry import suites


def _columns(text: str, skip_reference: bool) -> list[str]:
    asked = listed(text) or [c for c in COLUMNS if c in REFERENCES or c in suites]
    if strangers := [column for column in asked if column not in COLUMNS]:
        raise UsageError(f"expected columns among {', '.join(COLUMNS)}, got {strangers[0]!r}.")
    return [c for c in asked if not (skip_reference and c in REFERENCES)]


@click.command()
@masked_gradients(
    n=200, data="bundled", out="gauntlet", rows="Wrappers or families",
    keeper="the bare model keeps", columns=COLUMNS,
)  # fmt: skip
@click.option("--skip", default="", help="As --only, to leave out.")
@click.option("--skip-reference", is_flag=True, help="Leave pyautoattack out.")
@click.option("--model", "model_name", default="pgd_at", show_default=True)
@click.option("--device", default="auto", show_default=True)
def main(asked: Asked, skip: str, skip_reference: bool, model_name: str, device: str) -> None:
    """Wrap a robust model in defenses that mask its gradient, and see who is fooled."""
    console, n = Console(stderr=True), asked.n
    try:
        data = open_dataset(asked.data_name, root=asked.data_root)
        ball, columns = Threat.parse(asked.threat), _columns(asked.columns, skip_reference)
        entries = chosen(listed(asked.only), listed(skip))
        bare = load_model(model_name, data=data).model.requires_grad_(False)
        place = f"{model_name}-{data.name}-{ball.norm}-{ball.eps:g}-n{n}-seed{asked.seed}"
        setting = Setting(model_name, bare, data, ball, n, asked.seed, device, asked.out / place,
                          Watcher())  # fmt: skip
        runs = [] if asked.only_report else columns
        found, failed = _gather(console, setting, asked.controls, entries, runs)
    except UsageError as error:
        raise click.UsageError(str(error)) from None
    except RobustkitError as error:
        console.print(f"could not finish: {error}")
        sys.exit(3)
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{error.name} is missing: {install_command('autoattack')}, or --skip-reference"
        ) from None
    shown = [c for c in COLUMNS if c in columns or any(c in row.cells for row in found)]
    title = f"{model_name}, {data.name}, {ball}, n = {n}"
    sys.exit(show(asked, found, summarize(found), shown, title, failed))


def _gather(
    console: Console,
    setting: Setting,
    controls: int | None,
    entries: Sequence[Entry],
    runs: Sequence[str],
) -> tuple[list[Row], list[str]]:
    """Run what is missing of the columns `runs`; return all rows, and what could not finish."""
    with console.status("") as line:

        def report(text: str) -> None:
            line.update(text)
            if not console.is_terminal:
                console.print(text)

        report("the bare model")
        points = prepare(setting, controls)
        failed = attack(setting, points, entries, runs, report)
        return rows(setting, points, entries, report), failed


if __name__ == "__main__":
    main()
