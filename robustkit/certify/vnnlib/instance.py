"""One instance of the competition, a network with a property; and lists of them."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import NamedTuple

from robustkit.certify.vnnlib.decide import Answer, by_bounds, decide
from robustkit.certify.vnnlib.query import Query
from robustkit.certify.vnnlib.read import read_query, unpacked
from robustkit.certify.vnnlib.tree import by_tree
from robustkit.errors import UsageError
from robustkit.models.onnx_network import Onnx

SECONDS = 300.0  # for an instance that names no time


class Instance(NamedTuple):
    """A line of instances.csv."""

    network: Path
    property: Path
    seconds: float


def instances(path: Path) -> list[Instance]:
    """Read instances.csv (network, property, seconds), or that of a folder; paths are beside it.

    Raises:
        UsageError: naming the line, for another form.
    """
    path = path / "instances.csv" if path.is_dir() else path
    lines = unpacked(path).decode(errors="replace").splitlines()
    found = []
    for number, row in enumerate(csv.reader(lines), 1):
        if not row:
            continue
        network, text, time = [*(cell.strip() for cell in row), "", "", ""][:3]
        try:
            seconds = float(time)
        except ValueError:
            seconds = math.nan
        if not (math.isfinite(seconds) and seconds > 0):
            raise UsageError(
                f"{path}, line {number}: expected network,property,seconds, got {','.join(row)!r}."
            )
        found.append(Instance(path.parent / network, path.parent / text, seconds))
    if not found:
        raise UsageError(f"{path}: expected one instance a line, got none.")
    return found


def answer(instance: Instance, *, seed: int = 0) -> tuple[Query, Answer]:
    """Read both files and decide.

    Raises:
        UsageError: when a file cannot be used, or they do not belong to one another.
    """
    query = read_query(instance.property)
    onnx = Onnx(instance.network, unpacked(instance.network))
    for kind, declared, size in (
        ("inputs", query.input, math.prod(onnx.shape)),
        ("outputs", query.output, onnx.size),
    ):
        if declared.size != size:
            raise UsageError(
                f"{instance.property}: expected the {size} {kind} of {instance.network}, got "
                f"{declared.size}: is this a property of another network?"
            )
    found = decide(
        onnx.network(), onnx, query, instance.seconds, seed=seed, refuters=(by_bounds, by_tree)
    )
    return query, found


def witness(query: Query, found: Answer) -> str:
    """Return the counterexample as the competition wants it; exact: digits that read back alike."""
    assert found.x is not None
    assert found.y is not None
    values = [*found.x.tolist(), *found.y.tolist()]
    pairs = (f"({label} {value!r})" for label, value in zip(query.labels, values, strict=True))
    return "(" + "\n ".join(pairs) + ")"
