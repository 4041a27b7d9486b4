"""Randomized smoothing as a certificate of a run: point by point, by seeded draws."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from scipy.special import ndtr

from robustkit.certify.smoothing import TIE_BREAK, Smoothed, certify_point, reach
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels, Mask
from robustkit.models.mixture import Mixed, smoothing_radius


@dataclass(frozen=True)
class Sampling:
    """Randomized smoothing: right with probability at least 1 − alpha for each point, or abstains.

    A mixture is certified by the vote shares of its smoothed part (`smoothing_radius`).
    """

    model: Smoothed
    threat: Threat
    seed: int = 0
    select: int = 100
    draws: int = 1000
    alpha: float = 0.001
    mixture: Mixed | None = None

    batch = 8
    method = "smoothing"

    @property
    def name(self) -> str:
        """The method with the options that decide its strength."""
        return f"smoothing(alpha={self.alpha}, draws={self.draws}, sigma={self.model.sigma})"

    def at(self, threat: Threat) -> Sampling:
        """Return the same certificate for another eps."""
        return replace(self, threat=threat)

    def prove(self, x: Images, y: Labels) -> Mask:
        """Certify one point after the other."""
        # The l2 ball that contains the threat model: sound, and loose by √d for linf.
        needed = reach(self.threat, x[0].numel())
        proofs = [
            certify_point(
                self.model.base,
                point,
                self.model.sigma,
                select=self.select,
                draws=self.draws,
                seed=self.seed,
                alpha=self.alpha,
            )
            for point in x
        ]
        verdicts = [
            proof.label == label and self._radius(proof.radius) > needed
            for proof, label in zip(proofs, y.tolist(), strict=True)
        ]
        return torch.tensor(verdicts, device=x.device)

    def _radius(self, radius: float) -> float:
        """Turn the radius of the smoothed part into that of the whole model."""
        if self.mixture is None:
            return radius
        _, alpha, scale = self.mixture.certificate_parts()
        if scale != 1:  # softmax(scale · log share) is not the share: the lemma does not apply
            return 0.0
        least = float(ndtr(radius / self.model.sigma))
        # `Smoothed` adds a thousandth of the mean probabilities to the shares: the worst case is
        # all of it on the runner-up.
        blended = torch.tensor([[least, 1 - least + TIE_BREAK]]) / (1 + TIE_BREAK)
        first = torch.zeros(1, dtype=torch.long)
        return float(smoothing_radius(blended, first, alpha, self.model.sigma))
