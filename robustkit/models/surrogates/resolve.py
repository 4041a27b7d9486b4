"""Surrogates by name: those that a model declares, and those that are built in for any model.

A defense with randomness, hard decisions or saturation misleads an attack that follows its
gradient. An attack may follow the gradient of a surrogate instead; what it finds counts only if
the model itself is fooled. A module declares surrogates by a method `surrogates()`: name ->
callable from [b, *f] to logits [b, k], best a `Joint` where the model's own logits need no second
pass. A declared surrogate comes before a built-in one of the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from robustkit.core.types import Images, Logits, Model
from robustkit.errors import UsageError
from robustkit.models.surrogates.bpda.wrappers import BeforeSquashing, Bpda, Bypass, smooth
from robustkit.models.surrogates.pooled import Pooled
from robustkit.models.surrogates.screening import Screening, screen
from robustkit.models.surrogates.submodules import part, within

BUILT_IN: Mapping[str, Callable[[Model], Model]] = {
    "bpda": Bpda, "logits": BeforeSquashing, "bypass": Bypass, "pooled": Pooled, "smooth": smooth,
}  # fmt: skip

# The built-in surrogates that predict the model's class on every input.
SAME_DECISIONS = ("bpda", "bypass", "logits")

SOURCE = "source:"  # before the name of another model, as `robustkit.load_model` takes it
_PART = "part."


@dataclass(frozen=True)
class Joint:
    """A surrogate whose pass has the model's own logits as well: searches need no second one.

    Attributes:
        both: [b, *f] -> the logits of the surrogate and those of the model, [b, k] each.
    """

    both: Callable[[Images], tuple[Logits, Logits]]

    def __call__(self, x: Images) -> Logits:
        """[b, *f] -> [b, k]."""
        return self.both(x)[0]


@dataclass(frozen=True)
class Relaxed:
    """A surrogate for discrete inputs: its gradient is by a relaxation of them, [b, *g].

    A search through it finds that gradient in `Reply.gradient`: of one-hot rows of token ids, say,
    one number for each token at each place.

    Attributes:
        relax: [b, *f] -> [b, *g].
        logits: [b, *g] -> [b, k].
    """

    relax: Callable[[Images], Tensor]
    logits: Callable[[Tensor], Logits]

    def __call__(self, x: Images) -> Logits:
        """[b, *f] -> [b, k]."""
        return self.logits(self.relax(x))


def declared(model: Any) -> dict[str, Model]:
    """Return the surrogates of `model` by name; most models declare none."""
    method = getattr(model, "surrogates", None)
    return dict(method()) if callable(method) else {}


def source(model: Model, name: str) -> Model:
    """Return what an attack with `surrogate=name` takes its gradients from; "" is the model.

    Raises:
        UsageError: when the model declares no such surrogate and none is built in.
    """
    if not name:
        return model
    known = declared(model)
    if name in known:
        return known[name]
    if name in BUILT_IN:
        return BUILT_IN[name](plain(model))
    if name.startswith(_PART):
        found = part(plain(model), name.removeprefix(_PART))
        if found is not None:
            return found
    raise UsageError(
        f"expected a surrogate that the model declares ({', '.join(sorted(known)) or 'none'}), "
        f"got {name!r}. Any model has {', '.join(BUILT_IN)}, and part.PATH for a module inside it; "
        f"{SOURCE}NAME is another model, which an evaluation loads by its name."
    )


def screened(model: Model, x: Images) -> Screening:
    """Try the built-in surrogates of `model` on a few inputs `x` [b, *f].

    Refused, with a reason, is a surrogate that raises an error; that predicts other classes than
    the model (bpda and bypass: that returns other logits; a part: on most inputs); that has no
    gradient; or that has the gradient and the scale of the model or of a surrogate accepted before.
    Randomized models are compared with the same draws of PyTorch in every pass; where they are
    random by other means, logits and gradients are not compared. What the model declares is not
    tried, nor a built-in one of the same name.

    PyTorch's generators are left as they were.
    """
    known, bare = declared(model), plain(model)
    whole = {name: make(bare) for name, make in BUILT_IN.items() if name not in known}
    return screen(bare, x, whole, within(bare))


def plain(model: Any) -> Model:
    """Return the model itself: in float32, not compiled, without added surrogates."""
    inner = getattr(model, "_orig_mod", None)  # of torch.compile
    if isinstance(model, Wrapping):
        inner = model.unwrapped()
    return plain(inner) if inner is not None else cast("Model", model)


class Wrapping(nn.Module):
    """A model that robustkit has wrapped, for speed or to add surrogates; `plain` unwraps it."""

    def unwrapped(self) -> Model:
        """Return the model inside."""
        raise TypeError(
            f"{type(self).__name__}: expected a method unwrapped() that returns the wrapped model, "
            "got none. Define it beside surrogates()."
        )


def added_surrogates(model: Model) -> dict[str, Model]:
    """Return the surrogates that `WithSurrogates` has added to a model, by name."""
    return dict(model.added) if isinstance(model, WithSurrogates) else {}


class WithSurrogates(Wrapping):
    """A model with more surrogates than it declares: transfer sources, a distilled student.

    A surrogate that the model declares comes before an added one of the same name.
    """

    def __init__(self, model: Model, added: Mapping[str, Model]) -> None:
        super().__init__()
        self.model, self.added = model, dict(added)

    def forward(self, x: Tensor) -> Tensor:
        """[b, *f] -> [b, k], as the model itself."""
        return self.model(x)

    def unwrapped(self) -> Model:
        """Return the model inside."""
        return self.model

    def surrogates(self) -> dict[str, Model]:
        """Return the declared and the added surrogates."""
        return {**self.added, **declared(self.model)}
