"""A look at what the attacks achieved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from scipy.special import betainc

from robustkit.record.schema import Stage
from robustkit.search.audit import many
from robustkit.search.external import EARLY
from robustkit.verify.flags import Flag, flag


def review(
    stages: Sequence[Stage],
    white_box: Sequence[bool],
    clean: int,
    n: int,
    classes: int,
    *,
    transfer: Sequence[bool] = (),
) -> list[Flag]:
    """Look at the outcome: `clean` of `n` points were classified correctly.

    Raised flags: `chance` when the clean accuracy is not above guessing (5% level); `black_box`
    when attacks without gradients break more than one point, and more than 0.2% of the points, from
    attacks with gradients that ran before them; `transfer` when attacks on a surrogate do so to
    attacks on the model; `unused_budget` when an attack stops long before its steps are used up.

    Args:
        white_box: whether each stage follows gradients.
        transfer: whether it follows those of a surrogate.
    """
    indirect = [*transfer, *[False] * (len(stages) - len(transfer))]
    direct = [white and not aside for white, aside in zip(white_box, indirect, strict=True)]
    flags: list[Flag] = []
    if _chance(clean, n, 1 / classes) > 0.05:
        seen = f"clean accuracy {clean / n:.3f} on {n} points cannot be told from guessing among "
        flags.append(flag("chance", f"{seen}{classes} classes"))
    blind = _broken_after(stages, [not white for white in white_box], white_box)
    if many(blind, n):
        seen = f"attacks without gradients broke {blind} points that those with gradients had left"
        flags.append(flag("black_box", f"{seen}: the gradients are masked"))
    aside = _broken_after(stages, indirect, direct)
    if many(aside, n):
        seen = f"attacks on surrogates broke {aside} points that those on the model itself had left"
        flags.append(flag("transfer", seen))
    if unused := [text for stage in stages if (text := _unused(stage))]:
        flags.append(flag("unused_budget", "; ".join(unused)))
    return flags


def _chance(k: int, n: int, p: float) -> float:
    """Probability of `k` or more successes in `n` trials: the p-value of the exact test."""
    return float(betainc(k, n - k + 1, p)) if k else 1.0


def majority(labels: Sequence[int], predicted: Sequence[int]) -> list[Flag]:
    """Compare a model with the one that answers the most frequent class whatever it is shown.

    `majority_class` is raised where the model recognizes fewer than half of the points of other
    classes, answers that class at least half of the time, and cannot be told from that one (sign
    test over the points where the two differ, 5% level). Points of a single class tell nothing.
    """
    (label, most), *others = Counter(labels).most_common()
    rest = len(labels) - most
    pairs = list(zip(labels, predicted, strict=True))
    gained = sum(y == guess for y, guess in pairs if y != label)
    lost = sum(y != guess for y, guess in pairs if y == label)
    if not others or 2 * gained >= rest:
        return []
    if gained and _chance(gained, gained + lost, 0.5) <= 0.05:
        return []
    n, right = len(labels), most - lost + gained
    answered = sum(guess == label for guess in predicted)
    if 2 * answered < n:
        return []
    return [flag(
        "majority_class",
        f"clean accuracy {right / n:.3f} on {n} points cannot be told from always answering class "
        f"{label}, which {most / n:.3f} of them are; the model answers it {answered} times and "
        f"recognizes {gained} of the {rest} other points",
    )]  # fmt: skip


def _broken_after(stages: Sequence[Stage], which: Sequence[bool], before: Sequence[bool]) -> int:
    """Count the points that the stages `which` broke where one of `before` had gone ahead."""
    return sum(
        stage.broken
        for number, stage in enumerate(stages)
        if which[number] and any(before[:number])
    )


def _unused(stage: Stage) -> str:
    """Say how much of its budget an attack left unused on the points it did not break, if so."""
    named = ("least_steps", "steps", "queries")
    budget = next((stage.strength[name] for name in named if name in stage.strength), None)
    survivors = stage.entered - stage.broken
    early = any(name in stage.strength for name in EARLY)  # as it is meant to
    if not isinstance(budget, int) or not survivors or not stage.entered or early:
        return ""
    budgeted = survivors * (stage.jobs // stage.entered) * budget
    if 2 * stage.forwards >= budgeted:
        return ""
    return (
        f"{stage.attack} left {survivors} points after {stage.forwards} passes, and its budget for "
        f"them is {budgeted}"
    )
