"""The catalog of flags: every reason to distrust an evaluation, and the verdict that follows."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal, NamedTuple, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict

Severity: TypeAlias = Literal["note", "suspicious", "unreliable"]
Reliability: TypeAlias = Literal["reliable", "suspicious", "unreliable"]


class Flag(BaseModel):
    """A reason to distrust the numbers: a stable name, what was seen, and what to do about it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    message: str
    answered: str | None = None
    """How the attacks answered it, so that it weighs less in the verdict; else None."""


class FlagKind(NamedTuple):
    """One kind of flag.

    Attributes:
        severity: of "note", the row can be trusted once it is read; of "suspicious", robust
            accuracy may be too high; of "unreliable", take it for too high.
        raised: raised if ...
        remedy: what to do.
    """

    name: str
    severity: Severity
    raised: str
    remedy: str


_KINDS = (
    FlagKind(
        "untrained",
        "unreliable",
        "the weights are random, as was asked for",
        "Ask for pretrained weights, or give them with --weights.",
    ),
    FlagKind(
        "randomized",
        "suspicious",
        "two passes over the same input differ",
        "A point is broken if most of up to 40 passes err. Attack with expectation over the noise "
        "(eot).",
    ),
    FlagKind(
        "stateful",
        "unreliable",
        "repeated passes agree, but an input is answered otherwise after other inputs, or a pass "
        "changes the buffers of the model",
        "Make the answer depend on the input alone: no caches, counters or running statistics.",
    ),
    FlagKind(
        "alters_inputs",
        "note",
        "a pass writes into the input it is given; it got a copy each time",
        "Begin the forward pass with `x = x.clone()`.",
    ),
    FlagKind(
        "process_state",
        "note",
        "a pass seeds the global random generators, or changes the default dtype or device, the "
        "recording of gradients or determinism; all are put back after each pass",
        "Keep such settings inside the pass (a generator of its own, a `with` block).",
    ),
    FlagKind(
        "probabilities",
        "suspicious",
        "the outputs are probabilities, which saturate and hide their gradients",
        "Return the layer before the softmax.",
    ),
    FlagKind(
        "one_hot",
        "unreliable",
        "the outputs tell the class and nothing else",
        "Return the scores that the class is chosen by; failing that, attack by decisions.",
    ),
    FlagKind(
        "saturated",
        "suspicious",
        "at a quarter of the inputs or more the softmax of the outputs is one-hot in float32, so "
        "that the gradient of a cross-entropy vanishes",
        "Attack with losses that do not depend on the scale (margin, dlr), or rescale the logits.",
    ),
    FlagKind(
        "scaled_logits",
        "note",
        "the logits are so large that the softmax of half of the inputs rounds to one-hot, or they "
        "differ by less than 0.01",
        "Attack with losses that do not depend on the scale (margin, dlr), or rescale the logits.",
    ),
    FlagKind(
        "no_gradient",
        "unreliable",
        "the margin has no gradient at some inputs (zero, or not a number): attacks that follow it "
        "are blind there",
        "Look for rounding, detach, no_grad, saturation; attack a smooth surrogate.",
    ),
    FlagKind(
        "scores_only",
        "suspicious",
        "the model gives scores and no gradients, so that attacks without gradients alone decide; "
        "not of a single decision tree, which is searched exactly",
        "Take the robust accuracy for an upper bound weaker than one by gradients. Of decision "
        "trees and small forests --certify trees gives a lower one.",
    ),
    FlagKind(
        "exploding_gradient",
        "suspicious",
        "by its gradient the margin would change a thousand times the logits' size in a step of "
        "1/255",
        "Look for steep activations and divisions by almost zero; attack a smooth surrogate.",
    ),
    FlagKind(
        "gradient_mismatch",
        "unreliable",
        "the gradient of the margin disagrees with finite differences, along its own direction or "
        "along random ones, at every step size tried, or changes from pass to pass while the "
        "outputs stay",
        "Look for detach and custom backward passes; attack a surrogate whose gradient is true, or "
        "estimate the gradient from outputs.",
    ),
    FlagKind(
        "piecewise_constant",
        "suspicious",
        "the outputs do not change at all in a small step that does not follow from their gradient",
        "Look for rounding, quantization, thresholds and 16-bit arithmetic; attack through them as "
        "if they were the identity (BPDA).",
    ),
    FlagKind(
        "jumping_units",
        "suspicious",
        "at a quarter of the inputs or more, hidden units whose gradient is zero jump when the "
        "pixels move by 0.01: one in a thousand or more",
        "The gradient leaves out what these units add: attack through them as if they were the "
        "identity (BPDA).",
    ),
    FlagKind(
        "inner_autograd",
        "suspicious",
        "the forward pass differentiates or optimizes by itself",
        "Attack through every inner step, or a surrogate without them; long inner loops lose the "
        "gradient.",
    ),
    FlagKind(
        "huge_eps",
        "unreliable",
        "following the gradient of the margin for 20 steps, bounded by the box alone, changes the "
        "class of too few inputs: without a bound every model can be broken",
        "The gradient leads nowhere. Attack a smooth surrogate, or without gradients.",
    ),
    FlagKind(
        "not_monotone",
        "suspicious",
        "a longer search, or one in a larger ball, changes the class of fewer inputs",
        "The gradient misleads. Use more restarts and other losses, or attack a surrogate.",
    ),
    FlagKind(
        "absorbing_outputs",
        "suspicious",
        "a class has several outputs, of which the largest counts, and when an attack lowers one "
        "of a quarter of the inputs or more, another of the same class takes over",
        "Attack all outputs of a class together (surrogate=pooled).",
    ),
    FlagKind(
        "black_box",
        "unreliable",
        "attacks without gradients broke points that those with gradients had not: gradients are "
        "masked",
        "Do not trust the robust accuracy; attack a smooth surrogate.",
    ),
    FlagKind(
        "transfer",
        "suspicious",
        "attacks on a surrogate broke points that attacks on the gradient of the model had not",
        "The model's own gradients are masked. Attack through more surrogates, and start "
        "from what they find.",
    ),
    FlagKind(
        "transfer_only",
        "suspicious",
        "every attack followed the gradients of another model alone (source:NAME)",
        "The robust accuracy is that under transfer. Attack the model itself (--suite fast) for "
        "what one who knows it can do.",
    ),
    FlagKind(
        "unused_budget",
        "suspicious",
        "an attack made less than half of the passes that its steps ask for on the points it left",
        "Find out why it stopped; give it the budget, or leave it out.",
    ),
    FlagKind(
        "outside",
        "suspicious",
        "most of what an attack of another library returned lies outside the threat model, where "
        "it does not count",
        "It ran at another radius or in another norm: look at its options, or take another attack.",
    ),
    FlagKind(
        "chance",
        "unreliable",
        "the clean accuracy cannot be told from guessing (5% level)",
        "Look at preprocessing (--mean, --std), channel order and labels.",
    ),
    FlagKind(
        "majority_class",
        "suspicious",
        "the clean accuracy cannot be told from always answering the most frequent class (5% "
        "level), and fewer than half of the other points are recognized: robust accuracy is then "
        "the share of that class",
        "Look at the accuracy by class, or evaluate with --sample balanced.",
    ),
)
FLAGS: dict[str, FlagKind] = {kind.name: kind for kind in _KINDS}
# What is judged by the outcome on all points: on a few of them chance alone can raise these.
OUTCOME = ("black_box", "transfer", "unused_budget", "chance", "majority_class")
_ORDER: tuple[str, ...] = get_args(Reliability)


def flag(name: str, seen: str) -> Flag:
    """Make a flag of the catalog: what was seen, then what to do."""
    return Flag(name=name, message=f"{seen}. {FLAGS[name].remedy}")


def reliability(names: Iterable[str], answered: Collection[str] = ()) -> Reliability:
    """Return the verdict on an evaluation with these flags: that of the gravest one.

    A flag that the catalog does not hold, of another version, makes it suspicious.

    Args:
        answered: those of them that the attacks answered, which weigh a step less.
    """
    less: dict[str, str] = {"unreliable": "suspicious"}
    weights = {name: FLAGS[name].severity if name in FLAGS else "suspicious" for name in names}
    found = [less.get(weight, "note") if name in answered else weight
             for name, weight in weights.items()]  # fmt: skip
    if "unreliable" in found:
        return "unreliable"
    return "suspicious" if "suspicious" in found else "reliable"


def worse(verdict: str, than: str) -> bool:
    """Whether one verdict is graver than another."""
    return _ORDER.index(verdict) > _ORDER.index(than)
