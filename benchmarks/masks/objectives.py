"""Masks of the training objective: the network is ordinary, its loss surface is not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, mse_loss, normalize, one_hot

from benchmarks.masks.mask import PUBLISHED_STEPS, Mask, Masked, mask
from robustkit.core.threat import Threat
from robustkit.core.types import Model
from robustkit.data.dataset import Dataset
from robustkit.models.adversarial_training import perturb, ramp
from robustkit.models.architectures import small_cnn
from robustkit.models.training import Step


class Plain(Masked):
    """A network as it is."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, k]."""
        logits: Tensor = self.net(x)
        return logits


@dataclass(frozen=True)
class Objective(Mask):
    """A mask that is a small CNN, trained by another objective."""

    def wrap(self, bare: nn.Module, learned: nn.Module | None, data: Dataset) -> Masked:
        """Wear nothing: the training is the mask."""
        assert learned is not None
        return Plain(learned)


class DummyNet(Plain):
    """A network with two outputs per class: the larger one is the class's logit."""

    def pairs(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> the class's own output and its dummy [b, 2, k]."""
        outputs: Tensor = self.net(x)
        return outputs.reshape(len(x), 2, -1)

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, k]."""
        return self.pairs(x).amax(1)

    def experts(self) -> dict[str, Model]:
        """The logarithm of both outputs' probabilities together: no output absorbs the attack."""
        return {"together": lambda x: self.pairs(x).logsumexp(1)}


@mask("dummy_classes", "Wang et al. 2024, arXiv:2410.12671")
@dataclass(frozen=True)
class DummyClasses(Objective):
    """Every class has a second output, which training teaches to absorb adversarial inputs.

    Clean inputs belong to the class by `share` and to its dummy by the rest, adversarial ones the
    other way round; both outputs count as the class.
    """

    share: float = 0.75

    def network(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """The small CNN with twice as many outputs."""
        return small_cnn(shape, 2 * classes, self.width)

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Cross-entropy with both soft labels, half each."""
        threat = Threat("linf", ramp(self.eps, step.progress))
        z = perturb(model, x, lambda out: cross_entropy(out, y, reduction="sum"), threat,
                    steps=PUBLISHED_STEPS, generator=step.generator)  # fmt: skip
        clean, attacked = model(torch.cat([x, z])).log_softmax(1).chunk(2)
        wide = clean.shape[1]
        own, dummy = one_hot(y, wide), one_hot(y + wide // 2, wide)
        soft = self.share * own + (1 - self.share) * dummy
        turned = self.share * dummy + (1 - self.share) * own
        loss: Tensor = (soft * clean).sum(1) + (turned * attacked).sum(1)
        return -loss.mean() / 2

    def wrap(self, bare: nn.Module, learned: nn.Module | None, data: Dataset) -> DummyNet:
        """Answer with the larger output of every class."""
        assert learned is not None
        return DummyNet(learned)


@mask(
    "logit_pairing", "Kannan et al. 2018, arXiv:1803.06373; Mosbach et al. 2018, arXiv:1810.12042"
)
@dataclass(frozen=True)
class LogitPairing(Objective):
    """Trained on clean and adversarial inputs whose logits are drawn together, and squeezed.

    Attributes:
        pairing: weight of the squared difference of the logits.
        squeezing: weight of their square.
    """

    pairing: float = 1.0
    squeezing: float = 0.05

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Half clean, half adversarial cross-entropy, pairing and squeezing."""
        threat = Threat("linf", ramp(self.eps, step.progress))
        z = perturb(model, x, lambda out: cross_entropy(out, y, reduction="sum"), threat,
                    steps=PUBLISHED_STEPS, generator=step.generator)  # fmt: skip
        clean, attacked = model(torch.cat([x, z])).chunk(2)
        loss = (cross_entropy(clean, y) + cross_entropy(attacked, y)) / 2
        squeezed = self.squeezing * (clean.square().mean() + attacked.square().mean()) / 2
        total: Tensor = loss + self.pairing * mse_loss(clean, attacked) + squeezed
        return total


@mask("feature_scattering", "Zhang & Wang 2019, arXiv:1907.10764")
@dataclass(frozen=True)
class FeatureScattering(Objective):
    """Trained on inputs that move the batch's logits away from the clean ones, as a whole.

    One step of eps from a random point climbs the optimal transport distance between both batches
    of logits (cosine cost, Sinkhorn), without a label; then cross-entropy with smoothed labels.

    Attributes:
        smoothing: share of the label that all classes divide.
        rounds: of Sinkhorn's algorithm.
    """

    smoothing: float = 0.5
    rounds: int = 30

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Cross-entropy at the scattered inputs."""
        with torch.no_grad():
            clean = model(x)
        threat = Threat("linf", ramp(self.eps, step.progress))
        z = perturb(model, x, lambda out: len(x) * transport(clean, out, self.rounds), threat,
                    steps=1, step_size=threat.eps, generator=step.generator)  # fmt: skip
        return cross_entropy(model(z), y, label_smoothing=self.smoothing)


def transport(first: Tensor, second: Tensor, rounds: int, sharpness: float = 100.0) -> Tensor:
    """Return the entropic optimal transport distance of two batches of logits [b, k]: a scalar.

    The cost is one minus the cosine; both batches have uniform weights. The plan is a constant to
    the gradient (the envelope theorem). Cuturi 2013, by logarithms.
    """
    cost = 1 - normalize(first, dim=1) @ normalize(second, dim=1).T
    kernel = -sharpness * cost.detach()
    plan = kernel
    for _ in range(rounds):
        plan = log_softmax(plan, 0)
        plan = log_softmax(plan, 1)
    return (plan.exp() * cost).sum() / len(first)
