"""Wrappers that answer from elsewhere: nothing inside is in reach of autograd or of a tracer.

As a model behind an interface: arrays go in and arrays come out of another thread. What is left is
to ask it (Chen et al. 2020, HopSkipJump, arXiv:1904.02144), or to imitate it (Papernot et al. 2017,
arXiv:1602.02697).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gauntlet.outputs import label
from benchmarks.gauntlet.wrapper import Wrapper, wrapper

_HOSTED: list[nn.Module] = []
_HOST = ThreadPoolExecutor(1)


class _Served(Wrapper):
    def __init__(self, bare: nn.Module) -> None:
        nn.Module.__init__(self)
        self.address = len(_HOSTED)
        _HOSTED.append(bare)

    def smooth(self, x: Tensor) -> Tensor:
        logits: Tensor = _HOSTED[self.address](x)
        return logits

    def asked(self, x: Tensor) -> Tensor:
        """Return the logits, by way of the other thread."""
        images = x.detach().cpu().numpy()
        return torch.from_numpy(_HOST.submit(_answer, self.address, images).result()).to(x.device)


@wrapper("served", "computation")
class Served(_Served):
    """The model answers from another thread, with logits as an array."""

    def forward(self, x: Tensor) -> Tensor:
        return self.asked(x)


@wrapper("served_labels", "computation")
class ServedLabels(_Served):
    """The model answers from another thread, with the decision alone."""

    def forward(self, x: Tensor) -> Tensor:
        return label(self.asked(x))


def _answer(address: int, images: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
    with torch.no_grad():
        model = _HOSTED[address]
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        return model(torch.from_numpy(images).to(device)).cpu().numpy()
