"""Wrappers of the output: the order of the logits stays, their scale, shape or precision does not.

Sources: gradient masking by saturation (Carlini and Wagner 2017, arXiv:1608.04644), logit scaling
that fools cross-entropy (GAIRAT, see Hitaj et al. 2021, arXiv:2103.01914), hard labels.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import one_hot, softmax

from benchmarks.gauntlet.wrapper import Wrapper, wrapper


def label(logits: Tensor) -> Tensor:
    """Return the decision as a one-hot vector [b, k], without a graph."""
    return one_hot(logits.argmax(1), logits.shape[1]).to(logits.dtype)


@wrapper("logit_scale", "outputs")
class LogitScale(Wrapper):
    """Logits times 1,000: the softmax saturates, and the gradient of cross-entropy is zero."""

    def forward(self, x: Tensor) -> Tensor:
        return 1e3 * self.smooth(x)


@wrapper("temperature", "outputs")
class Temperature(Wrapper):
    """Logits times 1e-30: cross-entropy is a constant in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return 1e-30 * self.smooth(x)


@wrapper("exponential", "outputs")
class Exponential(Wrapper):
    """exp of four times the logits: gaps of many orders of magnitude."""

    def forward(self, x: Tensor) -> Tensor:
        return (4 * self.smooth(x)).clamp_max(85).exp()


@wrapper("saturated_softmax", "outputs", moved=0.005)
class SaturatedSoftmax(Wrapper):
    """Probabilities at temperature 1/50: zeros and ones in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return softmax(50 * self.smooth(x), dim=1)


@wrapper("half_probabilities", "outputs", moved=0.005)
class HalfProbabilities(Wrapper):
    """Probabilities in float16."""

    def forward(self, x: Tensor) -> Tensor:
        return softmax(4 * self.smooth(x), dim=1).half().float()


@wrapper("probability_floor", "outputs")
class ProbabilityFloor(Wrapper):
    """Log-probabilities with a floor at 0.1: on most inputs no wrong class has a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        logits = 4 * self.smooth(x)
        return softmax(logits, dim=1).clamp_min(0.1).log() + 1e-3 * label(logits)


@wrapper("rounded_logits", "outputs")
class RoundedLogits(Wrapper):
    """Logits rounded to whole numbers; ties go to the class that led before."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.smooth(x)
        return logits.round() + 0.25 * label(logits)


@wrapper("one_hot", "outputs")
class OneHot(Wrapper):
    """The decision alone, as a one-hot vector; the graph stays, its gradient is zero."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.smooth(x)
        return label(logits) + 0 * logits


@wrapper("cancellation", "outputs", moved=0.005)
class Cancellation(Wrapper):
    """A large constant added and subtracted: eight bits are left of each logit's fraction."""

    def forward(self, x: Tensor) -> Tensor:
        return (self.smooth(x) + 2.0**15) - 2.0**15


@wrapper("staircase", "outputs")
class Staircase(Wrapper):
    """Logits sorted into ranks, 0 to k − 1: comparisons count how many classes are behind."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.smooth(x)
        behind = logits[:, :, None] > logits[:, None, :]
        return behind.sum(2).to(logits.dtype) + 0 * logits


@wrapper("clipped_lead", "outputs")
class ClippedLead(Wrapper):
    """Logits behind the leader by more than 0.5 are clipped there: a plateau around most inputs."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.smooth(x)
        return (logits - logits.amax(1, keepdim=True)).clamp_min(-0.5)
