"""The suite fast beside parity on ten robust networks of different width, training and eps.

    python -m benchmarks.robust_nets --data-root DATA --out DIR            # trains them first
    python -m benchmarks.robust_nets --data-root DATA --out DIR --report   # what is there

The same command again goes on where it was stopped. Counted are forward and backward passes, which
do not depend on how busy the machine is. The reference AutoAttack spends more than parity on the
same points (10,666 passes where parity spends 9,731), so that a share of parity's passes is an
upper bound of the share of AutoAttack's. One network is attacked at twice the eps it was trained
for as well, where most points lie near the decision boundary. An *audited point* costs fast the
given share of what it costs parity, by the early ends of its runs.

Exits with 1, under --check, when fast leaves more than one point more than parity on a network,
when its passes exceed a sixth of parity's there, or a twelfth in the median of the networks; with 2
when there is nothing to report.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks.options import POSITIVE, names_of, nothing_run
from robustkit.core.spec import Spec
from robustkit.data.open import open_dataset
from robustkit.errors import RobustkitError
from robustkit.evaluation.evaluate import evaluate
from robustkit.models.load import load_model
from robustkit.record.record import Record, load
from robustkit.record.schema import Stage

WORST, MEDIAN, POINTS = 6, 12, 1
SUITES = ("parity", "fast")


@dataclass(frozen=True)
class Net:
    """One network and the linf eps that it is attacked at."""

    name: str
    spec: str
    data: str
    epochs: int
    eps: float


NETS = (
    Net("a", "pgd_at(width=8, eps=0.1)", "fashion_mnist", 2, 0.1),
    Net("b", "pgd_at(width=32, eps=0.05)", "fashion_mnist", 2, 0.05),
    Net("b", "pgd_at(width=32, eps=0.05)", "fashion_mnist", 2, 0.1),
    Net("c", "trades(width=16, eps=0.1)", "fashion_mnist", 2, 0.1),
    Net("d", "pgd_at(width=16, eps=0.2)", "fashion_mnist", 2, 0.2),
    Net("e", "pgd_at(width=8, eps=0.2)", "mnist", 2, 0.2),
    Net("f", "trades(width=8, eps=0.05)", "fashion_mnist", 2, 0.05),
    Net("g", "trades(width=16, eps=0.2)", "mnist", 2, 0.2),
    Net("h", "doubly_robust(width=16, eps=0.1)", "fashion_mnist", 2, 0.1),
    Net("i", "pgd_at(width=16, eps=0.015686)", "cifar10", 3, 4 / 255),
    Net("j", "trades(width=16, eps=0.0078431)", "cifar10", 3, 2 / 255),
)


def _train(net: Net, root: Path, out: Path) -> Path:
    """Train unless it is done; a training that was stopped goes on."""
    folder = out / "nets" / net.name
    if not (folder / "card.json").is_file():
        command = [sys.executable, "-m", "robustkit", "train", net.spec, "--data", net.data]
        command += ["--data-root", str(root), "--epochs", str(net.epochs), "--out", str(folder)]
        subprocess.run(command, check=True)
    return folder / "model.safetensors"


def _folder(net: Net, suite: str, n: int, out: Path) -> Path:
    return out / "runs" / f"{suite}-{net.name}-{net.eps:.4g}-{n}"


def _run(net: Net, suite: str, n: int, root: Path, out: Path) -> None:
    weights = _train(net, root, out)
    data = open_dataset(net.data, root=root)
    # The options of the training are not those of the network; the weights decide the rest.
    width = dict(Spec.parse(net.spec).options)["width"]
    spec = f"{net.spec.partition('(')[0]}(width={width})"
    model = load_model(spec, weights=weights, data=data).model
    evaluate(model, data, f"linf:{net.eps}", n=n, suite=suite, folder=_folder(net, suite, n, out),
             name=spec, device="cpu", progress=sys.stderr.isatty())  # fmt: skip


def _pairs(n: int, out: Path) -> Iterator[tuple[Net, Record, Record]]:
    """The networks that both suites have attacked."""
    for net in NETS:
        files = [_folder(net, suite, n, out) / "record.json" for suite in SUITES]
        if all(file.is_file() for file in files):
            parity, fast = map(load, files)
            yield net, parity, fast


def _passes(record: Record) -> float:
    return (record.forwards + record.backwards) / record.n


def _per_point(stages: Sequence[Stage]) -> float:
    """Passes on one point that goes through all of these attacks."""
    given = [stage for stage in stages if stage.entered]
    return sum((stage.forwards + stage.backwards) / stage.entered for stage in given)


def _lost(parity: Record, fast: Record) -> int:
    """How many points more fast leaves robust."""
    return sum(fast.outcomes.values()) - sum(parity.outcomes.values())


def _table(pairs: list[tuple[Net, Record, Record]]) -> Table:
    table = Table(title="passes per point, forward and backward")
    for heading in ("network", "data", "eps", "n", "clean", "robust: parity", "fast",
                    "points more", "passes: parity", "fast", "ratio", "audited point",
                    "audit"):  # fmt: skip
        left = heading in ("network", "data", "audit")
        table.add_column(heading, justify="left" if left else "right")
    for net, parity, fast in pairs:
        audit, ratio = fast.audit, _passes(parity) / _passes(fast)
        assert audit is not None
        more = f", {audit.pursued_broken} of the next {audit.pursued}" if audit.pursued else ""
        told = f"{audit.near_broken} near and {audit.random_broken} random ones fell{more}"
        table.add_row(
            net.spec, net.data, f"{net.eps:.4g}", str(fast.n), f"{fast.clean:.3f}",
            f"{parity.robust:.3f}", f"{fast.robust:.3f}", f"{_lost(parity, fast):+d}",
            f"{_passes(parity):,.0f}", f"{_passes(fast):,.0f}", f"{ratio:.1f}",
            f"{_per_point(fast.stages[-4:]) / _per_point(parity.stages):.0%}",
            told + (", all attacked" if audit.escalated else ""),
        )  # fmt: skip
    return table


@click.command()
@click.option("--data-root", type=click.Path(path_type=Path), envvar="ROBUSTKIT_DATA")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Nets and runs.")
@click.option("--n", type=POSITIVE, default=300, show_default=True)
@click.option("--suites", default=",".join(SUITES), show_default=True, callback=names_of(SUITES))
@click.option("--report", is_flag=True, help="Run nothing; show what is there.")
@click.option("--check", is_flag=True, help="Exit with 1 when a target is missed.")
def main(
    data_root: Path | None, out: Path, n: int, suites: list[str], report: bool, check: bool
) -> None:
    """Compare verdicts and passes of fast and parity."""
    if not report:
        if data_root is None:
            raise click.UsageError("expected --data-root, or ROBUSTKIT_DATA, for the trainings")
        try:
            for net in NETS:
                for suite in suites:
                    _run(net, suite, n, data_root, out)
        except (RobustkitError, subprocess.CalledProcessError) as error:
            raise click.ClickException(str(error)) from None
    pairs = list(_pairs(n, out))
    if report and not pairs:
        raise nothing_run(f"a network that both suites attacked at n = {n}", out)
    if not pairs:
        raise click.ClickException(f"{out} holds no network that both suites attacked at n = {n}")
    Console(width=max(190, Console().width)).print(_table(pairs))
    ratios = [_passes(parity) / _passes(fast) for _, parity, fast in pairs]
    most = max(_lost(parity, fast) for _, parity, fast in pairs)
    audits = [_per_point(f.stages[-4:]) / _per_point(p.stages) for _, p, f in pairs]
    click.echo(f"an audited point costs fast {statistics.median(audits):.0%} of what it costs "
               f"parity in the median, {max(audits):.0%} at most (aim 33%)")  # fmt: skip
    click.echo(f"parity's passes over fast's: median {statistics.median(ratios):.1f} (aim "
               f"{MEDIAN}), least {min(ratios):.1f} (aim {WORST}); fast leaves at most {most} "
               f"points more on a network (aim {POINTS})")  # fmt: skip
    short = min(ratios) < WORST or statistics.median(ratios) < MEDIAN or most > POINTS
    if check and short:
        sys.exit(1)


if __name__ == "__main__":
    main()
