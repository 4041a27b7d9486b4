"""Stand-ins for a model that are easier to attack: declared by the model, or by the harness.

A defense with randomness, hard decisions or saturation names smooth stand-ins: an attack follows
the gradient of a stand-in, and what it finds counts only if the model itself is fooled. A module
declares them by a method `surrogates()`: name -> callable from [b, *f] to logits [b, k].

For any model, the harness has some of its own, under the names in `BUILT_IN`; what a model
declares under the same name comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor, nn

from robustkit.core.types import Images, Model
from robustkit.errors import UsageError
from robustkit.models.surrogates.bpda.wrappers import BeforeSquashing, Bpda, Bypass, smooth
from robustkit.models.surrogates.screening import Screening, offer
from robustkit.models.surrogates.submodules import part, within

BUILT_IN: Mapping[str, Callable[[Model], Model]] = {
    "bpda": Bpda, "logits": BeforeSquashing, "bypass": Bypass, "smooth": smooth,
}  # fmt: skip

# Those with the decisions of the model.
SAME_DECISIONS = ("bpda", "bypass", "logits")

_PART = "part."


def declared(model: Any) -> dict[str, Model]:
    """Return the surrogates of `model` by name; most models declare none."""
    method = getattr(model, "surrogates", None)
    return dict(method()) if callable(method) else {}


def source(model: Model, name: str) -> Model:
    """Return what an attack with `surrogate=name` takes its gradients from; "" is the model.

    Raises:
        UsageError: when the model declares no such surrogate and the harness has none.
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
        f"got {name!r}. The harness has {', '.join(BUILT_IN)} for any model, and part.PATH for a "
        "module inside it."
    )


def offered(model: Model, x: Images) -> Screening:
    """Try the harness's stand-ins for `model` on a few inputs `x` [b, *f].

    Refused, with a reason: those that fail, that have other values or another order of classes
    than the model, that have no gradient, or the gradient and the scale of the model or of a
    stand-in before them; parts that mostly answer otherwise. Randomized models are compared with
    the same draws of PyTorch in every pass; where they are random by other means, values and
    gradients are not compared. What the model declares itself is not tried, nor what has the same
    name.

    The generators of PyTorch are left as they were.
    """
    known, true = declared(model), plain(model)
    makers = {name: make for name, make in BUILT_IN.items() if name not in known}
    return offer(
        true, x, {name: make(true) for name, make in makers.items()}, dict(within(true).items())
    )


def plain(model: Any) -> Model:
    """Return the model in float32, not compiled, without what was lent to it.

    What wraps a model for the harness says so by a method `unwrapped()`.
    """
    inner = getattr(model, "_orig_mod", None)  # of torch.compile
    if isinstance(model, Wrapping):
        inner = model.unwrapped()
    return plain(inner) if inner is not None else cast("Model", model)


class Wrapping(nn.Module):
    """A model that the harness wraps for its own ends."""

    def unwrapped(self) -> Model:
        """Return the model inside."""
        raise TypeError(f"{type(self).__name__} does not say what it wraps")


def lent(model: Model) -> dict[str, Model]:
    """Return the stand-ins that were lent to a model, by name; most have none."""
    return dict(model.more) if isinstance(model, WithSurrogates) else {}


class WithSurrogates(Wrapping):
    """A model that declares more stand-ins, say a student that was distilled from it."""

    def __init__(self, model: Model, more: Mapping[str, Model]) -> None:
        super().__init__()
        self.lender, self.more = model, dict(more)

    def forward(self, x: Tensor) -> Tensor:
        """[b, *f] -> [b, k], as the model itself."""
        return self.lender(x)

    def unwrapped(self) -> Model:
        """Return the model that it was lent to."""
        return self.lender

    def surrogates(self) -> dict[str, Model]:
        """Return what the model declares, and what was lent."""
        return {**self.more, **declared(self.lender)}
