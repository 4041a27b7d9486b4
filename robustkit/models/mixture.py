"""Mixtures of an accurate and a robust classifier: the model, certificates, surrogates.

With the probabilities g of the standard and h of the robust network, a mixture predicts the class
of the largest p = (1 − a) g + a h. Where h's top probability leads by (1 − a) / a, no g changes the
prediction: every certificate here is this lemma with a bound on h.

Bai, Anderson, Kim, Sojoudi 2024 (arXiv:2301.12554).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from robustkit.core.types import Images, Labels, Logits, Mask, Model, Scalars
from robustkit.errors import UsageError
from robustkit.models.surrogates.resolve import Joint

_FLOOR = 1e-12  # of a probability under a logarithm
_STRENGTH = 10.0  # of h's probabilities beside standardized logits, in `two_sided`
_SLACK = 1e-6  # difference of probabilities that is lost in two float32 logarithms


def mix(g_probs: Tensor, h_probs: Tensor, alpha: float | Scalars) -> Logits:
    """log((1 − alpha) g + alpha h) in float64, returned as float32.

    Args:
        g_probs: of the standard network [b, k].
        h_probs: of the robust network [b, k].
        alpha: one for all or one per point [b].
    """
    a = torch.as_tensor(alpha, dtype=torch.float64, device=h_probs.device).reshape(-1, 1)
    p = (1 - a) * g_probs.double() + a * h_probs.double()
    return p.clamp_min(_FLOOR).log().float()


def floor_cutoff(alpha: float) -> float:
    """(1 − alpha) / alpha: the lead of h's top probability that makes g irrelevant.

    The share of points whose lead no attack on h alone brings below it is a lower bound of the
    mixture's robust accuracy.

    Raises:
        UsageError: for an alpha outside [0, 1].
    """
    _check_share("alpha", alpha)
    return (1 - alpha) / alpha if alpha > 0 else math.inf


def lipschitz_radius(probs: Tensor, y: Labels, alpha: float, lipschitz: float | Tensor) -> Scalars:
    """Radius within which the mixture predicts `y`, for h with Lipschitz probabilities.

    min over i ≠ y of max(0, alpha (h_y − h_i) + alpha − 1) / (alpha (L_y + L_i)), float64 [b], in
    the norm and units of L (arXiv:2301.12554).

    Args:
        probs: h at the clean points [b, k].
        lipschitz: one constant for every h_i, or one per class [k].

    Raises:
        UsageError: for an alpha outside [0, 1] or a constant that is not positive.
    """
    _check_share("alpha", alpha)
    constants = torch.as_tensor(lipschitz, dtype=torch.float64, device=probs.device)
    constants = constants.expand(probs.shape[1])
    if not bool((constants > 0).all()):
        raise UsageError(f"expected positive Lipschitz constants, got {constants.tolist()}")
    if alpha == 0:
        return probs.new_zeros(len(probs), dtype=torch.float64)
    h = probs.double()
    lead = alpha * (h.gather(1, y[:, None]) - h) + alpha - 1
    radii = lead.clamp_min(0) / (alpha * (constants[y][:, None] + constants))
    return _least(radii, y)


def smoothing_radius(probs: Tensor, y: Labels, alpha: float, sigma: float) -> Scalars:
    """l2 radius within which the mixture predicts `y`, for an h smoothed by Gaussian noise.

    min over i ≠ y of sigma / 2 · max(0, Φ⁻¹(alpha h_y) − Φ⁻¹(alpha h_i + 1 − alpha)), float64 [b],
    in input units; sound for bounds of h, lower at y and upper elsewhere (arXiv:2301.12554).

    Raises:
        UsageError: for an alpha outside [0, 1] or a sigma that is not positive.
    """
    _check_share("alpha", alpha)
    _check_positive("sigma", sigma)
    h = probs.double()
    own = torch.special.ndtri(alpha * h.gather(1, y[:, None]))
    other = torch.special.ndtri((alpha * h + 1 - alpha).clamp_max(1))
    radii = (sigma / 2 * (own - other)).nan_to_num(nan=0.0, posinf=torch.inf).clamp_min(0)
    return _least(radii, y)


def proved_by_margins(lower: Tensor, y: Labels, mixture: Mixed | None) -> Mask:
    """Return the points that are proved by bounds on z_y − z_j [b, k]: of h, in a mixture [b]."""
    if mixture is not None:
        _, alpha, scale = mixture.certificate_parts()
        return certified_by_margins(lower, y, alpha, scale)
    return _least(lower, y) > 0


def certified_by_margins(
    lower_margins: Tensor, y: Labels, alpha: float, rob_scale: float = 1.0
) -> Mask:
    """Return the points that the mixture provably classifies as `y`, from bounds on h alone [b].

    With m_j = rob_scale · lower_j ≤ rob_scale (z_y − z_j): h_y ≥ q = 1 / (1 + sum exp(−m_j)), and
    h_y − h_i ≥ q (1 − exp(−m_i)) wherever m_i ≥ 0; certified where the least of these exceeds
    `floor_cutoff(alpha)`.

    Args:
        lower_margins: lower bounds of h's z_y − z_j over the threat model [b, k], unscaled; the
            entry at y is not used.
        alpha: the lowest alpha of the mixture; below 1/2 nothing is certified.

    Raises:
        UsageError: for an alpha outside [0, 1] or a scale that is not positive.
    """
    _check_positive("rob_scale", rob_scale)
    cutoff = floor_cutoff(alpha)
    ratios = (-rob_scale * lower_margins.double()).exp()  # upper bounds of h_j / h_y
    ratios = ratios.scatter(1, y[:, None], 0.0)
    lead = (1 - ratios) / (1 + ratios.sum(1, keepdim=True))
    return _least(lead, y) > cutoff + _SLACK


def two_sided(g: Logits, h: Logits, h_probs: Tensor, alpha: float) -> Logits:
    """Surrogate logits [b, k] that lead an attack below h's cutoff and then across g's boundary.

    An attack must bring h's lead below the cutoff and fool g by the same perturbation. So h's top
    probability is reduced by the cutoff, but not below the runner-up; g enters by standardized
    logits, which do not saturate, and so does h while its lead exceeds the cutoff.

    Args:
        h: logits of the robust network [b, k].
        h_probs: the probabilities it enters the mixture with [b, k].
    """
    cutoff = floor_cutoff(alpha)
    top, place = h_probs.topk(2, dim=1)
    held = torch.maximum(top[:, 0] - cutoff, top[:, 1])[:, None]
    shrunk = h_probs.scatter(1, place[:, :1], held)
    above = (top[:, 0] - top[:, 1] > cutoff)[:, None]
    return (_STRENGTH * shrunk + above * standardized(h) + standardized(g)).float()


def standardized(logits: Logits) -> Logits:
    """Center logits [b, k] and divide them by their standard deviation, which has no gradient."""
    centered = logits - logits.mean(1, keepdim=True)
    return centered / centered.detach().std(1, keepdim=True).clamp_min(_FLOOR)


class Mixed(nn.Module):
    """log((1 − a) softmax(std_scale · g) + a softmax(rob_scale · h)), [b, *f] -> [b, k].

    a is the constant `alpha`, or alpha_bias + alpha_scale · sigmoid(gate); in training mode,
    sigmoid(gate). A gate is called with both networks and x, and returns their logits [b, k] and
    gamma [b]. Both networks are copied, frozen and always in evaluation mode. Surrogates:
    "gate_fixed": a at its lowest; "raw": standardized logits instead of probabilities, mixed by
    sigmoid(gate) or in equal shares; "two_sided": see `two_sided`.

    Raises:
        UsageError: unless either `alpha` or `gate` is given, with numbers in their ranges.
    """

    def __init__(
        self,
        standard: nn.Module,
        robust: nn.Module,
        *,
        alpha: float | None = None,
        gate: nn.Module | None = None,
        std_scale: float = 1.0,
        rob_scale: float = 1.0,
        alpha_scale: float = 1.0,
        alpha_bias: float = 0.0,
    ) -> None:
        super().__init__()
        if (alpha is None) == (gate is None):
            raise UsageError(f"expected either an alpha or a gate, got {alpha} and {gate}")
        _check_positive("std_scale", std_scale)
        _check_positive("rob_scale", rob_scale)
        _check_share("alpha_scale", alpha_scale)
        # Sums such as 0.95 + 0.05 may round up; alpha is clamped at 1.
        _check_share("alpha_bias", alpha_bias)
        _check_share("alpha_scale + alpha_bias", alpha_scale + alpha_bias - 1e-9)
        if alpha is not None:
            _check_share("alpha", alpha)
        self.standard = copy.deepcopy(standard).requires_grad_(False)
        self.robust = copy.deepcopy(robust).requires_grad_(False)
        self.gate, self.constant = gate, alpha
        self.std_scale, self.rob_scale = std_scale, rob_scale
        self.alpha_scale, self.alpha_bias = alpha_scale, alpha_bias
        self.train(self.training)

    def train(self, mode: bool = True) -> Mixed:
        """Set the mode of the gate; both networks stay in evaluation mode."""
        super().train(mode)
        self.standard.eval()
        self.robust.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """[b, *f] -> log-probabilities [b, k]."""
        g, h, gamma = self._parts(x)
        return self._mixed(g, h, self._alpha(gamma))

    def gated(self, x: Images) -> tuple[Logits, Scalars]:
        """Return the log-probabilities [b, k] and gamma [b] of one pass.

        Raises:
            UsageError: without a gate.
        """
        g, h, gamma = self._parts(x)
        if gamma is None:
            raise UsageError("expected a mixture with a gate, got one with a constant alpha")
        return self._mixed(g, h, self._alpha(gamma)), gamma

    def alpha(self, x: Images) -> Scalars:
        """Return the weight of the robust network at each input [b], float64."""
        value = self._alpha(self._parts(x)[2])
        if isinstance(value, Tensor):
            return value
        return torch.full((len(x),), value, dtype=torch.float64, device=x.device)

    def certificate_parts(self) -> tuple[nn.Module, float, float]:
        """Return the robust network, the lowest alpha in evaluation, and the robust scale."""
        lowest = self.alpha_bias if self.constant is None else self.constant
        return self.robust, lowest, self.rob_scale

    def surrogates(self) -> dict[str, Model]:
        """Return the surrogates, [b, *f] -> [b, k] each."""
        ways: dict[str, Callable[[Logits, Logits, Scalars | None], Logits]]
        ways = {"raw": self._raw, "two_sided": self._two_sided}
        if self.gate is not None:
            ways = {"gate_fixed": self._gate_fixed, **ways}
        return {name: Joint(partial(self._joint, way)) for name, way in ways.items()}

    def _parts(self, x: Images) -> tuple[Logits, Logits, Scalars | None]:
        if self.gate is None:
            return self.standard(x), self.robust(x), None
        parts: tuple[Logits, Logits, Scalars] = self.gate(self.standard, self.robust, x)
        return parts

    def _alpha(self, gamma: Scalars | None) -> float | Scalars:
        if gamma is None:
            return float(self.constant or 0.0)
        share = gamma.double().sigmoid()
        if self.training:
            return share
        return (share * self.alpha_scale + self.alpha_bias).clamp_max(1)

    def _mixed(self, g: Logits, h: Logits, alpha: float | Scalars) -> Logits:
        g_probs = (self.std_scale * g.double()).softmax(1)
        return mix(g_probs, (self.rob_scale * h.double()).softmax(1), alpha)

    def _joint(
        self, way: Callable[[Logits, Logits, Scalars | None], Logits], x: Images
    ) -> tuple[Logits, Logits]:
        g, h, gamma = self._parts(x)
        climbed = way(g, h, gamma)
        with torch.no_grad():
            return climbed, self._mixed(g, h, self._alpha(gamma))

    def _gate_fixed(self, g: Logits, h: Logits, _: Scalars | None) -> Logits:
        return self._mixed(g, h, self.certificate_parts()[1])

    def _raw(self, g: Logits, h: Logits, gamma: Scalars | None) -> Logits:
        share = 0.5 if gamma is None else gamma.sigmoid()[:, None]
        return (1 - share) * standardized(g) + share * standardized(h)

    def _two_sided(self, g: Logits, h: Logits, _: Scalars | None) -> Logits:
        h_probs = (self.rob_scale * h.double()).softmax(1)
        return two_sided(g, h, h_probs, self.certificate_parts()[1])


def _least(values: Tensor, y: Labels) -> Scalars:
    """Smallest value [b, k] at a class other than y."""
    least: Scalars = values.scatter(1, y[:, None], torch.inf).amin(1)
    return least


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UsageError(f"expected {name} in [0, 1], got {value!r}")


def _check_positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise UsageError(f"expected a positive {name}, got {value!r}")
