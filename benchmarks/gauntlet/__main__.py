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

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
import torch
from rich.console import Console

from benchmarks.gauntlet.rows import Row, Summary, summarize
from benchmarks.gauntlet.run import COLUMNS, REFERENCES, attack, chosen, rows
from benchmarks.gauntlet.setting import Setting, prepare
from benchmarks.gauntlet.table import account, markdown, table
from benchmarks.gauntlet.wrapper import Entry
from benchmarks.options import listed
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
@click.option("--n", default=200, show_default=True, help="Points of the data set.")
@click.option(
    "--controls",
    default="8",
    show_default=True,
    help="How many points that the bare model keeps are attacked too, or all.",
)
@click.option("--only", default="", help="Wrappers or families, separated by commas.")
@click.option("--skip", default="", help="Likewise, to leave out.")
@click.option("--columns", default="", help=f"Of {','.join(COLUMNS)}; by default all.")
@click.option("--skip-reference", is_flag=True, help="Leave pyautoattack out.")
@click.option("--report", "only_report", is_flag=True, help="Run nothing; show what is there.")
@click.option("--model", "model_name", default="pgd_at", show_default=True)
@click.option("--data", "data_name", default="bundled", show_default=True)
@click.option("--data-root", type=click.Path(path_type=Path), envvar="ROBUSTKIT_DATA")
@click.option("--threat", default="linf:0.1", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", type=int, default=None)
@click.option("--device", default="auto", show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("robustkit-runs/gauntlet"),
    show_default=True,
)
@click.option("--json", "as_json", is_flag=True)
@click.option("--markdown", "as_markdown", is_flag=True)
@click.option("--check", is_flag=True, help="Exit with 1 when a target is missed.")
def main(
    n: int,
    controls: str,
    only: str,
    skip: str,
    columns: str,
    skip_reference: bool,
    only_report: bool,
    model_name: str,
    data_name: str,
    data_root: Path | None,
    threat: str,
    seed: int,
    threads: int | None,
    device: str,
    out: Path,
    as_json: bool,
    as_markdown: bool,
    check: bool,
) -> None:
    """Wrap a robust model in defenses that mask its gradient, and see who is fooled."""
    if threads:
        torch.set_num_threads(threads)
    console = Console(stderr=True)
    try:
        data = open_dataset(data_name, root=data_root)
        ball, asked = Threat.parse(threat), _columns(columns, skip_reference)
        entries = chosen(listed(only), listed(skip))
        bare = load_model(model_name, data=data).model.requires_grad_(False)
        place = f"{model_name}-{data.name}-{ball.norm}-{ball.eps:g}-n{n}-seed{seed}"
        setting = Setting(model_name, bare, data, ball, n, seed, device, out / place, Watcher())
        runs = [] if only_report else asked
        found, failed = _gather(console, setting, controls, entries, runs)
    except UsageError as error:
        raise click.UsageError(str(error)) from None
    except RobustkitError as error:
        console.print(f"could not finish: {error}")
        sys.exit(3)
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{error.name} is missing: {install_command('autoattack')}, or --skip-reference"
        ) from None
    summary = summarize(found)
    title = (f"{model_name}, {data.name}, {ball}, n = {n}: one point of the data is "
             f"{100 / n:g} points of accuracy")  # fmt: skip
    _show(found, summary, asked, title, as_json=as_json, as_markdown=as_markdown)
    for text in failed:
        console.print(f"could not finish: {text}", style="red", highlight=False)
    if failed:
        sys.exit(3)
    if check and not summary.reached:
        sys.exit(1)


def _gather(
    console: Console, setting: Setting, controls: str, entries: Sequence[Entry], runs: Sequence[str]
) -> tuple[list[Row], list[str]]:
    """Run what is missing of the columns `runs`; return all rows, and what could not finish."""
    with console.status("") as line:

        def report(text: str) -> None:
            line.update(text)
            if not console.is_terminal:
                console.print(text)

        report("the bare model")
        points = prepare(setting, None if controls == "all" else int(controls))
        failed = attack(setting, points, entries, runs, report)
        return rows(setting, points, entries, report), failed


def _show(
    found: list[Row], summary: Summary, columns: list[str], title: str, *, as_json: bool,
    as_markdown: bool,
) -> None:  # fmt: skip
    if as_json:
        rows_, total = [asdict(row) for row in found], asdict(summary)
        click.echo(json.dumps({"title": title, "rows": rows_, "summary": total}))
        return
    shown = [c for c in COLUMNS if c in columns or any(c in row.cells for row in found)]
    if as_markdown:
        click.echo(markdown(found, shown))
    else:
        Console(width=max(150, Console().width)).print(table(found, shown, title))
    for line in account(summary, shown):
        click.echo(line)


if __name__ == "__main__":
    main()
