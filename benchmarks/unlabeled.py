"""Does robust self-training on unlabeled images help, in and out of the domain?

Small networks, linf 0.1, m labels. Rows: the m labels alone (`self_training(weight=0)`, which is
pgd_at); self-training on a pool; RST, a pool under the fixed labels of a network trained plainly on
the m labels, with the loss of trades; the pool's own labels as a ceiling. Pools: other images of
the same training set; the same turned by 15 degrees at half the contrast; scikit-learn's digits
(1,797 of other writers, 8 x 8, enlarged). Resumable: the same command goes on. `--mixture` does
the Gaussian mixture of the paper instead, beside its published figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from robustkit import registry
from robustkit.core import files
from robustkit.core.stats import mcnemar
from robustkit.core.text import slug
from robustkit.core.threat import Threat
from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Dataset, select, subset
from robustkit.data.open import open_dataset
from robustkit.data.unlabeled import with_unlabeled
from robustkit.errors import RobustkitError
from robustkit.evaluation.evaluate import evaluate
from robustkit.models.architectures import Normalize
from robustkit.models.load import load_model
from robustkit.models.training import Recipe, fit
from robustkit.record.points import ROBUST
from robustkit.record.record import Record, load
from robustkit.registry import defenses

CPU = torch.device("cpu")
LINE_UP: dict[str, Any] = {"suite": "fast"}
STOPPED = "stopped.txt"
PLAIN = 60_000  # images that the labels' own network sees
METHODS = {
    "labels alone": "self_training(weight=0{})",
    "self-training": "self_training({})",
    "RST": "self_training(base=trades, pseudo=given{})",
    "all labels known": "self_training(pseudo=given{})",
}


class Setting(NamedTuple):
    """What all networks share."""

    eps: float
    width: int
    steps: int
    epochs: int
    batch_size: int
    size: int
    n: int


class Cell(NamedTuple):
    """One network: its data, number of labels, pool and method."""

    data: str
    labels: int
    pool: str
    method: str

    def folder(self, out: Path) -> Path:
        """Return where it lies."""
        return out / slug(f"{self.data}-{self.labels}-{self.pool}-{self.method}")


def cells(data: str) -> Iterator[Cell]:
    """List the networks of a data set."""
    pools = ["same", "shifted", *(["digits"] if data == "mnist" else [])]
    for m in (100, 500, 2000) if data == "mnist" else (500,):
        yield Cell(data, m, "same", "labels alone")
        for pool in pools:
            yield Cell(data, m, pool, "self-training")
            yield Cell(data, m, pool, "RST")
        yield Cell(data, m, "same", "all labels known")


def pool_of(kind: str, train: Dataset, labels: int, size: int) -> Dataset:
    """Return the images without labels; none has one of the labeled points among them."""
    if kind == "digits":
        bunch = import_module("sklearn.datasets").load_digits()
        pictures = [Image.fromarray((image * 15.9375).astype(np.uint8)) for image in bunch.images]
        grown = [np.asarray(one.resize((28, 28), Image.Resampling.BICUBIC)) for one in pictures]
        return from_arrays("digits", np.stack(grown), bunch.target, classes=10)
    rest = np.setdiff1d(np.arange(len(train)), select(train, labels, 0, "balanced"))
    chosen = subset(train, rest[select(subset(train, rest), size, 0)])
    if kind == "same":
        return chosen
    return replace(chosen, read=lambda rows: shifted(chosen.fetch(rows)[0].numpy()))


def shifted(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Turn [b, 1, h, w] by 15 degrees and halve the contrast, around the mean of the image."""
    made = []
    for image in images:
        picture = Image.fromarray(np.round(image[0] * 255).astype(np.uint8))
        turned = np.asarray(picture.rotate(15, resample=Image.Resampling.BILINEAR), dtype=float)
        made.append((turned + turned.mean()) / 2)
    return np.round(np.stack(made)[:, None]).astype(np.uint8)


def trained(spec: str, data: Dataset, folder: Path, recipe: Recipe) -> Path:
    """Train one network, or finish it; return its weights."""
    weights = folder / "model.safetensors"
    if not weights.exists():
        identity = {"defense": spec, "points": len(data), "epochs": recipe.epochs}
        for _ in fit(
            defenses.build(spec), data, folder, recipe=recipe, seed=0, device=CPU, identity=identity
        ):
            pass
    return weights


def guesses(pool: Dataset, train: Dataset, cell: Cell, setting: Setting, out: Path) -> Dataset:
    """Return the pool under the labels of a network trained plainly on the labeled points."""
    few = subset(train, select(train, cell.labels, 0, "balanced"))
    folder = out / slug(f"{cell.data}-{cell.labels}-plain")
    recipe = Recipe(epochs=max(1, PLAIN // cell.labels), batch_size=min(100, cell.labels))
    spec = f"undefended(width={setting.width})"
    model = load_model(spec, data=train, weights=trained(spec, few, folder, recipe)).model
    with torch.no_grad():
        found = [model(pool.fetch(range(at, min(at + 1000, len(pool))))[0]).argmax(1)
                 for at in range(0, len(pool), 1000)]  # fmt: skip
    return replace(subset(pool, range(len(pool))), labels=torch.cat(found).numpy())


def run(cell: Cell, setting: Setting, train: Dataset, test: Dataset, out: Path) -> None:
    """Train and evaluate one network, or finish that."""
    folder = cell.folder(out)
    if any((folder / name).exists() for name in ("evaluation/record.json", STOPPED)):
        return
    shared = f"eps={setting.eps}, steps={setting.steps}, width={setting.width}"
    text = METHODS[cell.method]
    spec = text.format(shared if text.endswith("({})") else f", {shared}")
    pool = pool_of(cell.pool, train, cell.labels, setting.size)
    if cell.method == "RST":
        pool = guesses(pool, train, cell, setting, out)
    data = with_unlabeled(train, cell.labels, pool=pool, test=test)
    # As many steps for every pool: the smaller ones are passed over more often.
    epochs = round(setting.epochs * 2 * setting.size / len(data))
    try:
        weights = trained(spec, data, folder, Recipe(epochs=epochs, batch_size=setting.batch_size))
    except RobustkitError as error:  # the pseudo-labels have collapsed: that is a result
        files.write(str(error).encode(), folder / STOPPED)
        return
    subject = load_model(spec, data=test, weights=weights)
    evaluate(
        subject.model, test, Threat("linf", setting.eps), name=cell.method, n=setting.n,
        folder=folder / "evaluation", progress=False, **LINE_UP,
    )  # fmt: skip


def table(out: Path, names: list[str], pooled: int) -> Iterator[str]:
    """Write what is done, in Markdown."""
    yield "| data | labels | pool | n | method | clean | robust | robust − labels alone (p) |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    every = [cell for name in names for cell in cells(name)]
    for (name, labels), group in groupby(every, key=lambda cell: cell[:2]):
        base: Record | None = None
        for cell in group:
            path = cell.folder(out) / "evaluation" / "record.json"
            alone = cell.method == "labels alone"
            pool = "–" if alone else cell.pool
            size = "–" if alone else f"{1797 if cell.pool == 'digits' else pooled:,}"
            begin = f"| {name} | {labels} | {pool} | {size} | {cell.method} |"
            if (cell.folder(out) / STOPPED).exists():
                yield f"{begin} stopped: the pseudo-labels collapsed | | |"
            if not path.exists():
                continue
            record = load(path)
            base = base or record
            gain = "" if alone else _gain(record, base)
            yield f"{begin} {record.clean:.3f} | {record.robust:.3f} | {gain} |"


def _gain(record: Record, base: Record) -> str:
    mine, other = ({index for index, status in zip(one.points.index, one.points.status, strict=True)
                    if status in ROBUST} for one in (record, base))  # fmt: skip
    p = mcnemar(len(mine - other), len(other - mine))
    return f"{record.robust - base.robust:+.3f} ({'<0.001' if p < 0.001 else f'{p:.3f}'})"


PUBLISHED = {10: (0.59, 0.82, 0.81), 20: (0.62, 0.82, 0.80), 40: (0.65, 0.82, 0.80)}


@dataclass(frozen=True)
class OnLinear(import_module("robustkit.defenses.self_training").SelfTraining):  # type: ignore[misc]
    """Self-training of a linear classifier without bias."""

    def network(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Return it."""
        last = nn.Linear(math.prod(shape), classes, bias=False)
        return nn.Sequential(Normalize((0.5,), (1 / 12,)), nn.Flatten(), last)


def drawn(n: int, mean: NDArray[np.float64], key: list[int]) -> Dataset:
    """N(±mean, I) in 200 dimensions, scaled into [0, 1]."""
    draw = np.random.default_rng(key)
    y = draw.integers(2, size=n)
    x = (2 * y[:, None] - 1) * mean + draw.standard_normal((n, len(mean)))
    pixels = (0.5 + x / 12).clip(0, 1).astype(np.float32).reshape(n, 10, 20)
    return from_arrays("mixture", pixels, y, classes=2)


def mixture(out: Path, seeds: int) -> Iterator[str]:
    """The Gaussian mixture: d = 200, m labels, 10,000 unlabeled points, shifted by alpha or not."""
    yield "| m | labels alone (published) | alpha = 0 (published) | alpha = 0.5 (published) |"
    yield "| --- | --- | --- | --- |"
    for m, published in PUBLISHED.items():
        found = []
        for weight, alpha in ((0.0, 0.0), (20.0, 0.0), (20.0, 0.5)):
            right = [_linear(out, m, weight, alpha, seed) for seed in range(seeds)]
            found.append(f"{np.mean(right):.3f} ± {np.std(right, ddof=1):.3f}")
        told = [f"{text} ({known})" for text, known in zip(found, published, strict=True)]
        yield f"| {m} | {' | '.join(told)} |"


def _linear(out: Path, m: int, weight: float, alpha: float, seed: int) -> float:
    draw = np.random.default_rng([seed, 9])
    mean, aside = (v / np.linalg.norm(v) for v in draw.standard_normal((2, 200)))
    pool = drawn(10_000, mean + alpha * aside, [seed, 1])
    data = with_unlabeled(drawn(m, mean, [seed, 2, m]), m, pool=pool)
    defense = OnLinear(
        form="penalized", gamma=20.0, pool_gamma=20.0, weight=weight, gate=0.0, steps=2
    )
    folder = out / slug(f"mixture-{m}-{weight:g}-{alpha:g}-{seed}")
    for _ in fit(defense, data, folder, recipe=Recipe(epochs=2, batch_size=400, lr=0.03),
                 seed=seed, device=CPU, identity={}):  # fmt: skip
        pass
    model = defense.network((1, 10, 20), 2)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    x, y = drawn(10_000, mean, [seed, 3]).fetch(range(10_000))
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--data-root", type=click.Path(path_type=Path))
@click.option("--data", default="mnist,fashion_mnist", show_default=True)
@click.option("--only", default="", help="Only the networks whose folder's name contains this.")
@click.option("--mixture", "gaussian", is_flag=True, help="The Gaussian mixture instead.")
@click.option("--seeds", default=5, show_default=True, help="Of the mixture.")
@click.option("--eps", default=0.1, show_default=True)
@click.option("--width", default=8, show_default=True)
@click.option("--steps", default=5, show_default=True, help="Of PGD, in training.")
@click.option("--epochs", default=3, show_default=True, help="Passes over 20,000 images.")
@click.option("--batch-size", default=128, show_default=True)
@click.option("--size", default=20_000, show_default=True, help="Images of a pool.")
@click.option("--n", default=500, show_default=True, help="Test points.")
@click.option("--table", "only_table", is_flag=True, help="Train and evaluate nothing.")
def main(
    out: Path, data_root: Path | None, data: str, only: str, seeds: int, *, gaussian: bool,
    only_table: bool, **setting: Any,
) -> None:  # fmt: skip
    """Train, evaluate, write the table."""
    torch.set_num_threads(1)
    registry.load_packs()
    names = data.split(",")
    for name in () if only_table or gaussian else names:
        train, test = (open_dataset(name, root=data_root, split=part) for part in ("train", "test"))
        for cell in (cell for cell in cells(name) if only in cell.folder(out).name):
            run(cell, Setting(**setting), train, test, out)
            click.echo(f"{cell.folder(out).name}: done")
    text = "\n".join(mixture(out, seeds) if gaussian else table(out, names, setting["size"]))
    files.write(f"{text}\n".encode(), out / ("mixture.md" if gaussian else "table.md"))
    click.echo(text)


if __name__ == "__main__":
    main()
