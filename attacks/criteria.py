"""Criteria of success beside "misclassified": one class, groups, abstention, the top k, a loss."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from robustkit.core.criterion import (
    Answers,
    Criterion,
    class_in,
    classes_in,
    largest,
    refuse_beyond,
    settled,
)
from robustkit.core.text import number
from robustkit.core.types import Labels, Logits
from robustkit.errors import UsageError
from robustkit.registry import criteria

criteria.register("untargeted", cites="", examples=("untargeted",))(Criterion)


@criteria.register("targeted", cites="arXiv:1608.04644", examples=("targeted:3",))
@dataclass(frozen=True)
class Targeted(Criterion):
    """A point is broken where the model decides for one class; points of that class are left out.

    `targeted:3`. Any other decision does no harm, a wrong one neither, so that clean accuracy is
    the share of the points that the model does not take for that class. Carlini & Wagner 2017.
    """

    target: int

    @classmethod
    def read(cls, text: str) -> Targeted:
        """Read what follows `targeted:`."""
        return cls(class_in(text, "class", "targeted:3"))

    def __str__(self) -> str:
        return f"targeted:{self.target}"

    def check(self, outputs: int) -> None:
        """Refuse a class that the model does not have."""
        refuse_beyond(self, [self.target], outputs)

    def asked(self, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """All points of other classes."""
        others: NDArray[np.bool_] = labels != self.target
        return others

    def classes(self, outputs: int) -> int:
        """The target, and whatever else."""
        return 2

    def harmless(self, y: Labels, outputs: int) -> Bool[Tensor, "b k"]:
        """Every decision but the target."""
        return (torch.arange(outputs, device=y.device) != self.target).expand(len(y), -1)


@criteria.register("groups", cites="", examples=("groups:0,1|2,3,4,5,6,7,8,9",))
@dataclass(frozen=True)
class Groups(Criterion):
    """A point is broken where the model decides for a class of another group than the label's.

    `groups:0,2,4,6|5,7,9|1|3|8`: every class is in exactly one. The decision of a group is its
    largest logit, not a sum of probabilities, so that the model decides as it does without groups.
    """

    groups: tuple[tuple[int, ...], ...]

    @classmethod
    def read(cls, text: str) -> Groups:
        """Read what follows `groups:`."""
        groups = tuple(classes_in(part, "groups:0,2|1,3") for part in text.split("|"))
        listed = [label for group in groups for label in group]
        if twice := [label for label in listed if listed.count(label) > 1]:
            raise UsageError(f"criterion groups:{text}: class {twice[0]} is listed twice.")
        if len(groups) < 2:
            raise UsageError(
                f"criterion groups:{text}: expected at least two groups, such as groups:0,2|1,3."
            )
        return cls(tuple(sorted(tuple(sorted(group)) for group in groups)))

    def __str__(self) -> str:
        return f"groups:{'|'.join(','.join(map(str, group)) for group in self.groups)}"

    def check(self, outputs: int) -> None:
        """Refuse groups that leave a class out."""
        listed = {label for group in self.groups for label in group}
        refuse_beyond(self, sorted(listed), outputs)
        if left := sorted(set(range(outputs)) - listed):
            raise UsageError(
                f"criterion {self}: class {left[0]} is in no group, and the model has {outputs} "
                "outputs. Add it, as a group of its own where it belongs to none."
            )

    def classes(self, outputs: int) -> int:
        """The label's group counts once."""
        return outputs - min(map(len, self.groups)) + 1

    def harmless(self, y: Labels, outputs: int) -> Bool[Tensor, "b k"]:
        """The classes of the same group."""
        group = torch.zeros(outputs, dtype=torch.long, device=y.device)
        for place, members in enumerate(self.groups):
            group[list(members)] = place
        return group[y][:, None] == group


@criteria.register("reject", cites="arXiv:1705.07263", examples=("reject:3",))
@dataclass(frozen=True)
class Reject(Criterion):
    """A point is broken where the model decides for a wrong class and does not abstain.

    `reject:10`: output 10 says "abstain"; it may lie beyond the classes of the data. On a clean
    point abstaining is no right answer. Carlini & Wagner 2017 evaluate detectors so: to abstain on
    an adversarial input counts for the defense.
    """

    abstain: int

    @classmethod
    def read(cls, text: str) -> Reject:
        """Read what follows `reject:`."""
        return cls(class_in(text, "output", "reject:10"))

    def __str__(self) -> str:
        return f"reject:{self.abstain}"

    @property
    def abstention(self) -> int:
        """The output that says so."""
        return self.abstain

    def check(self, outputs: int) -> None:
        """Refuse an output that the model does not have."""
        refuse_beyond(self, [self.abstain], outputs)

    def asked(self, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """All points: none is of the class "abstain"."""
        if bool((labels == self.abstain).any()):
            raise UsageError(
                f"criterion {self}: output {self.abstain} is a class of the data, not one that "
                "says abstain. Name the output of the model that does."
            )
        return super().asked(labels)

    def classes(self, outputs: int) -> int:
        """To abstain is no goal."""
        return outputs - 1

    def harmless(self, y: Labels, outputs: int) -> Bool[Tensor, "b k"]:
        """The label, and to abstain."""
        return super().harmless(y, outputs) | (
            torch.arange(outputs, device=y.device) == self.abstain
        )

    def clean(self, logits: Answers, y: Labels) -> Answers:
        """To abstain is wrong on a clean point."""
        return logits


@criteria.register("top", cites="arXiv:1912.09899", examples=("top5", "top2"))
@dataclass(frozen=True)
class Top(Criterion):
    """A point is broken where the label is not among the k largest logits.

    `top5`. The margin is that of the label to the k-th largest of the others. A bound proves a
    point where at most k − 1 of the others can exceed the label; branch and bound does not count,
    and leaves such points open.
    """

    k: int
    branches = False

    @classmethod
    def read(cls, text: str) -> Top:
        """Read what follows `top`."""
        k, *others = classes_in(text, "top5")
        if others or k < 1:
            raise UsageError(f"criterion: expected top5 or another k from 1 on, got top{text}.")
        return cls(k)

    def __str__(self) -> str:
        return f"top{self.k}"

    def check(self, outputs: int) -> None:
        """Refuse a k that every label is among."""
        if self.k >= outputs:
            raise UsageError(
                f"criterion {self}: the model has {outputs} outputs, so that every class is among "
                f"its first {self.k}, and no input breaks a point. Take a k below {outputs}."
            )

    def broken(self, logits: Answers, y: Labels) -> Bool[Tensor, "*t b"]:
        """Where the label is not among the first k; of equal logits the lower class comes first."""
        first, place = _largest(logits, self.k), y.expand(logits.shape[:-1])
        return ~first.gather(-1, place[..., None])[..., 0]

    def margins(self, logits: Answers, y: Labels) -> Answers:
        """The k − 1 largest of the others do no harm."""
        label = self.harmless(y, logits.shape[-1]).expand_as(logits)
        others = logits.masked_fill(label, -torch.inf)
        before, first = _largest(others, self.k - 1), _largest(others, self.k)
        own = logits.masked_fill(~label, 0.0).sum(-1, keepdim=True)
        judged = settled(logits, before, own, y)
        # The least of the first k, with a gradient that lifts all that are about as small.
        return torch.where(first & ~before, -largest(-logits, first), judged)

    def bounds(self, lower: Logits, y: Labels) -> Logits:
        """The k − 1 least bounds may be negative."""
        lower = super().bounds(lower, y)
        return lower.masked_fill(_largest(-lower, self.k - 1), torch.inf)


@criteria.register("loss", cites="", examples=("loss>2", "loss>0.7"))
@dataclass(frozen=True)
class Loss(Criterion):
    """A point is broken where its cross-entropy exceeds a threshold, in nats.

    `loss>2`: the model gives the label a probability below exp(−2), whatever it decides; with a
    threshold below log 2 a right decision can be broken. Of a broken point the record names the
    likeliest other class. No certificate: bounds are of differences of logits, not of their sum.
    """

    above: float
    provable = branches = False

    @classmethod
    def read(cls, text: str) -> Loss:
        """Read what follows `loss`."""
        try:
            above = number(re.fullmatch(r">(.*)", text)[1])  # type: ignore[index]
        except (TypeError, ValueError):
            above = 0.0
        if not 0 < above < torch.inf:
            raise UsageError(f"criterion: expected loss>2 or another loss > 0, got loss{text}.")
        return cls(above)

    def __str__(self) -> str:
        return f"loss>{self.above:.6g}"

    def classes(self, outputs: int) -> int:
        """Less of the label is more of all others together."""
        return 2

    def broken(self, logits: Answers, y: Labels) -> Bool[Tensor, "*t b"]:
        """By the cross-entropy in float64, as a sum of differences: large logits lose nothing."""
        place = y.expand(logits.shape[:-1])[..., None]
        exact = logits.detach().double()
        loss = (exact - exact.gather(-1, place)).logsumexp(-1)
        return loss > self.above

    def margins(self, logits: Answers, y: Labels) -> Answers:
        """The label's logit plus the threshold, against log Σ exp of all, in the runner-up's place.

        Their difference is the threshold minus the cross-entropy.
        """
        label = self.harmless(y, logits.shape[-1]).expand_as(logits)
        runner = _largest(logits.masked_fill(label, -torch.inf), 1)
        whole = torch.where(runner, logits.logsumexp(-1, keepdim=True), logits)
        own = logits.masked_fill(~label, 0.0).sum(-1, keepdim=True) + self.above
        judged = settled(logits, ~runner, own, y)
        return torch.where(runner & judged.isfinite(), whole, judged)


def _largest(values: Answers, count: int) -> Bool[Tensor, "*t b k"]:
    """Return where the `count` largest entries of each row are; of equal ones the first."""
    order = values.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(values.shape[-1], device=values.device) < count
    return torch.zeros_like(values, dtype=torch.bool).scatter(-1, order, places.expand_as(order))
