"""The first look at a model, on a few points, before anything attacks it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from robustkit.core.types import Images, Logits, Model
from robustkit.errors import UsageError
from robustkit.models.agreement import OTHER_BATCH, SAME_KERNEL, row_distance
from robustkit.models.guard import Habits, habits, watching
from robustkit.models.scores import without_gradients
from robustkit.models.surrogates.resolve import plain
from robustkit.verify.diagnostics.absorbing import of_outputs
from robustkit.verify.diagnostics.counted_model import CountedModel
from robustkit.verify.diagnostics.gradients import of_gradients
from robustkit.verify.diagnostics.logits import of_answers
from robustkit.verify.diagnostics.side_effects import Buffers, differentiates
from robustkit.verify.diagnostics.unbounded import of_reach
from robustkit.verify.diagnostics.units import of_units
from robustkit.verify.flags import Flag, flag

_SEED = 20_000  # of the draws that are repeated


class Diagnosis(NamedTuple):
    """What the first look found.

    Attributes:
        randomized: two passes over the same input differ.
        classes: number of logits.
        answers: the logits that were looked at [b, k].
        forwards, backwards: passes spent looking.
        sample: the inputs that were looked at [b, *f].
        habits: what the model does beside answering, if it stands behind a guard.
    """

    randomized: bool
    classes: int
    flags: tuple[Flag, ...]
    answers: Logits
    forwards: int
    backwards: int
    sample: Images
    habits: Habits = Habits()

    def after(self, forwards: int, backwards: int) -> Diagnosis:
        """Return the same with more passes spent."""
        spent = (self.forwards + forwards, self.backwards + backwards)
        return self._replace(forwards=spent[0], backwards=spent[1])

    def to(self, device: str) -> Diagnosis:
        """Return the same with its tensors on another device."""
        return self._replace(answers=self.answers.to(device), sample=self.sample.to(device))


def examine(
    model: Model,
    x: Images,
    classes: int,
    name: str,
    *,
    box: tuple[float, float] = (0.0, 1.0),
    probing: bool = True,
) -> Diagnosis:
    """Check on a few inputs `x` [b, *f] that the model can be evaluated at all, and how far.

    Every flag that can be raised before an attack is in `robustkit.verify.flags`. All probes
    depend on the model and `x` alone: a second look at the same model finds the same. A model that
    is random by the generators of PyTorch is probed with the same draws in every pass.

    Args:
        box: the range of the inputs.
        probing: whether to look for more than what makes an evaluation impossible.

    Raises:
        UsageError: when the model fails on inputs of this shape, does not return one row of at
            least `classes` finite logits per input, or lets the inputs of a batch influence each
            other.
    """
    with watching(model):
        found = _examine(CountedModel(model, name), _two(x), classes, box, probing=probing)
    seen = habits(model)
    return found._replace(habits=seen, flags=(*found.flags, *_of_habits(seen)))


def _examine(
    counted: CountedModel, x: Images, classes: int, box: tuple[float, float], *, probing: bool
) -> Diagnosis:
    buffers = Buffers(counted.model)
    first = counted.strictly(x, classes)
    counted.refuse_sigmoid(first)
    repeats = torch.stack([counted.strictly(x, classes) for _ in range(4)])
    noise = max(row_distance(first, other) for other in repeats)
    randomized = noise > SAME_KERNEL or bool((repeats.argmax(2) != first.argmax(1)).any())
    flags, tied = list[Flag](), None
    if getattr(counted.model, "untrained", False):
        seen = "the weights are random, as was asked for: no number here says anything about a "
        flags.append(flag("untrained", f"{seen}trained model"))
    if randomized:
        seen = f"two passes over one input differ (by {noise:.2g} of the logits' length)"
        flags.append(flag("randomized", seen))
        tied = _tied(counted, x, classes)
    steady, answers = not randomized or tied is not None, first
    first = answers if tied is None else tied
    if steady:
        moved = _moved(counted, x, first, classes, sum(box))
        if moved is None and not randomized:
            _refuse_coupling(counted, x, first, classes)
        elif moved is not None:
            flags.append(flag("stateful", moved))
    if scores := without_gradients(counted.model):
        probing = False
        if scores.forest is None or len(scores.forest.trees) > 1:
            seen = "the model gives scores and no gradients: only attacks without gradients apply"
            flags.append(flag("scores_only", seen))
    # The inputs of a discrete model mean nothing where a probe moves them to.
    if probing and not getattr(plain(counted.model), "discrete", False):
        flags += _probe(counted, x, first, box, randomized=not steady)
        if steady and "stateful" not in {found.name for found in flags}:
            seen = f"after {counted.forwards} passes an input is answered otherwise than before"
            changed = row_distance(first, counted.strictly(x, classes)) > SAME_KERNEL
            if told := buffers.changed() or (seen if changed else ""):
                flags.append(flag("stateful", told))
    return Diagnosis(
        randomized,
        first.shape[1],
        tuple(flags),
        answers,
        counted.forwards,
        counted.backwards,
        x,
    )


def _of_habits(known: Habits) -> list[Flag]:
    """Say what the model does beside answering, which its guard has made harmless."""
    found = []
    if known.alters:
        seen = "a pass writes into the input it is given; it was given copies"
        found.append(flag("alters_inputs", seen))
    done = [f"seeds the global random generator of {name}" for name in known.seeds]
    done += [f"changes {name}" for name in known.changes]
    if done:
        seen = f"a pass {', '.join(done)}, for the whole process; put back after each pass"
        found.append(flag("process_state", seen))
    return found


def _two(x: Images) -> Images:
    """Return at least two inputs: coupling takes two."""
    return x if len(x) > 1 else torch.cat([x, x.flip(-1) / 2])


class GradientProbe(NamedTuple):
    """Names of the flags that the gradient of a model raises, and the passes it took to see."""

    flags: frozenset[str]
    forwards: int
    backwards: int


def look(model: Model, name: str, x: Images, box: tuple[float, float]) -> GradientProbe:
    """Probe a surrogate's gradient at inputs `x` [b, *f], with the same draws in every pass."""
    x = _two(x)
    counted = CountedModel(model, name, seed=_SEED)
    first, again = counted.logits(x), counted.logits(x)
    steady = row_distance(first, again) <= SAME_KERNEL
    flags = of_gradients(counted, x, first, box, randomized=not steady) + of_reach(
        counted, x, first, box
    )
    return GradientProbe(frozenset(f.name for f in flags), counted.forwards, counted.backwards)


def recheck(model: Model, before: Diagnosis) -> str:
    """Ask about the inputs of the first look once more; say so if they are answered otherwise.

    It takes one pass of each; none where the model is randomized, whose answers differ anyway.
    """
    if before.randomized:
        return ""
    with torch.no_grad():
        now = model(before.sample).float()
    if now.shape == before.answers.shape and row_distance(before.answers, now) <= SAME_KERNEL:
        return ""
    return "after the attacks the model answers otherwise to the same inputs than before"


def _tied(counted: CountedModel, x: Images, classes: int) -> Logits | None:
    """Repeat the draws from now on, and return the answers, if they are always the same then."""
    counted.seed = _SEED
    once, again = (counted.strictly(x, classes) for _ in range(2))
    if row_distance(once, again) <= SAME_KERNEL:
        return once
    counted.seed = None  # random by other means
    return None


def _probe(
    counted: CountedModel, x: Images, first: Logits, box: tuple[float, float], *, randomized: bool
) -> list[Flag]:
    flags = of_answers(first)
    flags += of_gradients(counted, x, first, box, randomized=randomized)
    if differentiates(counted, x[:2]):
        flags.append(flag("inner_autograd", "the forward pass computes gradients of its own"))
    flags += of_reach(counted, x, first, box) + of_outputs(counted, x, first, box)
    return flags if randomized else flags + of_units(counted, x, box)


def _moved(
    counted: CountedModel, x: Images, first: Logits, classes: int, ends: float
) -> str | None:
    """Ask about other inputs in between, the negatives; say so if the answer is another then."""
    counted.logits(ends - x.flip(0))
    change = row_distance(first, counted.strictly(x, classes))
    if change <= SAME_KERNEL:
        return None
    return (
        "repeated passes agree, but after other inputs the answer is another one (by "
        f"{change:.2g} of the logits' length)"
    )


def _refuse_coupling(counted: CountedModel, x: Images, first: Logits, classes: int) -> None:
    alone = torch.cat([counted.strictly(x[i : i + 1], classes) for i in range(len(x))])
    change = row_distance(first, alone)
    if change > OTHER_BATCH:
        raise UsageError(
            f"{counted.name} answers differently to a point alone and in a batch (by {change:.2g} "
            "of the logits' length), so that a verdict would depend on the other points. Is it in "
            "training mode, or is batch normalization without running statistics? Call .eval()."
        )
