"""Classification by components: learned points, and what their presence and absence speak for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from robustkit.core.losses import margin
from robustkit.errors import UsageError
from robustkit.models.training import Recipe, Step
from robustkit.registry import defenses

from ._component_bounds import radius
from ._components import Components, Distance

Count = Annotated[int, Field(ge=1)]


@defenses.register("cbc", cites="arXiv:2412.15499", against="l2")
@dataclass(frozen=True)
class Cbc:
    """Classification by components (CBC) or by an RBF network, certified by formula.

    Saralajew et al. 2025; `Components` has the equations. [b, c, h, w] in [0, 1] -> log p [b, k].
    Trained by relu(max wrong p − max right p + margin), or, with `robust`, by relu(robust − r), r
    the radius in l2 of their theorem 1 (negative where the point is misclassified). Certificates
    for every norm: `--certify components`, which `auto` takes; "components-bisect", "-net" and
    "-published" are looser, in this order.
    Differs from the paper: AdamW with a cosine schedule, shorter and faster; the first σ comes from
    the number of features, not from data.

    Attributes:
        reasoning: "positive" leaves out R⁻: an RBF network with normalized weights.
        distance: of the detection exp(−δ / σ), δ = ‖x − w‖₂ or its square.
        components: how many there are, for all classes together.
        concepts: per class; the most probable one speaks for it.
        margin: of probabilities, without `robust`.
        robust: margin of the robust loss, an l2 distance in input units; None for the other loss.
    """

    reasoning: Literal["full", "positive"] = "full"
    distance: Distance = "plain"
    components: Count = 20
    concepts: Count = 2
    margin: Annotated[float, Field(gt=0, le=1)] = 0.3
    robust: Annotated[float, Field(gt=0)] | None = None

    @property
    def recipe(self) -> Recipe:
        """Half of the paper's epochs at ten times its rate: the reasoning has far to go."""
        return Recipe(epochs=20, lr=0.05, weight_decay=0.0, half=False)

    def network(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Return the components, near the center of the box."""
        c, h, w = shape
        return Components(
            c * h * w,
            classes,
            self.components,
            self.concepts,
            positive=self.reasoning == "positive",
            squared=self.distance == "squared",
        )

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Mean loss of x [b, c, h, w] and y [b]; components are first brought back to the box.

        Raises:
            UsageError: for a model that `network` did not build.
        """
        if not isinstance(model, Components):
            raise UsageError(
                f"cbc trains the network that it builds, got a {type(model).__name__}. Pass the "
                "module that `network` returns."
            )
        with torch.no_grad():
            model.w.clamp_(0, 1)
        if self.robust is None:
            return (margin(model(x).exp(), y, y) + self.margin).relu().mean()
        return (self.robust - radius(model, x, y, "published")).relu().mean()
