"""What networks rely on, beside what Shah et al. 2020 published (arXiv:2006.07710).

`tables`: the slab data, a network of two hidden layers of 100. `images`: a digit above a photo of
CIFAR-10, a small convolutional network, plain, as a mean of three, and trained against linf 0.3.
For each: accuracy, with the simple part S of another point, and with all but S of another point.
`models`: the bundled models on the bundled images, block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from robustkit.core.rng import generator
from robustkit.core.terminal_table import TerminalTable
from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset, select
from robustkit.data.open import open_dataset
from robustkit.errors import UsageError
from robustkit.models.adversarial_training import perturb
from robustkit.models.load import load_model
from robustkit.verify.diagnostics.blocks import Block, masked, named_block, ready_blocks
from robustkit.verify.diagnostics.reliance import Asked, measure_reliance

# Standard, S swapped, all but S swapped: notebook outputs of the authors' repository.
PUBLISHED = {
    "lms5": (1.000, 0.507, 1.000),
    "lms5, mean of 3": (1.000, 0.507, 1.000),
    "ms57": (1.000, 0.502, 1.000),
    "noisy_lms7": (0.949, 0.497, 0.949),
    "mnist_cifar": (1.000, 0.494, 1.000),
    "mnist_cifar, mean of 3": (1.000, 0.502, 1.000),
    "mnist_cifar, linf 0.3": (1.000, 0.508, 1.000),
}
BLOCKS = ("top half", "bottom half", "mean and contrast", "low frequencies", "high frequencies")
Loss = Callable[[nn.Module, Tensor, Tensor, torch.Generator, float], Tensor]


class Mean(nn.Module):
    """The mean of the logits of several models."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def predictors(self, x: Tensor) -> Tensor:
        """Return the logits of every member [b, m, k]."""
        return torch.stack([model(x) for model in self.models], 1)

    def forward(self, x: Tensor) -> Tensor:
        """[b, *f] -> [b, k]."""
        return self.predictors(x).mean(1)


def table_net() -> nn.Module:
    """Return two hidden layers of 100."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(50, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(),
        nn.Linear(100, 2),
    )  # fmt: skip


def image_net() -> nn.Module:
    """Return a small convolutional network for [3, 64, 32]."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 16 * 8, 64), nn.ReLU(), nn.Linear(64, 2),
    )  # fmt: skip


def plain(model: nn.Module, x: Tensor, y: Tensor, _: torch.Generator, __: float) -> Tensor:
    """Cross-entropy."""
    return nn.functional.cross_entropy(model(x), y)


def against(
    model: nn.Module, x: Tensor, y: Tensor, draw: torch.Generator, progress: float
) -> Tensor:
    """Cross-entropy at linf 0.3: 7 steps of 0.12; both grow over the first half (ours)."""
    share = min(1.0, 0.05 + 2 * progress)

    def loss(logits: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, y, reduction="sum")

    threat, step = Threat("linf", 0.3 * share), 0.12 * share
    z = perturb(model, x, loss, threat, steps=7, generator=draw, step_size=step)
    return plain(model, z, y, draw, progress)


def train(
    build: Callable[[], nn.Module], data: Dataset, epochs: int, seed: int, loss: Loss = plain
) -> nn.Module:
    """Train by SGD: batch 256, learning rate 0.1 (0.01 on images), momentum 0.9 on images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    table = data.shape[1] == 1
    x, y = data.fetch(range(len(data)))
    x = 2 * x - 1 if table else x  # as the slabs are defined
    rate, momentum = (0.1, 0.0) if table else (0.01, 0.9)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=momentum, weight_decay=5e-5)
    for epoch in range(epochs):
        draw = generator(seed, 8, epoch)
        parts = torch.randperm(len(x), generator=draw).split(256)
        for number, rows in enumerate(parts):
            optimizer.zero_grad()
            progress = (epoch + number / len(parts)) / epochs
            loss(model, x[rows], y[rows], draw, progress).backward()
            optimizer.step()
    return nn.Sequential(_Centred(), model).eval() if table else model.eval()


class _Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x - 1


def measure(model: nn.Module, data: Dataset, block: Block, points: int) -> tuple[float, ...]:
    """Return accuracy, with S swapped, with all but S swapped; nothing where none is learned."""
    chosen = select(data, min(points, len(data)), 0).tolist()
    model.eval()
    try:
        found = measure_reliance(Asked({"m": model}), data, chosen, [block, block.others])
    except UsageError:
        return ()
    return found.accuracy[0], *(row.accuracy for row in found.rows)


def show(rows: Sequence[tuple[str, tuple[float, ...]]]) -> None:
    """Print measured and published figures side by side."""
    heads = ("accuracy", "S swapped", "all but S swapped")
    table = TerminalTable("case", *heads, whole=heads, lined=True)
    for name, now in rows:
        if not now:
            table.add_row(name, "no better than guessing", "", "")
            continue
        cells = zip(now, PUBLISHED[name], strict=True)
        table.add_row(name, *(f"{mine:.3f} (published {theirs:.3f})" for mine, theirs in cells))
    _print(table)


def _print(table: Any) -> None:
    from rich.console import Console

    Console(width=120).print(table)


@click.group()
@click.option("--threads", default=1, show_default=True, type=int)
def main(threads: int) -> None:
    """Reliance on simple features: reproductions, and the project's own models."""
    torch.set_num_threads(threads)


@main.command()
@click.option("--epochs", default=20, show_default=True)
@click.option("--points", default=4000, show_default=True, help="To test on.")
@click.option("--train-points", default=0, show_default=True, help="0: as many as the paper.")
def tables(epochs: int, points: int, train_points: int) -> None:
    """Train on slabs."""
    rows = list[tuple[str, tuple[float, ...]]]()
    for kind in ("lms5", "ms57", "noisy_lms7"):
        name = f"slabs(kind={kind}, n={train_points})"
        data, test = open_dataset(name, split="train"), open_dataset(f"slabs(kind={kind})")
        block = named_block("S=0", data.shape)
        models = [train(table_net, data, epochs, s) for s in range(3 if kind == "lms5" else 1)]
        rows.append((kind, measure(models[0], test, block, points)))
        if len(models) > 1:
            rows.append((f"{kind}, mean of 3", measure(Mean(models), test, block, points)))
    show(rows)


@main.command()
@click.option("--data-root", type=click.Path(path_type=Path), envvar="ROBUSTKIT_DATA")
@click.option("--epochs", default=2, show_default=True)
def images(data_root: Path | None, epochs: int) -> None:
    """Train on digits above photos."""
    data, test = (open_dataset("mnist_cifar", root=data_root, split=s) for s in ("train", "test"))
    mask = torch.zeros(data.shape, dtype=torch.bool)
    mask[:, :32] = True
    block = masked("digit", mask, data.shape)
    models = [train(image_net, data, epochs, seed) for seed in range(3)]
    robust = train(image_net, data, epochs, 0, against)
    cases = {"mnist_cifar": models[0], "mnist_cifar, mean of 3": Mean(models),
             "mnist_cifar, linf 0.3": robust}  # fmt: skip
    show([(name, measure(model, test, block, len(test))) for name, model in cases.items()])


@main.command()
@click.argument("names", nargs=-1)
@click.option("--n", default=300, show_default=True)
def models(names: tuple[str, ...], n: int) -> None:
    """Measure bundled models."""
    data = open_dataset("bundled")
    chosen = select(data, n, 0).tolist()
    blocks = [block for block in ready_blocks(data.shape) if block.name in BLOCKS]
    table = TerminalTable("model", "accuracy", *BLOCKS, whole=BLOCKS, lined=True)
    for name in names or ("undefended", "pgd_at", "trades", "mixednuts", "crossmax"):
        model = load_model(name, data=data).model.eval()
        asked = Asked.of({name: model}, data.fetch(chosen[:2])[0])
        found = measure_reliance(asked, data, chosen, blocks)
        cells = {row.block: f"{row.reliance:.2f}" for row in found.rows if row.member == name}
        table.add_row(name, f"{found.accuracy[0]:.3f}", *(cells[block] for block in BLOCKS))
        if found.verdict:
            click.echo(f"{name}: {found.verdict}")
    _print(table)


if __name__ == "__main__":
    main()
