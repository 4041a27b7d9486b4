"""What a whole security curve costs, and how close the minimum-norm searches come.

    python -m benchmarks.curve                          # bundled models: a grid beside single runs
    python -m benchmarks.curve --distances --norm l2    # DDN, FMN, sigma-zero beside Foolbox

Without --distances, every model is evaluated at each eps by itself and then at all of them in one
run, with the same suite. With it, searches seek the nearest adversarial inputs of the same points
with the same number of steps in both libraries; that needs the extra `foolbox`, which has no
sigma-zero: its FMN stands in.
"""

from __future__ import annotations

import importlib
import json
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from robustkit.core.packages import install_command
from robustkit.core.threat import Norm, Threat
from robustkit.data.dataset import Dataset, select
from robustkit.data.open import open_dataset
from robustkit.errors import RobustkitError
from robustkit.evaluation.eps_grid import evaluate_grid
from robustkit.evaluation.evaluate import evaluate
from robustkit.models.load import Subject, bundled, load_model
from robustkit.registry import attacks
from robustkit.search.functional import attack
from robustkit.search.pass_counter import PassCounter

_GRIDS: dict[str, str] = {
    "linf": "0.02,0.04,0.06,0.08,0.1",
    "l2": "0.25,0.5,0.75,1,1.25",
    "l1": "1,2,4,6,8",
    "l0": "1,2,5,10,20",
}
_REFERENCE = {
    "linf": "LInfFMNAttack",
    "l2": "L2FMNAttack",
    "l1": "L1FMNAttack",
    "l0": "L0FMNAttack",
}


@dataclass
class Curve:
    """One model: every eps by itself against all in one run."""

    model: str
    n: int
    norm: str
    grid: list[float]
    single: list[float]
    """Robust accuracies of the single runs."""
    together: list[float]
    only_grid_broke: list[int]
    only_single_broke: list[int]
    forwards_single: list[float]
    """Per point, of each single run."""
    forwards_grid: float
    """Per point, of the whole grid."""
    seconds_single: float
    seconds_grid: float

    @property
    def ratio(self) -> float:
        """Cost of the grid over that of the dearest single run."""
        return self.forwards_grid / max(self.forwards_single)


@dataclass
class Reached:
    """What one search found on the points that are classified correctly."""

    model: str
    norm: str
    search: str
    found: float
    median: float
    mean: float
    forwards: float
    backwards: float
    seconds: float


def compare(
    subject: Subject, data: Dataset, norm: Norm, grid: list[float], n: int, suite: str, device: str
) -> Curve:
    """Evaluate at each eps, then at all of them."""
    common: dict[str, Any] = {
        "name": subject.name, "data": data, "suite": suite, "n": n, "device": device,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        clock = time.perf_counter()
        records = evaluate_grid(
            subject.model, threat=Threat(norm, 1.0), grid=grid, folder=Path(folder), **common
        )
        together = time.perf_counter() - clock
    singles, clock = [], time.perf_counter()
    for eps in grid:
        with tempfile.TemporaryDirectory() as folder:
            singles.append(
                evaluate(subject.model, threat=Threat(norm, eps), folder=Path(folder), **common)
            )
    pairs = [(a.outcomes, b.outcomes) for a, b in zip(records, singles, strict=True)]
    return Curve(
        model=subject.name,
        n=n,
        norm=norm,
        grid=grid,
        single=[record.robust for record in singles],
        together=[record.robust for record in records],
        only_grid_broke=[sum(b[i] and not a[i] for i in a) for a, b in pairs],
        only_single_broke=[sum(a[i] and not b[i] for i in a) for a, b in pairs],
        forwards_single=[record.forwards_per_point for record in singles],
        forwards_grid=sum(record.forwards_per_point for record in records),
        seconds_single=time.perf_counter() - clock,
        seconds_grid=together,
    )


def distances(subject: Subject, x: Tensor, y: Tensor, norm: Norm, steps: int) -> list[Reached]:
    """Let ours and theirs seek the nearest adversarial inputs of the same points."""
    model = subject.model.eval()
    right = model(x).argmax(1) == y
    x, y = x[right], y[right]
    ours = {
        "linf": [f"fmn(steps={steps})", f"fmn(gamma=0.05, relative=false, steps={steps})"],
        "l2": [f"ddn(steps={steps})", f"fmn(steps={steps})"],
        "l1": [f"fmn(steps={steps})"],
        "l0": [f"sigma_zero(steps={steps})", f"fmn(steps={steps})"],
    }[norm]
    rows = [
        _measure(subject.name, norm, spec, model, x, y, lambda m, s=spec: _ours(m, x, y, s, norm))
        for spec in ours
    ]
    for name in (["DDNAttack"] if norm == "l2" else []) + [_REFERENCE[norm]]:
        rows.append(
            _measure(
                subject.name, norm, f"foolbox {name}({steps})", model, x, y,
                lambda m, name=name: _theirs(m, x, y, name, steps),
            )
        )  # fmt: skip
    return rows


def _ours(model: nn.Module, x: Tensor, y: Tensor, spec: str, norm: Norm) -> Tensor:
    threat = Threat.whole(norm, x[0].numel())
    return attack(model, x, y, attacks.build(spec), threat, nearest=True)


def _theirs(model: nn.Module, x: Tensor, y: Tensor, name: str, steps: int) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        foolbox: Any = importlib.import_module("foolbox")

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        search = getattr(foolbox.attacks, name)(steps=steps)
        found: Tensor = search(wrapped, x, y, epsilons=None)[1]
    return found


def _measure(
    model_name: str, norm: Norm, name: str, model: nn.Module, x: Tensor, y: Tensor, run: Any
) -> Reached:
    counted = PassCounter(model).eval()
    clock = time.perf_counter()
    z = run(counted)
    seconds = time.perf_counter() - clock
    threat = Threat(norm, 1.0)
    fooled = (model(z).argmax(1) != y) & ((z >= 0) & (z <= 1)).flatten(1).all(1)
    away = torch.where(fooled, threat.distance(z, x), torch.inf)
    n = len(x)
    return Reached(
        model=model_name,
        norm=norm,
        search=name,
        found=float(fooled.double().mean()),
        median=float(away.median()),
        mean=float(away[fooled].mean()),
        forwards=counted.forwards / n,
        backwards=counted.backwards / n,
        seconds=seconds,
    )


def _curve_table(rows: list[Curve], suite: str) -> Table:
    table = Table(title=f"{suite}: one run over {len(rows[0].grid)} eps / single runs")
    for column in (
        *("model", "n", "eps", "robust accuracy", "only grid broke", "only single broke"),
        "F/pt single",
    ):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        columns = zip(
            row.grid, row.together, row.single, row.only_grid_broke, row.only_single_broke,
            row.forwards_single, strict=True,
        )  # fmt: skip
        for eps, ours, alone, more, less, forwards in columns:
            table.add_row(
                row.model, str(row.n), f"{eps:.4g}", f"{ours:.4f} / {alone:.4f}", str(more),
                str(less), f"{forwards:.1f}",
            )  # fmt: skip
        table.add_row(
            "", "", "all", f"{row.seconds_grid:.0f} s / {row.seconds_single:.0f} s", "", "",
            f"grid {row.forwards_grid:.1f} = {row.ratio:.2f} ×",
        )  # fmt: skip
        table.add_section()
    return table


def _distance_table(rows: list[Reached]) -> Table:
    table = Table(title="distance to the nearest adversarial input")
    columns = ("model", "norm", "search", "found", "median", "mean", "F/pt", "B/pt", "seconds")
    for column in columns:
        table.add_column(column, justify="left" if column in ("model", "search") else "right")
    for row in rows:
        table.add_row(
            row.model, row.norm, row.search, f"{row.found:.3f}", f"{row.median:.4g}",
            f"{row.mean:.4g}", f"{row.forwards:.1f}", f"{row.backwards:.1f}", f"{row.seconds:.1f}",
        )  # fmt: skip
    return table


@click.command()
@click.option("--model", "models", multiple=True, help="Registered model. Default: all bundled.")
@click.option("--data", "data_name", default="bundled", show_default=True)
@click.option("--data-root", type=click.Path(path_type=Path), envvar="ROBUSTKIT_DATA")
@click.option("--norm", type=click.Choice(list(_GRIDS)), default="linf", show_default=True)
@click.option("--eps-grid", help="Comma-separated; by default five that suit the bundled images.")
@click.option("--suite", default="quick", show_default=True)
@click.option("--n", default=200, show_default=True)
@click.option("--distances", "seek", is_flag=True, help="Compare minimum-norm searches instead.")
@click.option("--steps", default=100, show_default=True, help="Of the minimum-norm searches.")
@click.option("--threads", type=int, default=None)
@click.option("--device", default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(
    models: tuple[str, ...],
    data_name: str,
    data_root: Path | None,
    norm: Norm,
    eps_grid: str | None,
    suite: str,
    n: int,
    seek: bool,
    steps: int,
    threads: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Measure a security curve in one run, or the minimum-norm searches."""
    if threads:
        torch.set_num_threads(threads)
    console = Console(stderr=as_json, width=max(130, Console().width))
    rows: list[Any] = []
    try:
        data = open_dataset(data_name, root=data_root)
        subjects = [load_model(name, data=data) for name in models or bundled(data)]
        x, y = data.fetch(select(data, n, 0))
        grid = sorted(float(eps) for eps in (eps_grid or _GRIDS[norm]).split(","))
        for subject in subjects:
            if seek:
                found = distances(subject, x, y, norm, steps)
                console.print(_distance_table(found))
                rows += found
            else:
                rows.append(compare(subject, data, norm, grid, n, suite, device))
                console.print(_curve_table(rows[-1:], suite))
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{error.name} is missing: {install_command('foolbox')}"
        ) from None
    except RobustkitError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
