"""Screening the built-in surrogates of a model: which of them give a search something new."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustkit.core.losses import input_gradient
from robustkit.core.types import Images, Logits, Model
from robustkit.models.agreement import OTHER_ORDER, SAME_GRADIENT, logit_distance, repeats

CALLS_MODELS = True  # an error raised below is the model's; see `robustkit.core.attribution`

_TRIALS, _PARTS = 64, 8  # modules tried, and parts accepted
_AGREE = 0.5  # share of inputs on which a part must predict the model's class
_RESCALED = 30.0  # factor on logits from which on a loss such as cross-entropy saturates
_SEED = 0  # of the draws that all passes share
_ITSELF = "the model itself"


class Screening(NamedTuple):
    """The surrogates that were accepted and refused.

    Attributes:
        models: surrogates to attack through, by name.
        refused: why each of the others is not.
        forwards, backwards: passes of one input that the screening took.
    """

    models: dict[str, Model]
    refused: dict[str, str]
    forwards: int
    backwards: int


class ForwardBackward(NamedTuple):
    """One forward and backward pass: logits [b, k] and the gradient of the margin [b, n]."""

    logits: Logits
    gradient: Tensor


@dataclass
class Screener:
    """Tries surrogates one after the other on the inputs `x` [b, *f].

    Every pass of a model that is random by the generators of PyTorch makes the same draws.
    `randomized`: two passes differ all the same, so that logits and gradients are not compared.
    """

    model: Model
    x: Images
    forwards: int = 0
    backwards: int = 0
    accepted: dict[str, ForwardBackward] = field(default_factory=dict)

    def start(self) -> None:
        """Pass the model itself, whose logits and gradient the surrogates are compared with."""
        with torch.no_grad():
            self.reference = _same_draws(self.model, self.x).float()
            again = _same_draws(self.model, self.x).float()
        self.forwards += 2 * len(self.x)
        self.randomized = not repeats(self.reference, again)
        try:
            self.accepted[_ITSELF] = self.differentiate(self.model)
        except Exception:  # a model without a backward pass is what surrogates are for
            return

    def differentiate(self, model: Model) -> ForwardBackward:
        """Run a forward and a backward pass; entries that are not finite count as zero."""

        def counted(x: Images) -> Logits:
            self.forwards += len(x)
            logits = _same_draws(model, x)
            _refuse_shape(logits, self.reference)
            self.backwards += len(x) if logits.requires_grad else 0
            return logits

        logits, gradient = input_gradient(counted, self.x)
        gradient = torch.zeros_like(self.x) if gradient is None else gradient.nan_to_num(0, 0, 0)
        return ForwardBackward(logits, gradient.flatten(1))

    def objection(self, name: str, model: Model) -> str:
        """Try a surrogate; return why it is refused, or nothing."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of parts, about inputs that they are not made for
                if name.startswith("part."):
                    self._try_one_input(model)
                found = self.differentiate(model)
        except Exception as error:  # of a foreign module, called as it was not meant to be
            lines = str(error).splitlines()
            return f"it fails: {type(error).__name__}: {lines[0] if lines else ''}"
        reason = self._of_logits(name, found.logits) or self._of_gradient(found)
        if not reason:
            self.accepted[name] = found
        return reason

    def _try_one_input(self, model: Model) -> None:
        """Pass one input alone: most parts are no classifiers, and are refused at that price."""
        self.forwards += 1
        with torch.no_grad():
            _refuse_shape(model(self.x[:1]), self.reference[:1])

    def _of_logits(self, name: str, logits: Logits) -> str:
        if not bool(logits.isfinite().all()):
            return "its logits are not finite"
        # By value, not by index: where classes tie in the model, any of them agrees with it.
        top = self.reference.gather(1, logits.argmax(1, keepdim=True))[:, 0]
        agree = float((top >= self.reference.amax(1)).float().mean())
        if name.startswith("part."):
            reason = f"it agrees with the model on {agree:.0%} of {len(self.x)} inputs"
            return "" if agree >= _AGREE else reason
        if self.randomized:
            return ""
        if name in ("bpda", "bypass") and logit_distance(logits, self.reference) > OTHER_ORDER:
            change = float((logits - self.reference).abs().max())
            return f"its logits differ from the model's, by up to {change:.2g}"
        return "" if agree == 1 else f"it predicts another class on {1 - agree:.0%} of the inputs"

    def _of_gradient(self, found: ForwardBackward) -> str:
        if not bool((found.gradient.norm(dim=1) > 0).any()):
            return f"its margin has no gradient at any of {len(self.x)} inputs"
        if self.randomized:
            return ""
        for other, known in self.accepted.items():
            cosine = torch.nn.functional.cosine_similarity(found.gradient, known.gradient, dim=1)
            # The same direction at another scale is worth an attack: cross-entropy, and in half
            # precision every loss, has no gradient left where logits are too far apart.
            ratio = float(found.logits.std() / known.logits.std().clamp_min(1e-30))
            if bool((cosine > SAME_GRADIENT).all()) and 1 / _RESCALED < ratio < _RESCALED:
                return f"its gradient is that of {other}"
        return ""


def _same_draws(model: Model, x: Images) -> Logits:
    torch.manual_seed(_SEED)
    return model(x)


def _refuse_shape(given: Any, like: Logits) -> None:
    shape = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
    if shape != list(like.shape):
        raise ValueError(f"it returns {shape}, not logits {list(like.shape)}")


def screen(
    model: Model, x: Images, whole: Mapping[str, Model], parts: Mapping[str, Model]
) -> Screening:
    """Try surrogates in order, then parts; see `robustkit.models.surrogates.resolve.screened`.

    Args:
        whole: surrogates of the whole model, by name.
        parts: modules inside the model, by path; at most 64 are tried and 8 accepted.
    """
    screener = Screener(model, x)
    models: dict[str, Model] = {}
    refused: dict[str, str] = {}
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        screener.start()
        tried = {**whole, **{f"part.{k}": v for k, v in list(parts.items())[:_TRIALS]}}
        for name, surrogate in tried.items():
            inside = name.startswith("part.")
            if inside and sum(known.startswith("part.") for known in models) >= _PARTS:
                refused[name] = f"{_PARTS} parts are enough"
            elif reason := screener.objection(name, surrogate):
                refused[name] = reason
            else:
                models[name] = surrogate
    return Screening(models, refused, screener.forwards, screener.backwards)
