"""The networks, made once, and what searches and verification say of their plants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.planted import hidden, maze, verify
from benchmarks.planted.setting import THREAT, Planted
from robustkit.core import json_files
from robustkit.core.text import slug
from robustkit.evaluation.evaluate import evaluate
from robustkit.record.record import load

SECONDS = 5  # of complete verification, a point
_LONG = "steps=1000, step_size=0.01, restarts=10"
DEEP = {  # name: spec
    "PGD-1000x10": f"pgd(loss=margin, {_LONG})",
    "PGD-1000x10, 9 targets": f"pgd(loss=targeted_margin, {_LONG})",
    "APGD-100x5, 9 targets": "apgd(loss=targeted_margin, targets=9, restarts=5)",
    "APGD-100x20, 9 targets": "apgd(loss=targeted_margin, targets=9, restarts=20)",
    "APGD-100x100, 9 targets": "apgd(loss=targeted_margin, targets=9, restarts=100)",
}
COLUMNS: dict[str, dict[str, Any]] = {
    "PGD-20": {"attacks": ("pgd(loss=margin, steps=20)",)},
    **{name: {"attacks": (spec,)} for name, spec in DEEP.items()},
    "fast": {"suite": "fast"},
    "parity": {"suite": "parity"},
    "adaptive": {"suite": "adaptive"},
    "complete": {"attacks": ("fgsm",), "certify": f"auto(seconds={SECONDS})"},
}
VERIFY = "verify"  # the column of `robustkit verify`, which is no evaluation
ALL = (*COLUMNS, VERIFY)
NETWORKS = [f"hidden-{seed}" for seed in range(5)] + [f"maze-{cones}" for cones in maze.CONES]


class Finding(NamedTuple):
    """What one column says of the points of one network, or of several.

    Attributes:
        found: the points whose counterexample, ours or another, was found.
        passes: forward and backward, of all points; 0 where they are not counted.
    """

    points: int
    found: frozenset[int]
    proved: int
    passes: int = 0


def network(name: str, folder: Path) -> Planted:
    """Return a network by name, made and stored where it is not there yet."""
    path = _stored(name, folder)
    kind, _, number = name.partition("-")
    if not path.exists():
        made = hidden.make(int(number)) if kind == "hidden" else maze.make(int(number), int(number))
        made.check(name)
        made.save(path)
    net = hidden.network() if kind == "hidden" else maze.Maze(int(number))
    planted = Planted.load(path, net)
    planted.check(name)
    return planted


def run(folder: Path, networks: list[str], columns: list[str], told: Callable[[str], None]) -> None:
    """Make the networks and run the evaluations that are not there yet, each in its folder."""
    for name in networks:
        told(name)
        planted = network(name, folder)
        for column in columns:
            place = _place(folder, name, column)
            if place.exists():
                continue
            told(f"{name}: {column}")
            if column == VERIFY:
                verify.answer_all(planted, name, SECONDS, place)
                continue
            evaluate(
                planted.net, (planted.x, planted.y), THREAT, name=name, folder=place.parent,
                device="cpu", progress=False, **COLUMNS[column],
            )  # fmt: skip


def findings(folder: Path) -> dict[tuple[str, str], Finding]:
    """Return what has finished, by network and column."""
    places = {(n, c): _place(folder, n, c) for n in NETWORKS for c in ALL}
    return {key: _finding(path) for key, path in places.items() if path.exists()}


def shares(folder: Path) -> dict[str, list[float]]:
    """Return which share of random starts lies on the planted cone, by maze that is there."""
    found = {}
    for name in NETWORKS:
        if _stored(name, folder).exists():
            planted = network(name, folder)
            if isinstance(planted.net, maze.Maze):
                found[name] = planted.net.share(planted).tolist()
    return found


def _stored(name: str, folder: Path) -> Path:
    return folder / "networks" / f"{name}.safetensors"


def _place(folder: Path, name: str, column: str) -> Path:
    last = verify.ANSWERS if column == VERIFY else "record.json"
    return folder / name / slug(column) / last


def _finding(path: Path) -> Finding:
    if path.name == verify.ANSWERS:
        answers = json_files.read(path)
        return Finding(len(answers), _places(answers, "sat"), answers.count("unsat"))
    record = load(path)
    status = record.points.status
    passes = record.forwards + record.backwards
    return Finding(record.n, _places(status, "broken"), status.count("certified"), passes)


def _places(verdicts: Sequence[str], wanted: str) -> frozenset[int]:
    return frozenset(i for i, verdict in enumerate(verdicts) if verdict == wanted)
