"""When an adversarial input counts: the goal of the adversary, beside what it may do.

Every place where logits meet a label asks the criterion of the threat model first. It answers with
logits of the same shape, whose decision is another than the label exactly where the point is
broken; so attacks, verdicts and certificates stay those of the plain question "misclassified?".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from robustkit.core import arguments
from robustkit.core.types import Labels, Logits
from robustkit.errors import UsageError

# Of one pass [b, k], or of several at once [t, b, k].
Answers: TypeAlias = Float[Tensor, "*t b k"]
Judged: TypeAlias = Callable[[Answers], Answers]
_SOFT = 0.1
_FORM = re.compile(r"\s*([a-z_]+):?(.*?)\s*", re.DOTALL)


@dataclass(frozen=True)
class Criterion:
    """Untargeted: a point is broken where the decision is another class than its label.

    A subclass is registered in `robustkit.registry.criteria` and is built by `read`. One that names
    decisions that do no harm beside the label overrides `harmless` alone.
    """

    # Whether bounds on differences of logits can prove a point, and branch and bound too.
    provable = branches = True

    @classmethod
    def read(cls, text: str) -> Self:
        """Return the criterion that `text`, what follows the name, stands for.

        Raises:
            UsageError: for another form.
        """
        if text:
            raise UsageError(f"criterion: expected untargeted alone, got {text!r} behind it.")
        return cls()

    def __str__(self) -> str:
        return "untargeted"

    @property
    def abstention(self) -> int | None:
        """The output by which a model abstains; None: there is none."""
        return None

    @property
    def suffix(self) -> str:
        """What the text of a threat model ends in; nothing where a point is plainly broken."""
        return "" if self == UNTARGETED else f" {self}"

    def check(self, outputs: int) -> None:
        """Refuse (a UsageError) a model with so many outputs that this is not defined for."""

    def asked(self, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which points the question makes sense for, by their labels [n].

        Raises:
            UsageError: for labels that it makes no sense with at all.
        """
        return np.ones(len(labels), dtype=np.bool_)

    def tolerances(self, targets: NDArray[np.float32] | None) -> NDArray[np.float64] | None:
        """Return how far an answer may be from each target [k]; None for classes.

        Raises:
            UsageError: for data whose y are numbers, unless the criterion is of such.
        """
        if targets is None:
            return None
        raise UsageError(
            f"the y of this data are floats, and the criterion {self} is of classes. Store classes "
            "as integers, y.astype('int64'); for a model that predicts numbers say how far it may "
            "be off, such as --criterion 'error>0.5'."
        )

    def probed(self, classes: int) -> tuple[int, int] | None:
        """Return two outputs that probes of a model look at, for data of so many classes.

        None: all, as where the decision is the largest of them.
        """
        return None

    def classes(self, outputs: int) -> int:
        """Return the most decisions that can matter at a point, that for its label included."""
        return outputs

    def harmless(self, y: Labels, outputs: int) -> Bool[Tensor, "b k"]:
        """Return which decisions do not break a point with label `y`; that for `y` is one."""
        return torch.arange(outputs, device=y.device) == y[:, None]

    def __call__(self, logits: Answers, y: Labels) -> Answers:
        """Return logits whose decision differs from `y` [b] exactly where the point is broken.

        The margin z_y − max over the others is positive where it is not; `margins` gives it, and
        where a tie or rounding would decide otherwise than `broken`, the label's logit is moved by
        as little as does it. Not finite where a logit is not.
        """
        if self == UNTARGETED:
            return logits
        return agreeing(self.margins(logits, y), self.broken(logits, y), y)

    def broken(self, logits: Answers, y: Labels) -> Bool[Tensor, "*t b"]:
        """Return which points are broken by definition; ties go to the lower class."""
        spared = self.harmless(y, logits.shape[-1]).expand_as(logits)
        return ~spared.gather(-1, logits.argmax(-1, keepdim=True))[..., 0]

    def margins(self, logits: Answers, y: Labels) -> Answers:
        """Return logits with the margin of the question, up to ties.

        The label gets the largest logit of all harmless decisions, the others of them one just
        below every logit.
        """
        spared = self.harmless(y, logits.shape[-1])
        return settled(logits, spared, largest(logits, spared), y)

    def clean(self, logits: Answers, y: Labels) -> Answers:
        """Return likewise logits whose decision differs from `y` where a clean point is wrong."""
        return self(logits, y)

    def reference(self, logits: Logits, y: Labels) -> Labels:
        """Return the class that a certificate compares with the others [b], by clean logits."""
        spared = self.harmless(y, logits.shape[1])
        return logits.masked_fill(~spared, -torch.inf).argmax(1)

    def bounds(self, lower: Logits, y: Labels) -> Logits:
        """Return what must be positive for a proof: +∞ where a difference is not needed.

        Args:
            lower: lower bounds of z_r − z_j [b, k], r as `reference` says; 0 at j = r.
        """
        return lower.masked_fill(self.harmless(y, lower.shape[1]), torch.inf)

    def at(self, y: Labels) -> Judged:
        """Return the judgment of some points as a function of their logits."""
        return partial(self.__call__, y=y)


UNTARGETED = Criterion()


def largest(logits: Answers, among: Bool[Tensor, "*t b k"]) -> Float[Tensor, "*t b 1"]:
    """Return the largest logit of each row `among` some.

    Its gradient is a mean of the gradients of those that are about as large, by a softmax whose
    temperature is a tenth of the spread of the row: an attack that has to get below all of them
    would go back and forth between the largest alone.
    """
    left, known = logits.masked_fill(~among, -torch.inf), logits.detach()
    scale = _SOFT * (known.amax(-1, keepdim=True) - known.amin(-1, keepdim=True))
    scale = scale.clamp_min(torch.finfo(logits.dtype).tiny)
    hard = left.detach().amax(-1, keepdim=True)
    soft = ((left - hard) / scale).logsumexp(-1, keepdim=True) * scale
    return hard + (soft - soft.detach())


def settled(
    logits: Answers, spared: Bool[Tensor, "*t b k"], own: Float[Tensor, "*t b 1"], y: Labels
) -> Answers:
    """Return `logits` with `own` at the label, and just below all of them where `spared`.

    NaN where a logit is not finite: what replaces it must not hide that.
    """
    # In place of −∞, which losses that divide by a spread of the logits could not bear.
    floor = torch.nextafter(logits.detach().amin(-1, keepdim=True), logits.new_tensor(-torch.inf))
    label = torch.arange(logits.shape[-1], device=y.device) == y[:, None]
    judged = torch.where(label, own, torch.where(spared, floor, logits))
    return judged.masked_fill(~logits.isfinite().all(-1, keepdim=True), torch.nan)


def agreeing(judged: Answers, broken: Bool[Tensor, "*t b"], y: Labels) -> Answers:
    """Return `judged` with a decision other than `y` exactly where `broken`.

    Where it is another, by a tie or by rounding, the label's logit becomes the next number above or
    below the largest other. Its gradient stays.
    """
    label = torch.arange(judged.shape[-1], device=y.device) == y[:, None]
    other = judged.detach().masked_fill(label, -torch.inf).amax(-1, keepdim=True)
    side = torch.where(broken, -torch.inf, torch.inf).to(judged.dtype)[..., None]
    edge = torch.nextafter(other, side) + (judged - judged.detach())
    wrong = (judged.argmax(-1) != y) != broken
    return torch.where(label & wrong[..., None], edge, judged)


class Kinds(Protocol):
    """The registered kinds, by the name that a criterion begins with."""

    def entry(self, name: str) -> Any:
        """Look one up; a UsageError for an unknown name."""
        ...


def parse(text: Criterion | str, kinds: Kinds) -> Criterion:
    """Read a criterion such as `untargeted`, `targeted:3`, `top5` or `loss>2`.

    Raises:
        UsageError: for another form, or a name that is not known.
    """
    if isinstance(text, Criterion):
        return text
    found = _FORM.fullmatch(arguments.text("criterion", text))
    if found is None:
        raise UsageError(f"criterion: expected a name such as targeted:3 or top5, got {text!r}.")
    read: Criterion = kinds.entry(found[1]).target.read(found[2].strip())
    return read


def classes_in(text: str, form: str) -> tuple[int, ...]:
    """Read the classes of a list such as `0,2,4`, for a criterion written like `form`.

    Raises:
        UsageError: for anything else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise UsageError(f"criterion: expected numbers of classes, such as {form}, got {text!r}.")
    return tuple(map(int, parts))


def class_in(text: str, what: str, form: str) -> int:
    """Read one class, or another output as `what` says; for a criterion written like `form`.

    Raises:
        UsageError: for anything else.
    """
    found, *others = classes_in(text, form)
    if others:
        raise UsageError(f"criterion: expected one {what}, such as {form}, got {text!r}.")
    return found


def refuse_beyond(criterion: Criterion, classes: Sequence[int], outputs: int) -> None:
    """Refuse (a UsageError) a class that a model with so many outputs does not have."""
    if beyond := [label for label in classes if label >= outputs]:
        raise UsageError(
            f"criterion {criterion}: expected classes from 0 to {outputs - 1}, since the model has "
            f"{outputs} outputs, got {beyond[0]}."
        )
