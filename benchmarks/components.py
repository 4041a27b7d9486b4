"""Components, RBF networks and prototypes: how far each certificate is from what attacks leave.

    python -m benchmarks.components --data-root DATA --out runs/components
    python -m benchmarks.components --out runs/components --data mnist --rows robust  # those alone
    python -m benchmarks.components --out runs/components --table  # what is done so far

Every network is trained as `robustkit train` would and evaluated on test points by `fast` with its
tightest certificate, in l2 at 0.5, 1 and 1.58 and in linf at 0.1; the looser certificates are tried
on the same points. It goes on where it was stopped, inside a training and inside an evaluation;
several may run at once, each with rows of its own. OUT/table.md has a row per network and threat
model. A minute or three of a core for each network, as much again for each evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch

from robustkit.certify.certifier import build_certifier
from robustkit.certify.declared import declared
from robustkit.core import files, json_files
from robustkit.core.text import slug
from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset, subset
from robustkit.data.open import open_dataset
from robustkit.evaluation.evaluate import evaluate
from robustkit.models.load import load_model
from robustkit.models.training import fit
from robustkit.record.record import load
from robustkit.registry import defenses

ROWS = (
    "cbc",
    "cbc(robust=1.58)",
    "cbc(reasoning=positive)",
    "cbc(reasoning=positive, robust=1.58)",
    "glvq",
)
THREATS = ("l2:0.5", "l2:1", "l2:1.58", "linf:0.1")
LINE_UP: dict[str, Any] = {"suite": "fast"}
HEADS = ("data", "network", "threat", "clean", "published", "net", "bisect", "certified", "robust",
         "gap")  # fmt: skip


def cell(out: Path, data: str, row: str, components: int) -> Path:
    """Return the folder of one network."""
    return out / data / slug(spec_of(row, components))


def spec_of(row: str, components: int) -> str:
    """Return a row with so many components, or prototypes in all of ten classes."""
    option = f"each={components // 10}" if row == "glvq" else f"components={components}"
    return f"{row.removesuffix(')')}{', ' if '(' in row else '('}{option})"


def train(spec: str, data: Dataset, folder: Path) -> Path:
    """Train one network, or finish it; return its weights."""
    weights, defense = folder / "model.safetensors", defenses.build(spec)
    if not weights.exists():
        cpu, identity = torch.device("cpu"), {"defense": spec, "data": data.name}
        for _ in fit(defense, data, folder, recipe=defense.recipe, seed=0, device=cpu,
                     identity=identity):  # fmt: skip
            pass
    return weights


def judge(spec: str, data: Dataset, threat: str, weights: Path, n: int) -> None:
    """Evaluate one network under one threat model, or finish that; try its other certificates."""
    folder = weights.parent / slug(threat)
    subject = load_model(spec, data=data, weights=weights)
    record = evaluate(
        subject.model, data, threat, name=subject.name, n=n, certify="auto", folder=folder,
        progress=False, **LINE_UP,
    )  # fmt: skip
    points = subset(data, record.points.index)
    proved = {}
    for name in declared(subject.model):
        proof = build_certifier(subject.model, data.shape, Threat.parse(threat), name)
        assert proof is not None
        held = 0
        for start in range(0, len(points), 50):
            x, y = points.fetch(range(start, min(start + 50, len(points))))
            held += int(proof.prove(x, y).sum())
        proved[name.partition("-")[2] or "certified"] = held / len(points)
    json_files.write(proved, folder / "certificates.json")


def lines(out: Path, sizes: list[int]) -> Iterator[str]:
    """Write the table, in Markdown."""
    yield f"| {' | '.join(HEADS)} |"
    yield f"| {' | '.join(['---'] * len(HEADS))} |"
    for data in ("mnist", "fashion_mnist"):
        for row, size, threat in ((r, s, t) for s in sizes for r in ROWS for t in THREATS):
            folder = cell(out, data, row, size) / slug(threat)
            if not (folder / "certificates.json").exists():
                continue
            record, proved = (
                load(folder / "record.json"),
                json_files.read(folder / "certificates.json"),
            )
            found = [record.clean, *(proved.get(key) for key in HEADS[4:8]), record.robust,
                     record.robust - proved["certified"]]  # fmt: skip
            cells = ("–" if value is None else f"{value:.3f}" for value in found)
            yield f"| {' | '.join([data, f'`{spec_of(row, size)}`', threat, *cells])} |"


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--data-root", type=click.Path(path_type=Path))
@click.option("--data", "families", default="mnist,fashion_mnist", show_default=True)
@click.option("--components", default="20", show_default=True, help="Or several: 20,100.")
@click.option("--rows", default="", help="Only those whose spec contains this.")
@click.option("--n", default=500, show_default=True, help="Test points.")
@click.option("--threads", default=1, show_default=True)
@click.option("--table", "only_table", is_flag=True, help="Train and evaluate nothing.")
def main(
    out: Path, data_root: Path | None, families: str, components: str, threads: int, n: int,
    **asked: Any,
) -> None:  # fmt: skip
    """Train, evaluate, write the table."""
    torch.set_num_threads(threads)
    sizes = [int(size) for size in components.split(",")]
    for family in families.split(",") if not asked["only_table"] else ():
        parts = {
            split: open_dataset(family, root=data_root, split=split) for split in ("train", "test")
        }
        for size, row in ((s, r) for s in sizes for r in ROWS if asked["rows"] in r):
            spec, folder = spec_of(row, size), cell(out, family, row, size)
            weights = train(spec, parts["train"], folder)
            for threat in THREATS:
                judge(spec, parts["test"], threat, weights, n)
            click.echo(f"{family}: {spec} done")
    text = "\n".join(lines(out, sizes))
    files.write(f"{text}\n".encode(), out / "table.md")
    click.echo(text)


if __name__ == "__main__":
    main()
