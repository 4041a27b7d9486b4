"""Assertions about robustness, for tests: they fail with a sentence that a person can act on.

    assert_robust(model, at_least=0.45, threat="linf:8/255", data="cifar10", n=500)
    assert_not_regressed(model, "robustkit-baseline", tolerance=0.01)

They work under any test runner; with pytest see the fixture `robustness`.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from robustkit import gate
from robustkit.core import stats
from robustkit.core.stats.sequential import peak
from robustkit.core.text import clean, seconds
from robustkit.data.dataset import Dataset, shuffled
from robustkit.data.open import open_dataset
from robustkit.errors import UsageError
from robustkit.evaluation.budget import Budget, Interim, StoppingRule
from robustkit.evaluation.evaluate import evaluate
from robustkit.evaluation.settings import named_model
from robustkit.gate.criteria import Claim, tolerances
from robustkit.models.trust import trusting
from robustkit.record.points import ROBUST
from robustkit.record.record import Record
from robustkit.registry import read_threat

Given = nn.Module | Callable[[Any], Any] | str


def assert_robust(
    model: Given,
    *,
    at_least: float,
    threat: str = "linf:8/255",
    data: Dataset | str = "bundled",
    suite: str | None = None,
    attacks: Sequence[str] = (),
    n: int | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    max_time: str | None = None,
    device: str = "auto",
    name: str | None = None,
    folder: Path | None = None,
    trust_code: Collection[Path | str] = (),
) -> Record:
    """Assert that the robust accuracy on the points is at least `at_least`.

    Points come in a random order and the run stops when the answer is certain: it errs with
    probability at most 1 − confidence in either direction. With all points evaluated it is exact.

    Args:
        model: a module or callable, or whatever the command line takes.
        suite, attacks: `quick` unless one of them is given.
        folder: of the evidence; none is kept without it.
        trust_code: as for `robustkit.evaluate`.

    Raises:
        AssertionError: when it is not, with its interval and the weakest classes; also when the
            time ended before the answer.
        UsageError: for what cannot be evaluated.
    """
    __tracebackhide__ = True
    if not 0 <= at_least <= 1:
        raise UsageError(f"at_least: expected a fraction from 0 to 1, got {at_least:g}.")
    points, subject, called = _subject(model, data, name, trust_code)
    budget = Budget(seconds(max_time) if max_time else None)
    watch = _Threshold(budget, at_least=at_least, alpha=1 - confidence, total=n or len(points))
    with _room(folder) as room:
        record = evaluate(
            subject,
            name=called,
            data=points,
            threat=read_threat(threat),
            folder=room,
            suite=suite,
            attacks=attacks,
            n=n,
            seed=seed,
            budget=watch,
            device=device,
        )
    order = [p for p in shuffled(record.points.index, seed)]
    robust = np.array([record.outcomes[p] for p in order], dtype=float)
    if watch.answer(robust) is not True:
        raise AssertionError(clean(_told(record, robust, watch, threat)))
    return record


def assert_not_regressed(
    model: Given,
    baseline: Path | str,
    *,
    tolerance: float = 0.01,
    metrics: Sequence[str] = (),
    confidence: float = 0.95,
    claim: Claim = "points",
    data: str | None = None,
    max_time: str | None = None,
    undecided: str = "fail",
    device: str = "auto",
    name: str | None = None,
    folder: Path | None = None,
    trust_code: Collection[Path | str] = (),
) -> gate.GateVerdict:
    """Assert that the model is not less robust than its baseline, as `robustkit check` does.

    Args:
        baseline: a record, or a folder of records.
        metrics: such as "robust" or "clean=0.02"; robust accuracy and flags by default.
        undecided: "fail" or "pass": what a budget that ends before the answer means.

    Raises:
        AssertionError: when it has regressed, with the bounds of the drop and the weakest classes.
        UsageError: when there is no baseline that fits.
    """
    __tracebackhide__ = True
    if undecided not in ("fail", "pass"):
        raise UsageError(f"undecided: expected 'fail' or 'pass', got {undecided!r}.")
    terms = gate.Terms(tolerances(metrics, tolerance), confidence, claim)
    known = gate.load_baselines(Path(baseline))
    probe = name or (model if isinstance(model, str) else type(model).__name__)
    chosen = gate.choose(known, probe)
    points = gate.open_points(chosen, data, None)
    _, subject, called = _subject(model, points, name, trust_code)
    budget = Budget(seconds(max_time) if max_time else None)
    with _room(folder) as room:
        verdict = gate.check(
            gate.Candidate(called, subject), chosen, points, room,
            terms=terms, budget=budget, device=device,
        )  # fmt: skip
    failing = {"regressed", "undecided"} if undecided == "fail" else {"regressed"}
    if verdict.answer in failing:
        raise AssertionError(clean(verdict.sentence()))
    return verdict


@dataclass
class _Threshold(StoppingRule):
    """Ends a run as soon as it is certain on which side of `at_least` the robust accuracy lies."""

    at_least: float = 0.0
    alpha: float = 0.05
    total: int = 1

    def enough(self, progress: Interim) -> str | None:
        """Look at the points that are finished."""
        robust = [progress.status[point] in ROBUST for point in progress.points]
        known = self.answer(np.array(robust, dtype=float))
        return None if known is None else "the answer was certain"

    def answer(self, robust: np.ndarray[Any, Any]) -> bool | None:
        """Tell whether enough points are robust; None: not known yet."""
        needed = math.ceil(self.at_least * self.total - 1e-9)
        count, left = int(robust.sum()), self.total - len(robust)
        if count >= needed or count + left < needed:
            return count >= needed
        evidence = math.log(1 / self.alpha)
        if peak(robust, (needed - 1) / self.total, self.total) >= evidence:
            return True
        if peak(1 - robust, 1 - needed / self.total, self.total) >= evidence:
            return False
        return None


def _told(record: Record, robust: np.ndarray[Any, Any], watch: _Threshold, threat: str) -> str:
    """Say what was found, how sure that is, and where the model is weakest."""
    sure = ""
    if record.n < watch.total:
        low, high = stats.confidence_sequence(robust, 1 - watch.alpha, watch.total)
        sure = f" ({1 - watch.alpha:.0%} interval for all {watch.total} {low:.3f} to {high:.3f})"
    weak = ", ".join(f"{record.class_name(c.label)} ({c.accuracy:.2f})" for c in record.tail[:3])
    side = "less than" if watch.answer(robust) is False else "and nobody knows yet whether that is"
    return (
        f"{record.defense} is robust on {record.robust:.3f} of {record.n} points of "
        f"{record.data.name} under {threat}{sure}, {side} the "
        f"{watch.at_least:g} that is asked for. Weakest classes: {weak}. Strongest attack: "
        f"{record.strongest_attack or 'none'}."
    )


def _subject(
    model: Given, data: Dataset | str, name: str | None, trust_code: Collection[Path | str]
) -> tuple[Dataset, Any, str]:
    points = open_dataset(data) if isinstance(data, str) else data
    with trusting(trust_code):
        subject, called, _ = named_model(model, points)
    return points, subject, name or called


@contextmanager
def _room(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        yield Path(place)
