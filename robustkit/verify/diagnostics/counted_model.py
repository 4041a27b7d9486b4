"""Asking a model, with every pass counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkit.core.attribution import raised_by_model
from robustkit.core.imports import failure
from robustkit.core.losses import input_gradient
from robustkit.core.types import Images, Logits, Model, Scalars
from robustkit.errors import UsageError
from robustkit.models.guard import guard_of
from robustkit.models.outputs import described
from robustkit.models.readiness import DYNAMIC_BATCH

CALLS_MODELS = True  # an error raised below is the model's; see `robustkit.core.attribution`


@dataclass
class CountedModel:
    """A model that is looked at: passes of one input are counted in `forwards` and `backwards`.

    With a `seed`, every pass of a batch of one size draws the same random numbers of PyTorch: what
    a model that is random by these does to two inputs can be compared.
    """

    model: Model
    name: str
    forwards: int = 0
    backwards: int = 0
    seed: int | None = None

    def _answer(self, x: Images) -> Logits:
        if self.seed is None:
            return self.model(x)
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            torch.manual_seed(self.seed)
            return self.model(x)

    def strictly(self, x: Images, classes: int) -> Logits:
        """Return the logits of clean inputs `x` [b, *f].

        Raises:
            UsageError: when they are not one row of at least `classes` finite numbers per input.
        """
        name, shape = self.name, list(x.shape[1:])
        self.forwards += len(x)
        try:
            with torch.no_grad():
                answer: object = self._answer(x)
        except (Exception, SystemExit) as error:
            place = raised_by_model(error)
            where = f" ({place})" if place else ""
            raise UsageError(
                f"{name} failed on a batch of inputs of shape {shape}{where}: "
                f"{failure(error).rstrip('.')}. {self._cure()}--debug shows the way there."
            ) from error
        if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != len(x):
            cure = "Return one row of logits per input"
            if not isinstance(answer, Tensor):
                cure = (
                    "Return the logits alone, or say which entry holds them: "
                    '"path/to/file.py:attr(output=KEY)", in Python robustkit.models.outputs.Output'
                    "(model, KEY)"
                )
            raise UsageError(
                f"{name} must map inputs [{len(x)}, {', '.join(map(str, shape))}] to logits "
                f"[{len(x)}, k], got {described(answer)}. {cure}."
            )
        if answer.device != x.device or answer.layout is not torch.strided or answer.is_complex():
            raise UsageError(
                f"{name} must return real logits as a dense tensor on the device of its inputs, "
                f"{x.device}; got {answer.dtype}, {answer.layout}, on {answer.device}. Convert "
                "them at the end of its forward pass."
            )
        if answer.shape[1] < classes:
            one = self._is_single()
            returned = "one logit per input" if one else f"{answer.shape[1]} logits"
            raise UsageError(
                f"{name} returns {returned}, but the data has {classes} classes "
                "(the largest label, plus one: do the labels start at 0?)"
            )
        if not bool(answer.isfinite().all()):
            rows = (~answer.isfinite().all(1)).nonzero().flatten().tolist()
            raise UsageError(
                f"{name} returns NaN or infinite logits on clean inputs (rows {rows}): no "
                "verdict is defined there. Look at its weights and at --mean and --std."
            )
        return answer.float()

    def _is_single(self) -> bool:
        """Whether the model answers with one logit an input, which its guard has read as two."""
        guard = guard_of(self.model)
        return guard is not None and bool(guard.reading.axes)

    def refuse_sigmoid(self, logits: Logits) -> None:
        """Refuse single outputs of a sigmoid: read as logits, all of them would mean class 1.

        Raises:
            UsageError: when all outputs lie in [0, 1].
        """
        z = logits[:, 1]
        if self._is_single() and bool(((z >= 0) & (z <= 1)).all()):
            raise UsageError(
                f"{self.name} returns one number per input, of which class 1 follows where it is "
                f"above 0; expected logits of either sign, got {float(z.min()):.3g} to "
                f"{float(z.max()):.3g}, as of a sigmoid. Return what goes into the sigmoid; or, if "
                "these are logits, both: `torch.stack([torch.zeros_like(z), z], 1)`."
            )

    def _cure(self) -> str:
        """Say what helps against two usual reasons why a pass fails; "" for others."""
        if not isinstance(self.model, nn.Module):
            return ""
        if any(isinstance(part, torch.fx.GraphModule) for part in self.model.modules()):
            return f"Was it exported with a fixed batch? {DYNAMIC_BATCH} "
        kinds = {
            weights.dtype for weights in self.model.parameters() if weights.is_floating_point()
        }
        if kinds and not kinds & {torch.float32, torch.int8, torch.uint8}:
            return f"Its weights are {', '.join(sorted(map(str, kinds)))}: call .float() on it. "
        return ""

    def logits(self, x: Images) -> Logits:
        """Return the logits, whatever they are."""
        self.forwards += len(x)
        with torch.no_grad():
            return self._answer(x).float()

    def gradient(
        self, x: Images, value: Callable[[Logits], Scalars]
    ) -> tuple[Logits, Images | None]:
        """Return the logits, and the gradient of `value` of them (None: it does not reach `x`).

        Raises:
            UsageError: when the model cannot be differentiated.
        """
        self.forwards += len(x)
        self.backwards += len(x)
        try:
            return input_gradient(self._answer, x, value)
        except RuntimeError as error:
            raise UsageError(f"{self.name} cannot be differentiated: {error}") from error


def spread(logits: Logits) -> Scalars:
    """Return the largest minus the smallest logit of each row."""
    return logits.amax(1) - logits.amin(1)
