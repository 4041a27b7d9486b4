"""What the outer loss does to robustness: the same network, steps and epochs under each loss.

    python -m benchmarks.losses --data-root DATA --out runs/losses            # every row, 3 seeds
    python -m benchmarks.losses --data-root DATA --out runs/losses --seeds 1  # that seed alone
    python -m benchmarks.losses --out runs/losses --table                     # what is done so far

Every network is trained on Fashion-MNIST and evaluated by `fast`, and by PGD-20 on cross-entropy
alone, at linf 0.1 on test points: what the latter misses is masking. It goes on where it was
stopped, inside a training and inside an evaluation; several may run at once, each with seeds of its
own. OUT/table.md compares every row with `trades` on the same points. About half an hour of a core
that does nothing else, by the processor seconds of single networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch

from robustkit.core import files
from robustkit.core.spec import Spec
from robustkit.core.stats import mcnemar, mean_interval
from robustkit.core.text import slug
from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset
from robustkit.data.open import open_dataset
from robustkit.evaluation.evaluate import evaluate
from robustkit.models.load import load_model
from robustkit.models.training import Recipe, fit
from robustkit.record.points import ROBUST
from robustkit.record.record import Record, load
from robustkit.registry import defenses

BASE = "trades"
ROWS = (
    BASE,
    "trades(beta=0.5, loss=smooth_comp_sum)",
    "trades(beta=1, loss=smooth_comp_sum)",
    "pgd_at",
    "pgd_at(loss=comp_sum(tau=1.5))",
    "pgd_at(loss=ldr(lam=1))",
    "pgd_at(loss=aldr_kl)",
    "pgd_at(loss=ensloss)",
    "pgd_at(loss=z_loss)",
    "undefended",
    "undefended(loss=ensloss)",
    "undefended(loss=z_loss)",
)
MASKED = 0.06
FIGURES = ("clean", "robust", "worst class", "PGD-20")
LINE_UPS: dict[str, dict[str, Any]] = {
    "fast": {"suite": "fast"},
    "pgd20": {"attacks": ["pgd(steps=20)"]},
}
_SEEDS = (0, 1, 2)


class Setting(NamedTuple):
    """What all rows share."""

    epochs: int
    batch_size: int
    width: int
    steps: int
    n: int
    eps: float

    def spec(self, row: str) -> Spec:
        """Return the defense of a row in this setting."""
        name, options = Spec.parse(row)
        shared = {"width": self.width, "eps": self.eps, "steps": self.steps}
        known = defenses.entry(name).options
        given = dict(options) | {key: value for key, value in shared.items() if key in known}
        return Spec(name, tuple(sorted(given.items())))


def cell(out: Path, row: str, seed: int) -> Path:
    """Return the folder of one network."""
    return out / slug(row) / f"seed-{seed}"


def train(row: str, seed: int, setting: Setting, data: Dataset, folder: Path) -> Path:
    """Train one network, or finish it; return its weights."""
    spec = setting.spec(row)
    recipe = Recipe(epochs=setting.epochs, batch_size=setting.batch_size)
    identity = {
        "defense": str(spec), "points": len(data), "epochs": recipe.epochs,
        "batch size": recipe.batch_size, "seed": seed,
    }  # fmt: skip
    weights = folder / "model.safetensors"
    if not weights.exists():
        cpu = torch.device("cpu")
        for _ in fit(
            defenses.build(spec),
            data,
            folder,
            recipe=recipe,
            seed=seed,
            device=cpu,
            identity=identity,
        ):
            pass
    return weights


def judge(row: str, seed: int, setting: Setting, data: Dataset, folder: Path) -> None:
    """Evaluate one network by every line-up, or finish that; the points are the same for all."""
    spec = str(setting.spec(row))
    subject = load_model(spec, data=data, weights=folder / "model.safetensors")
    for part, line_up in LINE_UPS.items():
        evaluate(
            subject.model,
            data,
            Threat("linf", setting.eps),
            name=f"{subject.name}, seed {seed}",
            n=setting.n,
            folder=folder / part,
            progress=False,
            **line_up,
        )


class Row(NamedTuple):
    """One loss over its seeds.

    Attributes:
        records: of `fast`.
        pgd20: of PGD-20 alone, on the same networks and points.
    """

    name: str
    records: list[Record]
    pgd20: list[Record]

    def over(self, value: str) -> list[float]:
        """Return a figure of each seed."""
        if value == "worst class":
            return [record.worst_class.accuracy for record in self.records]
        if value == "PGD-20":
            return [record.robust for record in self.pgd20]
        return [getattr(record, value) for record in self.records]

    def outcomes(self, value: str) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """Return what came of each point [seeds, n], 1 for right."""
        found = []
        for record in self.records:
            status = dict(zip(record.points.index, record.points.status, strict=True))
            good = ROBUST if value == "robust" else (*ROBUST, "broken")
            found.append([status[index] in good for index in sorted(status)])
        return np.array(found, dtype=float)


def finished(out: Path, seeds: Sequence[int]) -> list[Row]:
    """Read the rows all of whose seeds are done."""
    rows = []
    for row in ROWS:
        places = [[cell(out, row, seed) / part / "record.json" for seed in seeds]
                  for part in LINE_UPS]  # fmt: skip
        if all(path.exists() for paths in places for path in paths):
            rows.append(Row(row, *(list(map(load, paths)) for paths in places)))
    return rows


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """Write the table, in Markdown."""
    base = next((row for row in rows if row.name == BASE), None)
    if base is None:
        return
    heads = ("loss", *FIGURES, "clean − trades", "robust − trades", "p by seed", "both at least")
    yield f"| {' | '.join(heads)} |"
    yield f"| {' | '.join(['---'] * len(heads))} |"
    for row in rows:
        cells = [f"`{row.name}`", *(_spread(row.over(value)) for value in FIGURES)]
        cells[-1] += " (masked)" * masked(row)
        if row is base:
            cells += ["", "", "", ""]
        else:
            gains = [row.outcomes(v) - base.outcomes(v) for v in ("clean", "robust")]
            holds = all(gain.mean() >= 0 for gain in gains)
            cells += [*map(_difference, gains), _tests(gains[1]), "yes" if holds else "no"]
        yield f"| {' | '.join(cells)} |"


def masked(row: Row) -> bool:
    """Whether PGD-20 on cross-entropy leaves over 6 points more than `fast`: it is misled."""
    return bool(np.mean(row.over("PGD-20")) - np.mean(row.over("robust")) > MASKED)


def _spread(values: Sequence[float]) -> str:
    sd = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{sd}"


def _difference(gain: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> str:
    """Mean over seeds and points, with the 95% interval over points."""
    # Halved and shifted into [0, 1], the range that `mean_interval` is for.
    _, (low, high) = mean_interval(((1 + gain.mean(0)) / 2).tolist())
    return f"{gain.mean():+.3f} ({2 * low - 1:+.3f} to {2 * high - 1:+.3f})"


def _tests(gain: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> str:
    """McNemar's exact test of the robust points of each seed."""
    found = [mcnemar(int((of > 0).sum()), int((of < 0).sum())) for of in gain]
    return ", ".join("<0.001" if p < 0.001 else f"{p:.3f}" for p in found)


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--data-root", type=click.Path(path_type=Path))
@click.option("--seeds", default=",".join(map(str, _SEEDS)), show_default=True)
@click.option("--rows", default="", help="Only those whose spec contains this.")
@click.option("--epochs", default=1, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--width", default=8, show_default=True)
@click.option("--steps", default=5, show_default=True, help="Of PGD, in training.")
@click.option("--n", default=1000, show_default=True, help="Test points.")
@click.option("--eps", default=0.1, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--table", "only_table", is_flag=True, help="Train and evaluate nothing.")
def main(
    out: Path, data_root: Path | None, seeds: str, rows: str, threads: int, only_table: bool,
    **setting: Any,
) -> None:  # fmt: skip
    """Train, evaluate, write the table."""
    torch.set_num_threads(threads)
    shared, asked = Setting(**setting), [int(seed) for seed in seeds.split(",")]
    if not only_table:
        parts = {
            split: open_dataset("fashion_mnist", root=data_root, split=split)
            for split in ("train", "test")
        }
        for seed in asked:
            for row in (row for row in ROWS if rows in row):
                folder = cell(out, row, seed)
                train(row, seed, shared, parts["train"], folder)
                judge(row, seed, shared, parts["test"], folder)
                found = load(folder / "fast" / "record.json")
                click.echo(f"{row}, seed {seed}: clean {found.clean:.3f} robust {found.robust:.3f}")
    text = "\n".join(lines(finished(out, asked)))
    files.write(f"{text}\n".encode(), out / "table.md")
    click.echo(text)


if __name__ == "__main__":
    main()
