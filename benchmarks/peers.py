"""robustkit's attacks beside the same attacks of other libraries: same models, points, settings.

    python -m benchmarks.peers                        # 100 points of three bundled models
    python -m benchmarks.peers --n 50 --only PGD --model trades --json

Needs the extras `torchattacks`, `foolbox` and `autoattack`; pairs of a library that is not
installed are left out, and named. Both sides of a pair run alone, through the same evaluation:
the same points, the same verdicts, passes counted inside the model. Ours is called weaker where
the peer breaks more points at equal settings, and the exact McNemar test at 5% tells the
difference from chance. Ours stops at the first success on a point, which lowers its passes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import click
import torch
from rich.console import Console
from rich.table import Table

from robustkit.core import stats
from robustkit.core.spec import Spec
from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset
from robustkit.data.open import open_dataset
from robustkit.errors import RobustkitError, UsageError
from robustkit.evaluation.evaluate import evaluate
from robustkit.models.load import Subject, load_model
from robustkit.record.record import Record
from robustkit.registry import attacks

_MODELS = ("undefended", "pgd_at", "trades")


class Pair(NamedTuple):
    """The same attack twice: ours and a peer's, under one norm."""

    what: str
    norm: str
    ours: str
    peer: str


def pairs(eps: dict[str, float]) -> list[Pair]:
    """List the pairs with equal settings; step sizes are a tenth of eps."""
    linf, l2 = eps["linf"] / 10, eps["l2"] / 10
    pgd = "pgd(steps=40, step_size=0.1, random_start=true)"
    apgd_t = "apgd(loss=targeted_dlr, steps=20, targets=3)"
    return [
        Pair("FGSM", "linf", "fgsm", "torchattacks:FGSM"),
        Pair("FGSM", "linf", "fgsm", "foolbox:LinfFastGradientAttack"),
        Pair("PGD", "linf", pgd, f"torchattacks:PGD(steps=40, alpha={linf})"),
        Pair("PGD", "linf", pgd, "foolbox:LinfPGD(steps=40, rel_stepsize=0.1)"),
        Pair("PGD", "l2", pgd, f"torchattacks:PGDL2(steps=40, alpha={l2})"),
        Pair("PGD", "l2", pgd, "foolbox:L2PGD(steps=40, rel_stepsize=0.1)"),
        Pair("PGD", "l1", pgd, "foolbox:L1PGD(steps=40, rel_stepsize=0.1)"),
        Pair("APGD-CE", "linf", "apgd(steps=50)", "torchattacks:APGD(steps=50)"),
        Pair("APGD-CE", "linf", "apgd(steps=50)", "autoattack:apgd-ce(steps=50)"),
        Pair("APGD-CE", "l2", "apgd(steps=50)", "autoattack:apgd-ce(steps=50)"),
        Pair("APGD-DLR", "linf", "apgd(loss=dlr, steps=50)", "autoattack:apgd-dlr(steps=50)"),
        Pair("APGD-T", "linf", apgd_t, "autoattack:apgd-t(steps=20, targets=3)"),
        Pair("FAB-T", "linf", "fab(steps=30, targets=3)", "autoattack:fab-t(steps=30, targets=3)"),
        Pair("Square", "linf", "square(queries=500)", "autoattack:square(queries=500)"),
        Pair("Square", "linf", "square(queries=500)",
             "torchattacks:Square(n_queries=500, resc_schedule=false)"),
    ]  # fmt: skip


@dataclass
class Result:
    """One row of the table; costs are passes per point that was attacked."""

    what: str
    threat: str
    model: str
    peer: str
    n: int
    ours: float
    theirs: float
    only_ours_broke: int
    only_peer_broke: int
    forwards: tuple[float, float]
    backwards: tuple[float, float]
    seconds: tuple[float, float]
    p: float
    weaker: bool

    @property
    def ratio(self) -> float:
        """Time of the peer / time of ours."""
        return self.seconds[1] / self.seconds[0]


def compare(pair: Pair, subject: Subject, data: Dataset, threat: Threat, n: int) -> Result:
    """Run both sides on the same points."""
    records = [_run(spec, subject, data, threat, n) for spec in (pair.ours, pair.peer)]
    both = list(zip(*(list(record.outcomes.values()) for record in records), strict=True))
    mine, theirs = both.count((False, True)), both.count((True, False))
    stages = [record.stages[0] for record in records]
    forwards, backwards = (
        tuple(getattr(stage, side) / max(1, stage.entered) for stage in stages)
        for side in ("forwards", "backwards")
    )
    p = stats.mcnemar(mine, theirs)
    return Result(
        pair.what, str(threat), subject.name, pair.peer, n, records[0].robust, records[1].robust,
        mine, theirs, (forwards[0], forwards[1]), (backwards[0], backwards[1]),
        (stages[0].seconds, stages[1].seconds), p, theirs > mine and p < 0.05,
    )  # fmt: skip


def _run(spec: str, subject: Subject, data: Dataset, threat: Threat, n: int) -> Record:
    with tempfile.TemporaryDirectory() as folder:
        return evaluate(
            subject.model, name=subject.name, data=data, threat=threat, attacks=[spec],
            n=n, folder=Path(folder),
        )  # fmt: skip


def runnable(chosen: list[Pair], eps: dict[str, float]) -> Iterator[Pair]:
    """Leave out, with a word, what a library that is not installed would be needed for."""
    for pair in chosen:
        try:
            threat = Threat.parse(f"{pair.norm}:{eps[pair.norm]}")
            attacks.build(Spec.parse(pair.peer)).jobs(threat, 10)
        except UsageError as error:
            if "is not installed" not in str(error):
                raise
            click.echo(f"left out: {pair.what}: {error}", err=True)
            continue
        yield pair


def _table(rows: list[Result]) -> Table:
    table = Table(title="robustkit / peer")
    for heading in ("attack", "threat", "model", "peer", "robust", "only ours / peer broke",
                    "F per point", "B per point", "time ratio", "verdict"):  # fmt: skip
        table.add_column(heading, overflow="fold")
    for row in rows:
        verdict = "WEAKER" if row.weaker else "equal" if row.p >= 0.05 else "differs"
        table.add_row(
            row.what, row.threat, row.model, row.peer.partition("(")[0],
            f"{row.ours:.3f} / {row.theirs:.3f}",
            f"{row.only_ours_broke} / {row.only_peer_broke}",
            f"{row.forwards[0]:.1f} / {row.forwards[1]:.1f}",
            f"{row.backwards[0]:.1f} / {row.backwards[1]:.1f}",
            f"{row.ratio:.2f}", verdict,
        )  # fmt: skip
    return table


@click.command()
@click.option("--model", "models", multiple=True, default=_MODELS, show_default=True)
@click.option("--only", multiple=True, help="Attacks to compare, such as PGD. Default: all.")
@click.option("--linf", default=0.1, show_default=True, help="eps of the linf pairs.")
@click.option("--l2", default=1.0, show_default=True)
@click.option("--l1", default=8.0, show_default=True)
@click.option("--n", default=100, show_default=True)
@click.option("--threads", type=int, default=None)
@click.option("--json", "as_json", is_flag=True)
def main(
    models: tuple[str, ...],
    only: tuple[str, ...],
    linf: float,
    l2: float,
    l1: float,
    n: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Compare attacks with their peers; exit code 1 when one of ours is weaker at equal cost."""
    if threads:
        torch.set_num_threads(threads)
    console = Console(stderr=as_json, width=max(170, Console().width))
    eps = {"linf": linf, "l2": l2, "l1": l1}
    rows = []
    try:
        data = open_dataset("bundled")
        chosen = [pair for pair in pairs(eps) if not only or pair.what in only]
        usable = list(runnable(chosen, eps))
        for name in models:
            subject = load_model(name, data=data)
            for pair in usable:
                threat = Threat.parse(f"{pair.norm}:{eps[pair.norm]}")
                rows.append(compare(pair, subject, data, threat, n))
            console.print(_table([row for row in rows if row.model == subject.name]))
    except (UsageError, RobustkitError) as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows]))
    raise SystemExit(1 if any(row.weaker for row in rows) else 0)


if __name__ == "__main__":
    main()
