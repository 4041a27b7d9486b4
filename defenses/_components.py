"""The network of components: how alike an input is to learned points, weighed for each concept."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustkit.certify.declared import Proof
from robustkit.core.types import Images, Logits, Model

from . import _component_bounds as bounds
from ._component_bounds import logmatmul
from ._component_proofs import TINY

Distance: TypeAlias = Literal["plain", "squared"]
Detections: TypeAlias = Float[Tensor, "b n"]
Weights: TypeAlias = Float[Tensor, "n i"]

_NEAREST = 1e-20  # of a squared distance under a root, whose slope at 0 is infinite


class Reasoning(NamedTuple):
    """How much the presence (+) and the absence (−) of a component speak for a concept, float64.

    Columns sum to one over both. `absent` is None in an RBF network.
    """

    present: Weights
    absent: Weights | None

    @property
    def offset(self) -> Float[Tensor, " i"]:
        """Sum of the column of `absent`."""
        return (torch.zeros_like(self.present) if self.absent is None else self.absent).sum(0)


class Components(nn.Module):
    """log p [b, k] of p_i = Σ_k R⁺_ki d_k + R⁻_ki (1 − d_k), the largest of a class's concepts.

    d_k = exp(−δ_k / σ_k) with δ_k = ‖x − w_k‖₂ or its square; x [b, *f]. Logits are computed in
    float64, without underflow, and returned in float32.

    Surrogate "distance": the largest log R⁺_ki − δ_k / σ_k of a class. Its gradient at x leads from
    the strongest component of the label to that of the class that is aimed at, however small p is.
    Certificates: see `_component_bounds`.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        components: int,
        concepts: int,
        *,
        positive: bool = False,
        squared: bool = False,
    ) -> None:
        super().__init__()
        self.classes, self.positive, self.squared = classes, positive, squared
        self.w = nn.Parameter(torch.empty(components, features).uniform_(0.45, 0.55))
        # Ours, as an untrained network sees no data: 0.01 is detected of the farthest corner of
        # the box from its center.
        far = math.sqrt(features) / 2
        self.raw = nn.Parameter(torch.full((components,), far ** (1 + squared) / -math.log(0.01)))
        prior = torch.rand(components, classes * concepts).log_softmax(0)
        required = 0.6 - 0.2 * torch.rand_like(prior)
        sides = [prior] if positive else [prior + required.log(), prior + (1 - required).log()]
        self.reasoning = nn.Parameter(torch.cat(sides))

    @property
    def sigma(self) -> Float[Tensor, " n"]:
        """Width of every component, float64, in units of δ."""
        return self.raw.double().abs() + 1e-7

    def columns(self) -> Reasoning:
        """Return R⁺ and R⁻."""
        both = self.reasoning.double().softmax(0)
        if self.positive:
            return Reasoning(both, None)
        present, absent = both.chunk(2)
        return Reasoning(present, absent)

    def distances(self, x: Images) -> Detections:
        """δ before it is squared, float64 [b, n]; see `_component_proofs._widened`."""
        z, w = x.flatten(1).double(), self.w.double()
        square = z.square().sum(1, keepdim=True) + w.square().sum(1) - 2 * z @ w.T
        delta: Tensor = square.clamp_min(_NEAREST).sqrt()
        return delta

    def exponents(self, delta: Detections) -> Detections:
        """Log d [b, n] of distances."""
        return -(delta.square() if self.squared else delta) / self.sigma

    def concepts(self, a: Detections, weights: Reasoning) -> Float[Tensor, "b i"]:
        """Return log p of every concept, of log d."""
        present = logmatmul(a, weights.present)
        if weights.absent is None:
            return present
        absent = (-torch.expm1(a)) @ weights.absent
        return torch.logaddexp(present, absent.clamp_min(TINY).log())

    def by_class(self, scores: Float[Tensor, "b i"]) -> Logits:
        """Take the largest of each class; a class's concepts stand side by side."""
        logits: Tensor = scores.unflatten(1, (self.classes, -1)).amax(2)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """[b, *f] -> log p [b, k]."""
        a = self.exponents(self.distances(x))
        return self.by_class(self.concepts(a, self.columns())).float()

    def surrogates(self) -> dict[str, Model]:
        """Return the surrogate "distance", [b, *f] -> [b, k]."""
        return {"distance": self._strongest}

    def certificates(self) -> dict[str, Proof]:
        """Return the certificates, the tightest first."""
        return bounds.certificates(self)

    def _strongest(self, x: Images) -> Logits:
        a, present = self.exponents(self.distances(x)), self.columns().present
        return self.by_class((a[:, :, None] + present.log()).amax(1)).float()
