"""Attacks made for transfer beside plain PGD: every source against every target.

python -m benchmarks.transfer --model undefended --model "small=undefended(width=16)@FILE"

Every model is a source and a target. A success is a point that the target classifies rightly and
that a query of the attack breaks, judged as in `robustkit evaluate`. `pgd` and the attacks that
average take 50 gradients of the source for a point that stands, `mi` 10. Runs lie in `--out` and
are not made twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import click
import torch

import robustkit
from robustkit.core.stats import clopper_pearson, mcnemar
from robustkit.core.text import slug
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError
from robustkit.models.load import Subject, load_model

PLAIN = "pgd"
SKIP = "mi, gamma 0.5"
ATTACKS = {
    PLAIN: "pgd(steps=50)",
    "mi": "mi",
    SKIP: "mi(gamma=0.5)",
    "di": "di(eot=5)",
    "ti": "ti(eot=5, probability=0.5)",
    "vmi": "vmi(neighbors=4)",
    "sia": "sia(eot=5)",
    "bsr": "bsr(eot=5)",
}
Broken = dict[int, bool]  # of every point that the target classifies rightly
Pair = tuple[str, str]  # source and target


class Question(NamedTuple):
    """What is asked of every pair of models."""

    data: Dataset
    threat: str
    n: int
    seed: int
    folder: Path


def broken(target: Subject, name: str, asked: Question, attack: str, suite: str = "") -> Broken:
    """Evaluate a target under one attack, or a suite, or read what an earlier run found."""
    record = robustkit.evaluate(
        target.model,
        asked.data,
        asked.threat,
        name=name,
        attacks=[attack] if attack else [],
        suite=suite or None,
        n=asked.n,
        seed=asked.seed,
        folder=asked.folder / slug(f"{name}-{suite or attack}"),
    )
    pairs = zip(record.points.index, record.points.status, strict=True)
    return {point: status == "broken" for point, status in pairs if status != "misclassified"}


def measured(
    subjects: Mapping[str, Subject], asked: Question, attack: str
) -> Iterator[tuple[Pair, Broken]]:
    """Yield each pair with what one attack breaks, less the pairs for which it is not made."""
    head, _, options = ATTACKS[attack].rstrip(")").partition("(")
    for source, target in product(subjects, subjects):
        through = f"surrogate={'source:' + subjects[source].source!r}"
        spec = f"{head}({options}{', ' if options else ''}{through})"
        try:
            yield (source, target), broken(subjects[target], target, asked, spec)
        except UsageError as error:
            if attack != SKIP or "residual" not in str(error):
                raise


def share(found: Sequence[Broken]) -> str:
    """Write the share of the points that are broken, with its interval, in percent."""
    count, n = sum(sum(one.values()) for one in found), sum(map(len, found))
    low, high = clopper_pearson(count, n)
    return f"{100 * count / n:.1f} [{100 * low:.0f}, {100 * high:.0f}]"


def average(found: Sequence[Broken]) -> float:
    """Return the mean over targets of the share that is broken, in percent."""
    return 100 * sum(sum(one.values()) / len(one) for one in found) / len(found)


def against(found: Mapping[Pair, Broken], plain: Mapping[Pair, Broken]) -> str:
    """Count the points that one attack alone breaks, and those that the other does; McNemar's p.

    A point counts once for each pair of models: such counts lean on each other, and the p is too
    small by what the pairs share.
    """
    both = [(found[pair][point], plain[pair][point]) for pair in found for point in found[pair]]
    more, less = (sum(a > b for a, b in both), sum(b > a for a, b in both))
    return f"+{more} -{less}, p = {mcnemar(more, less):.2g}"


def table(found: Mapping[Pair, Broken], names: Sequence[str]) -> Iterator[str]:
    """Write one attack's table: sources by targets, the white-box diagonal in parentheses."""
    yield f"| source | {' | '.join(names)} | average of the others |"
    yield f"| --- |{' --- |' * (len(names) + 1)}"
    for source in names:
        row = [found.get((source, target)) for target in names]
        cells = ["–" if one is None else share([one]) for one in row]
        cells[names.index(source)] = f"({cells[names.index(source)]})"
        others = [one for one, target in zip(row, names, strict=True) if one and target != source]
        told = f"{average(others):.1f}" if others else "–"
        yield f"| `{source}` | {' | '.join(cells)} | {told} |"


@click.command()
@click.option("--model", "models", multiple=True, required=True, metavar="[LABEL=]MODEL")
@click.option("--attack", "attacks", multiple=True, type=click.Choice(list(ATTACKS)))
@click.option("--data", default="bundled", show_default=True)
@click.option("--threat", default="linf:0.1", show_default=True)
@click.option("--n", default=100, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option("--out", default="robustkit-runs/transfer", type=click.Path(path_type=Path))
def main(
    models: Sequence[str],
    attacks: Sequence[str],
    data: str,
    threat: str,
    n: int,
    seed: int,
    out: Path,
) -> None:
    """Print the table of attacks, then sources x targets for each."""
    torch.set_num_threads(1)
    opened = robustkit.open_dataset(data)
    asked = Question(opened, threat, n, seed, out)
    subjects = dict[str, Subject]()
    for text in models:
        label, given, name = text.partition("=")
        named = bool(given) and label.isidentifier()
        label, name = (label, name) if named else (text, text)
        subjects[label] = load_model(name, data=opened)
    names = list(subjects)
    chosen = dict.fromkeys([PLAIN, *(attacks or ATTACKS)])
    runs = dict[str, dict[Pair, Broken]]()
    for attack in chosen:
        runs[attack] = dict(measured(subjects, asked, attack))
        click.echo(f"{attack}: done", err=True)
    white = {name: broken(subjects[name], name, asked, "", "fast") for name in names}
    click.echo(f"{opened.name}, {threat}, n = {n}: points broken of those classified rightly, %\n")
    click.echo("| attack | average over other models | beside pgd |\n| --- | --- | --- |")
    for attack, found in runs.items():
        others = {pair: one for pair, one in found.items() if pair[0] != pair[1]}
        if not others:
            continue
        told = "–" if attack == PLAIN else against(others, runs[PLAIN])
        of = "" if len(others) == len(names) * (len(names) - 1) else f" ({len(others)} pairs)"
        click.echo(f"| `{ATTACKS[attack]}` | {average(list(others.values())):.1f}{of} | {told} |")
    for attack, found in runs.items():
        click.echo(f"\n{ATTACKS[attack]}:\n\n" + "\n".join(table(found, names)))
        cells = " | ".join(share([white[name]]) for name in names)
        click.echo(f"| white-box (`fast`) | {cells} | – |")


if __name__ == "__main__":
    main()
