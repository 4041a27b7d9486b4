"""What one pass of a model costs by layer: bytes of outputs, multiply-adds of layers with weights.

It is counted, not timed, so that what is chosen by it does not change from run to run.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustkit.core.types import Images

CALLS_MODELS = True  # an error raised below is the model's; see `robustkit.core.attribution`

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class LayerCosts(NamedTuple):
    """The costs of one point.

    Attributes:
        size: bytes of the layers' outputs, and of the images of a slot.
        work: of each call of a layer with weights, in order, its name and multiply-adds.
    """

    size: int
    work: list[tuple[str, int]]

    @property
    def edges(self) -> list[str]:
        """The names of the first and the last layer with weights that a pass calls."""
        return [self.work[0][0], self.work[-1][0]] if self.work else []

    @property
    def middle(self) -> int:
        """Multiply-adds of the layers between these two."""
        return sum(count for name, count in self.work if name not in self.edges)


def layer_costs(model: nn.Module, sample: Images) -> LayerCosts:
    """Pass one point of `sample` [b, *f] through the model, and count."""
    sizes, work = [16 * 4 * sample[0].numel()], list[tuple[str, int]]()

    def note(layer: nn.Module, output: object, name: str) -> None:
        if not isinstance(output, Tensor):
            return
        row = output[0] if output.ndim and len(output) else output
        if not list(layer.children()):
            sizes.append(row.numel() * output.element_size())
        if isinstance(layer, _WEIGHTED):
            # Every output is a sum over the weights of its channel.
            work.append((name, row.numel() * layer.weight[0].numel()))

    handles = [
        layer.register_forward_hook(lambda layer, _, output, name=name: note(layer, output, name))
        for name, layer in model.named_modules()
        if (not list(layer.children()) or isinstance(layer, _WEIGHTED))
        and not isinstance(layer, torch.jit.ScriptModule)
    ]
    try:
        with torch.no_grad():
            model(sample[:1])
    finally:
        for handle in handles:
            handle.remove()
    return LayerCosts(sum(sizes), work)
