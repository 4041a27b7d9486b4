"""Robust self-training: unlabeled images, also of another domain, under their own pseudo-labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from robustkit.core.spec import Spec
from robustkit.core.types import Images, Labels, Mask, Scalars, per_point
from robustkit.errors import RobustkitError
from robustkit.models.adversarial_training import frozen_weights
from robustkit.models.training import Step, Trainable
from robustkit.registry import defenses

from ._net import OnNet

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
LOG = "log.pseudo_labels"
_MOST = 3  # times the even share: more pseudo-labels of one class are a collapse


@defenses.register("self_training", cites="arXiv:2310.00027")
@dataclass(frozen=True)
class SelfTraining(OnNet):
    """Adversarial training on few labels and many unlabeled images, in or out of the domain, linf.

    Saberi et al. 2024: the robust loss of the labeled points plus `weight` times that of unlabeled
    ones under the labels that the model itself predicts. "penalized" is the paper's loss,
    phi(x, y) = sup_z CE(z, y) − gamma ‖z − x‖² with z in [0, 1]; "hard" puts the base defense's
    PGD over a ball in its place. The weight rises over the first half of the training. The authors
    do not publish gamma, weight and optimizer: the values here are ours, and so are the hard form
    and the gate.

    Stops with an error when, in an epoch, one of k classes has more than 3/k of the model's own
    pseudo-labels (k > 3). log.json has a row an epoch: pseudo-labels, those whose truth is known,
    those right, then how many of each class.

    Attributes:
        labels: points of the training data that keep their labels, as many of each class.
        pool: the unlabeled images, anything `--data` takes or an npz without y; "": the other
            training points.
        pseudo: "own" are the current model's; "given" are the pool's own labels, such as those
            that another model gave them.
        base: the defense whose objective is the loss of the hard form.
        weight: of the unlabeled term; 0 leaves the base defense on the labeled points.
        gate: least probability of a pseudo-label that is used; 0 uses all.
        form: "hard" or "penalized".
        eps: radius of the attack in training, in input units.
        pool_eps: radius on unlabeled points, as a share of eps.
        gamma: price of a squared l2 distance, on labeled points; large is less robust.
        pool_gamma: likewise on unlabeled points.
        steps: of PGD; of the ascent in the penalized form.
        beta: of the base `trades`.
        width: channels of the first convolution.
    """

    labels: Annotated[int, Field(ge=1)] = 1000
    pool: str = ""
    pseudo: Literal["own", "given"] = "own"
    base: Literal["pgd_at", "trades"] = "pgd_at"
    weight: Annotated[float, Field(ge=0)] = 1.0
    gate: Share = 0.8
    form: Literal["hard", "penalized"] = "hard"
    eps: Positive = 0.1
    pool_eps: Annotated[float, Field(gt=0, le=1)] = 1.0
    gamma: Positive = 1.0
    pool_gamma: Positive = 1.0
    steps: Annotated[int, Field(ge=1)] = 7
    beta: float = 6.0
    width: int = 32

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Mean loss of the labeled points plus the weighted sum of the others', by their number.

        x [b, c, h, w]; y [b], negative where a point is unlabeled: −1 − its label, which is not
        used but to count how many pseudo-labels are right.

        Raises:
            RobustkitError: when the pseudo-labels have collapsed.
        """
        known, weight = y >= 0, self.weight * min(1.0, 2 * step.progress)
        # A batch may be without labels by chance: nothing to learn then, but still a scalar.
        loss: Tensor = model(x[:1]).sum() * 0
        if bool(known.any()):
            loss = self._robust(model, x[known], y[known], step, pool=False)
        if weight == 0 or bool(known.all()):
            return loss
        x, truth = x[~known], ~y[~known]
        labels, kept, classes = self._pseudo(model, x, truth)
        count(step, labels[kept], truth[kept], classes, stops=self.pseudo == "own")
        if not bool(kept.any()):
            return loss
        share = kept.double().mean().float()
        return loss + weight * share * self._robust(model, x[kept], labels[kept], step, pool=True)

    def _pseudo(self, model: nn.Module, x: Images, truth: Labels) -> tuple[Labels, Mask, int]:
        """Return labels, which of them to use, and the number of classes; no gradient."""
        with torch.no_grad():
            probs, labels = model(x).float().softmax(1).max(1)
            classes = model(x[:1]).shape[1]
        if self.pseudo == "given":
            return truth, truth < classes, classes
        return labels, probs >= self.gate, classes

    def _robust(self, model: nn.Module, x: Images, y: Labels, step: Step, *, pool: bool) -> Tensor:
        """Mean robust loss of labeled points, or of unlabeled ones under their pseudo-labels."""
        if self.form == "penalized":
            gamma = self.pool_gamma if pool else self.gamma
            return penalized(model, x, y, gamma, self.steps).mean()
        options = {"eps": self.eps * (self.pool_eps if pool else 1.0), "steps": self.steps}
        if self.base == "trades":
            options["beta"] = self.beta
        base: Trainable = defenses.build(Spec(self.base, tuple(sorted(options.items()))))
        return base.objective(model, x, y, step)


def penalized(model: nn.Module, x: Images, y: Labels, gamma: float, steps: int) -> Scalars:
    """sup_z CE(z, y) − gamma ‖z − x‖² for z in [0, 1], with the gradient of the weights [b].

    Saberi et al. 2024: ascent from x by steps 1 / (2 gamma), which shrink with the root of their
    number. The best iterate counts, so that the value is never below the loss at x itself. The
    ascent finds the supremum where gamma exceeds half the smoothness of the loss.
    """

    def values(z: Images) -> Scalars:
        entropy = nn.functional.cross_entropy(model(z).float(), y, reduction="none")
        return entropy - gamma * (z - x).square().flatten(1).sum(1)

    z, best, most = x, x, torch.full((len(x),), -math.inf, device=x.device)
    with frozen_weights(model):
        for number in range(steps + 1):
            z = z.detach().requires_grad_(True)
            value = values(z)
            better = value.detach() > most
            most = torch.where(better, value.detach(), most)
            best = torch.where(per_point(better, x), z.detach(), best)
            (gradient,) = torch.autograd.grad(value.sum(), z)
            move = gradient / (2 * gamma * math.sqrt(number + 1))
            z = (z.detach() + move).clamp(0, 1)
    return values(best)


def count(step: Step, labels: Labels, truth: Labels, classes: int, *, stops: bool = True) -> None:
    """Add pseudo-labels [b] to the row of their epoch: all, of known truth, right, by class.

    Args:
        stops: whether a collapse is an error.

    Raises:
        RobustkitError: at the end of an epoch in which one class has more than 3/k of them.
    """
    rows = step.memory.get(LOG, torch.zeros(0, 3 + classes)).cpu().double()
    missing = torch.zeros(max(0, step.epoch + 1 - len(rows)), 3 + classes, dtype=torch.float64)
    rows = torch.cat([rows, missing])
    known = truth < classes
    right = (labels == truth) & known
    by_class = torch.bincount(labels, minlength=classes)
    totals = torch.stack(
        [known.new_tensor(len(labels), dtype=torch.long), known.sum(), right.sum()]
    )
    rows[step.epoch] += torch.cat([totals, by_class]).cpu()
    step.memory[LOG] = rows
    total, row = float(rows[step.epoch, 0]), rows[step.epoch, 3:]
    if stops and step.last and total and float(row.max()) > _MOST / classes * total:
        raise RobustkitError(
            f"the pseudo-labels have collapsed: in epoch {step.epoch + 1} expected at most "
            f"{_MOST}/{classes} of them in one class, got {float(row.max()):.0f} of {total:.0f} in "
            f"class {int(row.argmax())}. Train with more labels, a smaller weight or a higher gate."
        )
