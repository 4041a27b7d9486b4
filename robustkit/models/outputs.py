"""What a classifier answers with, read as logits [b, k]: one logit, an entry of a dict or a tuple.

Reading depends on the form of the answer alone: whoever asks, and in batches of any size, reads the
same. What could be read in two ways is refused, never guessed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from robustkit.errors import UsageError

_LOGITS = "logits"  # what libraries call them, those of Hugging Face and torchvision among them


class Reading(NamedTuple):
    """How the logits [b, k] are read off an answer.

    Attributes:
        entry: the key, field or place of what holds them; None: the answer itself.
        axes: of one logit z an input, read as [0, z], so that class 1 is where z > 0: 1 for z [b],
            2 for z [b, 1]. 0: there are k logits.
    """

    entry: str | int | None = None
    axes: int = 0

    def of(self, answer: Any) -> Any:
        """Apply it to an answer that has this form, or to a proxy of torch.fx for one."""
        if self.entry is not None:
            listed = _entries(answer)
            answer = listed[self.entry] if listed else answer[self.entry]
        if self.axes == 1:
            answer = answer.unsqueeze(1)
        return F.pad(answer, (1, 0)) if self.axes else answer

    @property
    def notes(self) -> tuple[str, ...]:
        """What readers of a record must know."""
        told = [] if self.entry is None else [f"logits: the entry {self.entry!r} of the answer"]
        if self.axes:
            told.append("one logit z an input, read as [0, z]: class 1 where z > 0")
        return tuple(told)


def reading_of(answer: Any, n: int) -> Reading | None:
    """Find how to read the answer to `n` inputs; None where its form does not tell."""
    if isinstance(answer, Tensor):
        return Reading(axes=_axes(answer, n))
    fitting = {key: part for key, part in _entries(answer).items() if _fits(part, n)}
    if _LOGITS in fitting:
        return Reading(_LOGITS, _axes(fitting[_LOGITS], n))
    if len(fitting) != 1:
        return None
    ((key, part),) = fitting.items()
    return Reading(key, _axes(part, n))


def read(answer: Any, n: int) -> tuple[Any, Reading]:
    """Return the logits in the answer to `n` inputs, and how they were read; else the answer."""
    reading = reading_of(answer, n) or Reading()
    if reading.axes == 1 and not answer_of(answer, reading).ndim:  # `squeeze()` of one input
        return F.pad(answer_of(answer, reading).reshape(1, 1), (1, 0)), reading
    return reading.of(answer), reading


def answer_of(answer: Any, reading: Reading) -> Any:
    """Return what an answer holds at the entry of a reading."""
    return reading._replace(axes=0).of(answer)


def described(answer: Any) -> str:
    """Say what an answer is, with its entries and their shapes."""
    if isinstance(answer, Tensor):
        return str(list(answer.shape))
    held = ", ".join(
        f"{key!r}: {list(part.shape) if isinstance(part, Tensor) else type(part).__name__}"
        for key, part in _entries(answer).items()
    )
    return type(answer).__name__ + (f" ({held})" if held else "")


class Output(nn.Module):
    """A model of whose answer one entry is taken: the key of a dict, a field, or a place.

    Args:
        model: [b, c, h, w] -> a dict, a tuple, a list, or an object with fields.
        entry: what holds the logits.
    """

    def __init__(self, model: nn.Module, entry: str | int) -> None:
        super().__init__()
        self.model, self.entry = model, entry
        self.training = model.training

    def forward(self, x: Tensor) -> Any:
        """[b, c, h, w] -> what the entry holds.

        Raises:
            UsageError: where the answer has no such entry.
        """
        answer = self.model(x)
        held = _entries(answer)
        if self.entry not in held:
            names = ", ".join(map(repr, held)) or "none"
            raise UsageError(
                f"{type(self.model).__name__}: expected an answer with the entry {self.entry!r}, "
                f"got {described(answer)}. Its entries: {names}; name one of them as output."
            )
        return held[self.entry]


def _axes(answer: Tensor, n: int) -> int:
    if answer.shape == (n, 1):
        return 2
    return int(answer.shape == (n,) or (n == 1 and not answer.ndim))


def _fits(part: Any, n: int) -> bool:
    """Whether it may be logits: numbers, a row or one number an input."""
    numbers = isinstance(part, Tensor) and part.is_floating_point()
    return numbers and (part.ndim in (1, 2) and len(part) == n)


def _entries(answer: Any) -> dict[Any, Any]:
    """Return what an answer holds, by key, by the name of a field, or by place."""
    if isinstance(answer, Mapping):
        return dict(answer)
    if isinstance(answer, tuple) and hasattr(answer, "_asdict"):
        return dict(answer._asdict())
    if isinstance(answer, tuple | list):
        return dict(enumerate(answer))
    if dataclasses.is_dataclass(answer) and not isinstance(answer, type):
        return {field.name: getattr(answer, field.name) for field in dataclasses.fields(answer)}
    return {}
