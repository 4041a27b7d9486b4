"""Randomized smoothing: a probabilistic certificate for any base classifier.

Cohen, Rosenfeld, Kolter 2019 (arXiv:1902.02918). The certificate is one of the smoothed
classifier g(x) = argmax_c P(f(x + sigma N) = c), N standard normal, not of the base classifier f.
"""

from __future__ import annotations

import math
import zlib
from typing import NamedTuple

import torch
from scipy.special import betaincinv, ndtri
from torch import Generator, Tensor, nn

from robustkit.core.device import full_precision
from robustkit.core.rng import generator
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Model
from robustkit.errors import UsageError

TIE_BREAK = 1e-3  # weight of the mean probabilities beside the vote shares


class Proof(NamedTuple):
    """The certified class of one point (−1: it abstains) and its l2 radius, in input units."""

    label: int
    radius: float


def radius(successes: int, draws: int, sigma: float, alpha: float = 0.001) -> float:
    """Return sigma · Φ⁻¹(p) with the lower 1 − alpha Clopper-Pearson bound p; 0 where p ≤ 1/2.

    Cohen et al. 2019, theorem 1 with p_B = 1 − p_A, as in their algorithm CERTIFY.

    Args:
        successes: draws, of `draws`, in which the base predicted the class.
        sigma: standard deviation of the noise, in input units.

    Raises:
        UsageError: unless 0 ≤ successes ≤ draws and draws ≥ 1.
    """
    if not 0 <= successes <= draws or draws < 1:
        raise UsageError(
            f"expected 0 ≤ successes ≤ draws and draws ≥ 1, got {successes} of {draws}"
        )
    if successes == 0:
        return 0.0
    lower = float(betaincinv(successes, draws - successes + 1, alpha))
    return sigma * float(ndtri(lower)) if lower > 0.5 else 0.0


def reach(threat: Threat, features: int) -> float:
    """Return the l2 radius of the smallest l2 ball around the threat model's ball."""
    if threat.norm == "linf":  # ‖δ‖₂ ≤ √d ‖δ‖∞
        return threat.eps * math.sqrt(features)
    if threat.norm == "l0":  # k coordinates, each by the width of the box
        return math.sqrt(threat.eps) * (threat.upper - threat.lower)
    return threat.eps  # ‖δ‖₂ ≤ ‖δ‖₁


def votes(base: Model, x: Images, sigma: float, draws: int, draw: Generator) -> Tensor:
    """Count the classes that `base` predicts, in full float32, at `x` [*f] under noise: [k]."""
    # Full float32: under TF32 the votes would be those of another function than the one evaluated.
    counts: Tensor | None = None
    for start in range(0, draws, 500):
        size = min(500, draws - start)
        # Drawn on the CPU, so that every device sees the same noise.
        noise = torch.randn(size, *x.shape, generator=draw).to(x.device)
        with torch.no_grad(), full_precision():
            answers = base(x + sigma * noise)
        found = torch.bincount(answers.argmax(1), minlength=answers.shape[1])
        counts = found if counts is None else counts + found
    if counts is None:
        raise UsageError(f"expected at least one draw, got {draws}")
    return counts


def certify_point(
    base: Model, x: Images, sigma: float, *, select: int, draws: int, seed: int, alpha: float
) -> Proof:
    """Run algorithm CERTIFY on one input `x` [*f] with `select` + `draws` passes of the base.

    With probability at least 1 − alpha over the noise, g predicts the label everywhere within the
    radius, or it abstains. The noise is a function of `seed` and the content of `x`.
    """
    # By content, not by position: the certificate of a point is the same in any subset of the data.
    content = zlib.crc32(x.detach().cpu().contiguous().numpy().tobytes())
    draw = generator(seed, 2, content)
    # The class is selected on draws of its own: a bound on the class that looks best on the same
    # draws would not hold with probability 1 − alpha.
    label = int(votes(base, x, sigma, select, draw).argmax())
    successes = int(votes(base, x, sigma, draws, draw)[label])
    found = radius(successes, draws, sigma, alpha)
    return Proof(label, found) if found > 0 else Proof(-1, 0.0)


class Smoothed(nn.Module):
    """The smoothed classifier over a sample: log of vote shares [b, k], ties by mean probability.

    The noise of a pass is a function of the seed and the number of passes so far. Surrogate "soft":
    the logarithm of the mean probability, whose gradient is the mean over the draws; vote shares
    have none.
    """

    def __init__(self, base: nn.Module, sigma: float, draws: int, seed: int = 0) -> None:
        super().__init__()
        self.base, self.sigma, self.draws, self.seed = base, sigma, draws, seed
        self.passes = 0
        self.randomized = True

    def forward(self, x: Tensor) -> Tensor:
        """[b, *f] -> [b, k]."""
        probabilities = self._probabilities(x)
        hard = nn.functional.one_hot(probabilities.argmax(2), probabilities.shape[2])
        shares = hard.to(x.dtype).mean(0) + TIE_BREAK * probabilities.mean(0)
        return shares.clamp_min(1e-12).log()

    def surrogates(self) -> dict[str, Model]:
        """Return the soft vote."""
        return {"soft": lambda x: self._probabilities(x).mean(0).clamp_min(1e-12).log()}

    def _probabilities(self, x: Tensor) -> Tensor:
        self.passes += 1
        draw = generator(self.seed, 3, self.passes)
        noise = torch.randn(self.draws, *x.shape, generator=draw).to(x)
        logits = self.base((x + self.sigma * noise).flatten(0, 1))
        probabilities: Tensor = logits.softmax(1).view(self.draws, len(x), -1)
        return probabilities
