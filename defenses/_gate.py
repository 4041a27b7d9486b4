"""The gate of Adaptive Smoothing: a small network on early features of both networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustkit.core.types import Images, Logits, Scalars
from robustkit.errors import UsageError


def early(model: nn.Module, x: Images) -> tuple[Logits, Tensor, Tensor]:
    """Return the logits and the first two convolutions' outputs after ReLU, [b, c, h, w] each.

    Raises:
        UsageError: for a model without two `nn.Conv2d` that see each input once.
    """
    stages = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)][:2]
    if len(stages) < 2:
        raise UsageError(
            f"a gate reads the first two convolutions: expected a model with two nn.Conv2d, got "
            f"{len(stages)}. Take a convolutional model, or a constant alpha."
        )
    seen: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.Module, _: object, output: Tensor) -> None:
        seen.setdefault(layer, output.relu())

    # Hooks are registered for one pass: those of a copied model would write into the original's
    # features.
    handles = [layer.register_forward_hook(keep) for layer in stages]
    try:
        logits: Tensor = model(x)
    finally:
        for handle in handles:
            handle.remove()
    if any(layer not in seen or len(seen[layer]) != len(x) for layer in stages):
        raise UsageError(
            "a gate reads the first two convolutions: expected each to run once on the whole "
            "batch. Take another model, or a constant alpha."
        )
    return logits, seen[stages[0]], seen[stages[1]]


class Gate(nn.Module):
    """Both networks and x [b, c, h, w] -> their logits [b, k] and gamma [b], from early features.

    The mixing network of arXiv:2301.12554: strided convolutions on the first feature maps of both
    networks, the second ones added, a spatial mean and a linear layer. In training the raw values
    are clamped to 0.6 standard deviations around their mean, and the running statistics of the
    batch normalization move; its output is scaled by `scale` and shifted by `bias`. At width 24 on
    `small_cnn`: 53 thousand weights. Differs from the paper: two stages of two plain convolutions.

    Args:
        first: channels of the first feature maps, of both networks together.
        second: likewise of the second.
    """

    def __init__(
        self, first: int, second: int, width: int = 24, scale: float = 2.0, bias: float = 1.0
    ) -> None:
        super().__init__()
        self.scale, self.bias = scale, bias
        self.stage0 = _stage(first, width)
        self.enter = nn.Conv2d(second, width, 1)
        self.stage1 = _stage(width, 2 * width)
        self.head = nn.Linear(2 * width, 1, bias=False)
        self.norm = nn.BatchNorm1d(1, affine=False, momentum=0.01)

    def forward(
        self, standard: nn.Module, robust: nn.Module, x: Images
    ) -> tuple[Logits, Logits, Scalars]:
        """Run both networks once."""
        g, g1, g2 = early(standard, x)
        h, h1, h2 = early(robust, x)
        return g, h, self.gamma(_join(g1, h1), _join(g2, h2))

    def gamma(self, first: Tensor, second: Tensor) -> Scalars:
        """[b, c1, h, w], [b, c2, h', w'] -> [b]."""
        near = self.stage0(first)
        far = self.enter(second)
        if far.shape != near.shape:
            far = nn.functional.adaptive_avg_pool2d(far, near.shape[2:])
        raw = self.head(self.stage1((near + far).relu()).relu().mean((2, 3)))
        if self.training:
            mean, reach = raw.detach().mean(), 0.6 * raw.detach().std(correction=0)
            raw = torch.minimum(torch.maximum(raw, mean - reach), mean + reach)
        gamma: Tensor = self.norm(raw).squeeze(1) * self.scale + self.bias
        return gamma


def gate_for(
    standard: nn.Module,
    robust: nn.Module,
    shape: tuple[int, ...],
    *,
    width: int = 24,
    scale: float = 2.0,
    bias: float = 1.0,
) -> Gate:
    """Build the gate of two networks for inputs of `shape` [c, h, w].

    Raises:
        UsageError: when one of them lacks the features (see `early`).
    """
    with torch.no_grad():
        probes = [early(model, torch.zeros(2, *shape)) for model in (standard, robust)]
    first, second = (sum(probe[place].shape[1] for probe in probes) for place in (1, 2))
    return Gate(first, second, width, scale, bias)


def _stage(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1),
    )


def _join(a: Tensor, b: Tensor) -> Tensor:
    """Stack channels, after pooling the larger maps to the size of the smaller."""
    height, width = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
    maps = [
        m
        if m.shape[2:] == (height, width)
        else nn.functional.adaptive_avg_pool2d(m, (height, width))
        for m in (a, b)
    ]
    return torch.cat(maps, 1)
