"""What caution costs where nothing is wrong: the suite adaptive beside fast.

    python -m benchmarks.caution                      # healthy bundled models, on 1,000 points each
    python -m benchmarks.caution --models pgd_at --n 200 --check

Both suites run on the same points of each model. Counted are forward and backward passes, which do
not depend on how busy the machine is.

Exits with 1, under --check, when a model that raises no flag before the attacks costs more than
1.25 times the passes of fast.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

from robustkit.data.dataset import Dataset
from robustkit.data.open import open_dataset
from robustkit.errors import RobustkitError
from robustkit.evaluation.evaluate import evaluate
from robustkit.models.load import load_model
from robustkit.record.record import Record

MOST = 1.25
HEALTHY = "undefended,pgd_at,trades,doubly_robust,ibp"


@dataclass
class Pair:
    """One model under both suites; passes are forward and backward ones per point."""

    model: str
    n: int
    fast: float
    adaptive: float
    fast_robust: float
    adaptive_robust: float
    lost: int
    """How many points fast breaks and adaptive does not."""
    flags: list[str]

    @property
    def ratio(self) -> float:
        """Passes of adaptive over those of fast."""
        return self.adaptive / self.fast


def _passes(record: Record) -> float:
    return (record.forwards + record.backwards) / record.n


def _compare(name: str, data: Dataset, threat: str, n: int, folder: Path) -> Pair:
    model = load_model(name, data=data).model
    fast, adaptive = (
        evaluate(model, name=name, data=data, threat=threat, n=n, suite=suite,
                 folder=folder / f"{name}-{suite}", progress=sys.stderr.isatty())
        for suite in ("fast", "adaptive")
    )  # fmt: skip
    lost = sum(adaptive.outcomes[p] and not stands for p, stands in fast.outcomes.items())
    return Pair(name, fast.n, _passes(fast), _passes(adaptive), fast.robust, adaptive.robust,
                lost, [flag.name for flag in adaptive.flags])  # fmt: skip


@click.command()
@click.option("--models", default=HEALTHY, show_default=True)
@click.option("--n", default=1000, show_default=True)
@click.option("--data", "data_name", default="bundled", show_default=True)
@click.option("--data-root", type=click.Path(path_type=Path), envvar="ROBUSTKIT_DATA")
@click.option("--threat", default="linf:0.1", show_default=True)
@click.option("--threads", type=int, default=None)
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Keep the runs here.")
@click.option("--json", "as_json", is_flag=True)
@click.option("--check", is_flag=True, help=f"Exit with 1 when a ratio exceeds {MOST}.")
def main(
    models: str,
    n: int,
    data_name: str,
    data_root: Path | None,
    threat: str,
    threads: int | None,
    out: Path | None,
    as_json: bool,
    check: bool,
) -> None:
    """Count the passes of adaptive and of fast on models whose gradients are sound."""
    if threads:
        torch.set_num_threads(threads)
    try:
        data = open_dataset(data_name, root=data_root)
        with tempfile.TemporaryDirectory() as scratch:
            place = out or Path(scratch)
            pairs = [_compare(m.strip(), data, threat, n, place) for m in models.split(",")]
    except RobustkitError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps([{**asdict(pair), "ratio": pair.ratio} for pair in pairs]))
    else:
        Console(width=max(110, Console().width)).print(_table(pairs))
    if check and any(pair.ratio > MOST for pair in pairs):
        sys.exit(1)


def _table(pairs: list[Pair]) -> Table:
    table = Table(title="passes per point, forward and backward")
    for heading in ("model", "n", "fast", "adaptive", "ratio", "robust: fast", "adaptive", "lost",
                    "flags"):  # fmt: skip
        table.add_column(heading, justify="left" if heading in ("model", "flags") else "right")
    for pair in pairs:
        table.add_row(
            pair.model, str(pair.n), f"{pair.fast:.1f}", f"{pair.adaptive:.1f}",
            f"{pair.ratio:.2f}", f"{pair.fast_robust:.4f}", f"{pair.adaptive_robust:.4f}",
            str(pair.lost), ", ".join(pair.flags) or "–",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    main()
