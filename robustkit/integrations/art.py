"""Estimators of the Adversarial Robustness Toolbox (ART), both ways.

ART (https://github.com/Trusted-AI/adversarial-robustness-toolbox, tried: 1.20.1) asks an estimator
for `predict` and `class_gradient` on NumPy arrays; robustkit asks an `nn.Module`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustkit.core.optional import library
from robustkit.core.types import Images, Logits
from robustkit.data.dataset import Dataset
from robustkit.errors import RobustkitError, UsageError

EXTRA = "art"


def from_art(estimator: Any) -> nn.Module:
    """Return an ART classifier as a model: images [b, c, h, w] in [0, 1] to its answers [b, k].

    A `PyTorchClassifier` whose preprocessing is PyTorch's runs as one network, with exact
    gradients. Any other answers by `predict`; its gradient is that of `class_gradient`, ART's
    estimate through defences that have none, at k backward passes for one. One without it
    (`BlackBoxClassifier`) has no gradient, which an evaluation flags: attack it by `square` and
    `hopskipjump`. Defences after the model are kept. Inputs in [0, 1] are scaled to `clip_values`.

    Args:
        estimator: of ART, for images, channels first or last.

    Raises:
        UsageError: for what is no classifier of ART's, and for clip values that differ by feature.
    """
    if not callable(getattr(estimator, "predict", None)) or not hasattr(estimator, "nb_classes"):
        raise UsageError(
            f"expected a classifier of ART, with predict and nb_classes, got "
            f"{type(estimator).__name__}."
        )
    low, high = _box(estimator)
    before = getattr(estimator, "preprocessing_operations", None) or []
    after = getattr(estimator, "postprocessing_defences", None)
    network = getattr(estimator, "model", None)
    torch_only = not after and all(hasattr(step, "estimate_forward") for step in before)
    first = getattr(estimator, "channels_first", True)
    if isinstance(network, nn.Module) and first and torch_only:
        steps = [step for step in before if step.apply_predict]
        return ArtNetwork(network, steps, low, high).eval()
    return ArtEstimator(estimator, low, high).eval()


def to_art(model: nn.Module, data: Dataset) -> Any:
    """Return a model as ART's `PyTorchClassifier`, for ART's own attacks and metrics.

    Args:
        model: images [b, c, h, w] in [0, 1] to logits [b, k]; used as it is, where it is.
        data: says shape and classes.

    Raises:
        UsageError: when ART is not installed.
    """
    classifiers: Any = library("art.estimators.classification", EXTRA)
    where = next(model.parameters(), torch.empty(0)).device
    return classifiers.PyTorchClassifier(
        model=model, loss=nn.CrossEntropyLoss(), input_shape=data.shape, nb_classes=data.classes,
        clip_values=(0.0, 1.0), device_type="cpu" if where.type == "cpu" else "gpu",
    )  # fmt: skip


class ArtNetwork(nn.Module):
    """A network behind ART's preprocessing of PyTorch; see `from_art`."""

    def __init__(self, network: nn.Module, steps: list[Any], low: float, high: float) -> None:
        super().__init__()
        self.network, self.steps, self.low, self.high = network, steps, low, high

    def forward(self, x: Images) -> Logits:
        """[b, c, h, w] in [0, 1] -> answers [b, k]."""
        x = _scaled(x, self.low, self.high)
        for step in self.steps:
            value, _ = step.forward(x)
            smooth = step.estimate_forward(x)  # ART's, whose gradient stands for that of the step
            x = value if value.equal(smooth) else smooth + (value - smooth).detach()
        answers: Any = self.network(x)
        logits: Logits = answers[-1] if isinstance(answers, list | tuple) else answers
        return logits


class ArtEstimator(nn.Module):
    """An estimator asked by `predict` and `class_gradient`; see `from_art`."""

    def __init__(self, estimator: Any, low: float, high: float) -> None:
        super().__init__()
        self.estimator, self.low, self.high = estimator, low, high
        self.last = not getattr(estimator, "channels_first", True)
        network = getattr(estimator, "model", None)
        self.network = network if isinstance(network, nn.Module) else None  # its weights count

    def forward(self, x: Images) -> Logits:
        """[b, c, h, w] in [0, 1] -> answers [b, k].

        Raises:
            RobustkitError: where it does not answer every image with a score for each class.
        """
        scaled = _scaled(x, self.low, self.high)
        if not hasattr(self.estimator, "class_gradient"):
            return self.ask(scaled.detach())
        answers: Logits = _Asked.apply(scaled, self)
        return answers

    def ask(self, x: Images) -> Logits:
        """Return what `predict` answers [b, k]."""
        found = np.asarray(self.estimator.predict(self.arrays(x), batch_size=max(1, len(x))))
        wanted = (len(x), int(self.estimator.nb_classes))
        if found.shape != wanted:
            raise RobustkitError(
                f"expected answers {list(wanted)} of the ART estimator, got {list(found.shape)}."
            )
        return torch.from_numpy(found).to(x)

    def pull_back(self, x: Images, weights: Logits) -> Images:
        """Return the gradient [b, c, h, w] of the answers weighed by [b, k]."""
        with torch.enable_grad():  # inside a backward pass nothing is recorded
            slopes = np.asarray(self.estimator.class_gradient(self.arrays(x)))
        if self.last:
            slopes = np.moveaxis(slopes, -1, 2)
        return torch.einsum("bk,bk...->b...", weights, torch.from_numpy(slopes).to(weights))

    def arrays(self, x: Images) -> NDArray[np.float32]:
        """Return images as ART takes them: a float32 copy, channels first or last."""
        array = np.array(x.numpy(force=True), dtype=np.float32)
        return np.ascontiguousarray(np.moveaxis(array, 1, -1)) if self.last else array


class _Asked(torch.autograd.Function):
    """`predict` forward, `class_gradient` backward."""

    @staticmethod
    def forward(ctx: Any, x: Images, asked: ArtEstimator) -> Logits:
        ctx.save_for_backward(x)
        ctx.asked = asked
        return asked.ask(x)

    @staticmethod
    def backward(ctx: Any, *weights: Tensor) -> tuple[Images, None]:
        (x,) = ctx.saved_tensors
        return ctx.asked.pull_back(x, weights[0]), None


def _scaled(x: Images, low: float, high: float) -> Images:
    return x if (low, high) == (0.0, 1.0) else x * (high - low) + low


def _box(estimator: Any) -> tuple[float, float]:
    """Return the range of an estimator's inputs."""
    given = getattr(estimator, "clip_values", None)
    if given is None:
        return 0.0, 1.0
    low, high = (np.unique(np.asarray(bound, dtype=float)) for bound in given)
    if low.size != 1 or high.size != 1:
        raise UsageError(
            "clip_values: expected one range for all features, as robustkit's inputs have, got "
            "bounds that differ by feature. Scale the inputs inside the model."
        )
    return float(low[0]), float(high[0])
