"""Which stand-ins of the harness lead anywhere on a model, tried on a few inputs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustkit.core.types import Images, Logits, Model

_TRIALS, _PARTS = 64, 8  # modules tried, and parts kept
_AGREE = 0.5  # share of inputs on which a part must answer as the model does
_SAME = 0.9999  # cosine of gradients that count as one
_RESCALED = 30.0  # factor on logits from which on a loss such as cross-entropy goes blind
_SEED = 0  # of the draws that all passes share
_TOLERANCE = 1e-4  # of the logits' size: kernels may sum in another order


class Screening(NamedTuple):
    """What was tried.

    Attributes:
        models: stand-ins worth attacking through, by name.
        refused: why others are not.
        forwards, backwards: passes of one input that were spent on it.
    """

    models: dict[str, Model]
    refused: dict[str, str]
    forwards: int
    backwards: int


class ForwardBackward(NamedTuple):
    """One pass and its way back: logits [b, k] and the gradient of the margin [b, n]."""

    logits: Logits
    gradient: Tensor


@dataclass
class Screener:
    """Tries stand-ins one after the other on the inputs `x`.

    Of a model that is random by the generators of PyTorch, every pass makes the same draws.
    `randomized`: its answers differ all the same, so that they cannot be compared.
    """

    model: Model
    x: Images
    forwards: int = 0
    backwards: int = 0
    looks: dict[str, ForwardBackward] = field(default_factory=dict)

    def start(self) -> None:
        """Look at the model itself."""
        with torch.no_grad():
            self.answer = _drawn(self.model, self.x).float()
            again = _drawn(self.model, self.x).float()
        self.forwards += 2 * len(self.x)
        self.randomized = not torch.allclose(self.answer, again, rtol=1e-4, atol=1e-5)
        try:
            self.looks["the model itself"] = self.look(self.model)
        except Exception:  # it has no way back: that is what stand-ins are for
            return

    def look(self, model: Model) -> ForwardBackward:
        """Run a pass and its way back; a gradient that is not a number counts as none."""
        query = self.x.detach().clone().requires_grad_(True)
        self.forwards += len(query)
        with torch.enable_grad():
            logits = _drawn(model, query)
            _refuse_shape(logits, self.answer)
            top = logits.float().topk(2, dim=1).values
            margin = (top[:, 0] - top[:, 1]).sum()
            gradient = None
            if margin.requires_grad:
                self.backwards += len(query)
                (gradient,) = torch.autograd.grad(margin, query, allow_unused=True)
        gradient = torch.zeros_like(query) if gradient is None else gradient.nan_to_num(0, 0, 0)
        return ForwardBackward(logits.detach().float(), gradient.flatten(1))

    def glance(self, model: Model) -> None:
        """Pass one input alone through what is most likely no classifier."""
        self.forwards += 1
        with torch.no_grad():
            _refuse_shape(model(self.x[:1]), self.answer[:1])

    def objection(self, name: str, model: Model) -> str:
        """Try a stand-in; say what speaks against it, or nothing."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what a part says of inputs that it is not for
                if name.startswith("part."):
                    self.glance(model)
                look = self.look(model)
        except Exception as error:  # of a foreign model, used as it was not meant
            told = str(error).splitlines()
            return f"it fails: {type(error).__name__}: {told[0] if told else ''}"
        reason = self._of_values(name, look) or self._of_gradient(look)
        if not reason:
            self.looks[name] = look
        return reason

    def _of_values(self, name: str, look: ForwardBackward) -> str:
        if not bool(look.logits.isfinite().all()):
            return "its logits are not finite"
        top = self.answer.gather(1, look.logits.argmax(1, keepdim=True))[:, 0]
        agree = float((top >= self.answer.amax(1)).float().mean())
        if name.startswith("part."):
            told = f"it agrees with the model on {agree:.0%} of {len(self.x)} inputs"
            return "" if agree >= _AGREE else told
        if self.randomized:
            return ""
        change = float((look.logits - self.answer).abs().max())
        if name in ("bpda", "bypass") and change > _TOLERANCE * float(self.answer.abs().max()):
            return f"its values differ from the model's, by up to {change:.2g}"
        return "" if agree == 1 else f"it answers otherwise on {1 - agree:.0%} of the inputs"

    def _of_gradient(self, look: ForwardBackward) -> str:
        if not bool((look.gradient.norm(dim=1) > 0).any()):
            return f"its margin has no gradient at any of {len(self.x)} inputs"
        if self.randomized:
            return ""
        for other, known in self.looks.items():
            cosine = torch.nn.functional.cosine_similarity(look.gradient, known.gradient, dim=1)
            ratio = float(look.logits.std() / known.logits.std().clamp_min(1e-30))
            if bool((cosine > _SAME).all()) and 1 / _RESCALED < ratio < _RESCALED:
                return f"its gradient is that of {other}"
        return ""


def _drawn(model: Model, x: Images) -> Logits:
    torch.manual_seed(_SEED)
    return model(x)


def _refuse_shape(given: Any, like: Logits) -> None:
    shape = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
    if shape != list(like.shape):
        raise ValueError(f"it returns {shape}, not logits {list(like.shape)}")


def offer(
    model: Model, x: Images, supplied: Mapping[str, Model], parts: Mapping[str, Model]
) -> Screening:
    """Try stand-ins in order, then parts; see `robustkit.models.surrogates.resolve.offered`."""
    trial = Screener(model, x)
    models: dict[str, Model] = {}
    refused: dict[str, str] = {}
    devices = [x.device] if x.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        trial.start()
        tried = {**supplied, **{f"part.{k}": v for k, v in list(parts.items())[:_TRIALS]}}
        for name, surrogate in tried.items():
            inside = name.startswith("part.")
            if inside and sum(known.startswith("part.") for known in models) >= _PARTS:
                refused[name] = f"{_PARTS} parts are enough"
                continue
            reason = trial.objection(name, surrogate)
            if reason:
                refused[name] = reason
            else:
                models[name] = surrogate
    return Screening(models, refused, trial.forwards, trial.backwards)
