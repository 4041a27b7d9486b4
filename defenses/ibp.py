"""Certified training by bounds: IBP, CROWN-IBP, SABR, CC-, MTL-, Exp-IBP, TAPS and STAPS."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from robustkit.certify.crown import crown_margins
from robustkit.certify.graph import Graph, clean_statistics, trace
from robustkit.certify.ibp import Box, input_box, intervals, margins_of
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels
from robustkit.models.adversarial_training import perturb
from robustkit.models.architectures import cnn3, cnn7, cnn_a
from robustkit.models.training import Recipe, Step
from robustkit.registry import defenses

from ._expressive import expressive
from ._taps import taps_loss

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


@defenses.register("ibp", cites="arXiv:1810.12715")
@dataclass(frozen=True)
class Ibp:
    """Certified training, linf: cross-entropy at the worst logits that the bounds allow.

    (1 − kappa) · CE + kappa · L_robust + regularizers while eps ramps + l1 · sum |W|, with the
    robust loss of `loss`:
    "ibp": CE of the interval bounds of the margins (Gowal et al. 2018), last layer elided;
    "crown_ibp": of bounds that go over from CROWN-IBP to IBP as eps ramps (Zhang et al. 2020);
    "sabr": of the intervals of a small box, half-width tau · eps, around an adversarial point
    (Müller et al. 2023);
    "cc_ibp", "mtl_ibp", "exp_ibp": a blend of these intervals and an adversarial point, of their
    margins, their losses a · L_ibp + (1 − a) · L_adv, or the logarithms of these (De Palma et al.
    2024); `kappa=1` leaves out the natural loss, as there;
    "taps": L_taps · L_ibp, with intervals up to an inner layer and an ascent behind it (Mao et al.
    2023);
    "staps": the same from the small box of "sabr".
    Initialization and regularizers: Shi et al. 2021. The small boxes of "sabr" and "staps", and the
    ascents, prove nothing about the ball: certificates come from `--certify` alone.
    Differs from the papers: AdamW with a cosine schedule, shorter; batch normalization keeps its
    running statistics at the end of an epoch; "taps" is trained while eps ramps too, and both of
    its factors are of one point, not means of the batch; adversarial points are searched by the
    same few steps of PGD for every loss.

    Attributes:
        eps: radius to be certified.
        train_eps: radius at the end of the ramp; 1.5 eps up to 0.15, else eps, when not given.
        ramp: share of the training until that radius is reached: a quarter of it as the fourth
            power, then straight.
        kappa: weight of the robust loss.
        reg: weight of the regularizers at eps = 0.
        tau: half-width of the small box, as a share of eps.
        a: weight of the bounds in a blend.
        steps: of PGD, in the ball or in the inner box of "taps".
        relus: ReLUs behind the inner box of "taps".
    """

    loss: Literal["ibp", "crown_ibp", "sabr", "mtl_ibp", "cc_ibp", "exp_ibp", "taps", "staps"] = (
        "ibp"
    )
    eps: Positive = 0.1
    train_eps: Positive | None = None
    kappa: Share = 0.7
    ramp: Share = 0.4
    reg: float = 0.5
    l1: float = 2e-6
    tau: Share = 0.4
    a: Share = 0.1
    steps: Count = 5
    relus: Count = 1
    net: Literal["cnn3", "cnn_a", "cnn7"] = "cnn3"
    width: int = 16

    @property
    def recipe(self) -> Recipe:
        """A third of the published epochs; in float32, as bfloat16 would swamp the bounds."""
        return Recipe(epochs=25, lr=1e-3, weight_decay=0.0, clip=10.0, half=False)

    def network(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Return the network `net`, initialized for interval bounds."""
        build = {"cnn3": cnn3, "cnn_a": cnn_a, "cnn7": cnn7}[self.net]
        return _initialize(build(shape, classes, self.width))

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Mean natural and robust loss, and the regularizers."""
        most = self.train_eps or (1.5 * self.eps if self.eps <= 0.15 else self.eps)
        share = self._share(step)
        threat = Threat("linf", max(most * share, 1e-6))
        graph = trace(model, tuple(x.shape[1:]))
        # The bounds use the batch statistics of the clean pass (CTBench): those of attacked inputs
        # would make the network another one.
        with clean_statistics(model):
            natural = nn.functional.cross_entropy(model(x), y)
            box = self._box(model, x, y, threat, step.generator)
            boxes = intervals(graph, box)
            robust = self._robust(model, graph, boxes, x, y, threat, step)
            total = (1 - self.kappa) * natural + self.kappa * robust
            if share < 1 and self.reg:
                total = total + self.reg * (1 - share) * regularizer(graph, boxes)
        weights = sum(p.abs().sum() for p in model.parameters() if p.ndim > 1)
        return total + self.l1 * weights

    def _share(self, step: Step) -> float:
        """Return the radius at a step of the training, as a share of the final one."""
        return smooth_ramp(step.progress / max(self.ramp, 1e-9))

    def _box(
        self, model: nn.Module, x: Images, y: Labels, threat: Threat, generator: Generator
    ) -> Box:
        """Return the input box whose bounds are trained."""
        whole = input_box(x, threat)
        if self.loss not in ("sabr", "staps"):
            return whole
        reach = self.tau * (whole.high - whole.low) / 2
        # Clipped so that the small box around the adversarial point lies inside the whole one.
        z = _attack(model, x, y, threat, self.steps, generator)
        center = torch.minimum(torch.maximum(z, whole.low + reach), whole.high - reach)
        return Box(center - reach, center + reach)

    def _robust(
        self,
        model: nn.Module,
        graph: Graph,
        boxes: list[Box],
        x: Images,
        y: Labels,
        threat: Threat,
        step: Step,
    ) -> Tensor:
        """Return the robust loss of `loss`, a scalar."""
        lower, share = margins_of(graph, boxes, y), self._share(step)
        if self.loss == "crown_ibp" and share < 1:
            linear = crown_margins(graph, x, y, threat, intermediate="ibp", boxes=boxes)
            lower = share * lower + (1 - share) * linear
        if self.loss in ("cc_ibp", "mtl_ibp", "exp_ibp"):
            z = _attack(model, x, y, threat, self.steps, step.generator)
            return expressive(self.loss, model(z), lower, y, self.a)
        if self.loss in ("taps", "staps"):
            return taps_loss(
                graph,
                boxes,
                lower,
                y,
                relus=self.relus,
                steps=self.steps,
                generator=step.generator,
            )
        return nn.functional.cross_entropy(-lower, y)


@defenses.register("mtl_ibp", cites="arXiv:2305.13991")
@dataclass(frozen=True)
class MtlIbp(Ibp):
    """CNN-A trained by (1 − a) · L_adv + a · L_ibp, L_adv at PGD's points (De Palma et al. 2024).

    With so small an `a` intervals prove little; branch and bound (`--certify auto`) proves most of
    what attacks leave.
    Differs from the paper: as `ibp`, whose options these are with other defaults; a smaller network
    and fewer epochs.
    """

    loss: Literal["mtl_ibp"] = "mtl_ibp"
    kappa: Share = 1.0
    a: Share = 0.01
    steps: Count = 2
    train_eps: Positive | None = 0.12
    net: Literal["cnn3", "cnn_a", "cnn7"] = "cnn_a"


def smooth_ramp(progress: float) -> float:
    """Return the share of the final eps: x^4 for the first quarter, then straight up to 1 at 1.

    Value and slope are continuous at the joint (Shi et al. 2021, code).
    """
    joint = 0.25
    slope = 1 / (joint / 4 + 1 - joint)
    if progress >= 1:
        return 1.0
    if progress <= joint:
        return slope * joint / 4 * (progress / joint) ** 4
    return slope * joint / 4 + slope * (progress - joint)


def regularizer(graph: Graph, boxes: list[Box], tolerance: float = 0.5) -> Tensor:
    """Penalize intervals that grow with depth, and an imbalance of active and inactive neurons.

    L_tightness + L_relu of Shi et al. 2021, equations (7) and (9), over the inputs of the ReLUs.
    """
    source = _radius(boxes[0]).mean()
    terms = []
    for low, high in (boxes[index] for index in graph.relu_inputs()):
        center, radius = (low + high) / 2, (high - low) / 2
        terms.append((tolerance - source / radius.mean().clamp_min(1e-12)).relu())
        on, off = (low > 0).to(low.dtype), (high < 0).to(low.dtype)
        mean = (center * on).mean() / (-(center * off).mean()).clamp_min(1e-12)
        spread = (center - center.mean()).square()
        variance = (spread * on).sum() / (spread * off).sum().clamp_min(1e-12)
        for ratio in (mean, variance):
            balance = torch.minimum(ratio, 1 / ratio.clamp_min(1e-12))
            usable = (ratio > 1e-9) & (ratio < 1e9)
            terms.append(torch.where(usable, (tolerance - balance).relu(), 0.0))
    return torch.stack(terms).sum() / (tolerance * max(1, len(graph.relu_inputs())))


def _radius(box: Box) -> Tensor:
    return (box.high - box.low) / 2


def _attack(
    model: nn.Module, x: Images, y: Labels, threat: Threat, steps: int, generator: Generator
) -> Images:
    """Run PGD with the running statistics of batch normalization."""
    training = model.training
    model.eval()

    def loss(logits: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, y, reduction="sum")

    z = perturb(model, x, loss, threat, steps=steps, generator=generator)
    model.train(training)
    return z


def _initialize(network: nn.Module) -> nn.Module:
    """Draw every weight but the last layer's from N(0, 2 pi / fan_in²).

    Shi et al. 2021, section 4.1: E|w| = 2 / fan_in, halved by the ReLU: intervals keep their width
    on average, where Kaiming's initialization widens them in every layer.
    """
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for layer in layers[:-1]:
        fan_in = layer.weight[0].numel()
        nn.init.normal_(layer.weight, std=math.sqrt(2 * math.pi) / fan_in)
    return network
