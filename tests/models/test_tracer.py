"""Networks are read by torch.fx while other threads use theirs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from robustkit.certify.graph import trace
from robustkit.models.tracer import listed


class Scaled(nn.Module):
    """A parameter used bare, which torch.fx patches apart from calls."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((9,), 2.0))
        self.linear = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1) * self.scale)
        return logits


class Meanwhile(Scaled):
    """Waits in its forward pass until something is done in another thread."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__()
        self.work = work

    def forward(self, x: Tensor) -> Tensor:
        other = threading.Thread(target=self.work)
        other.start()
        other.join()
        return super().forward(x)


def test_passes_of_other_threads_go_on_and_are_not_listed() -> None:
    other, seen = Scaled(), list[Tensor]()
    x = torch.rand(2, 1, 3, 3)
    there = listed(Meanwhile(lambda: seen.append(other(x))))
    assert torch.equal(seen[0], other(x))
    assert [node.op for node in there.nodes] == [node.op for node in listed(Scaled()).nodes]


def test_networks_read_at_once_leave_torch_as_it_was() -> None:
    call, attribute = nn.Module.__call__, nn.Module.__getattr__
    models = [Meanwhile(lambda: time.sleep(0.002)) for _ in range(16)]
    with ThreadPoolExecutor(4) as pool:
        graphs = list(pool.map(lambda model: trace(model, (1, 3, 3)), models))
    x = torch.rand(2, 1, 3, 3)
    for model, graph in zip(models, graphs, strict=True):
        assert torch.equal(graph.values(x)[-1], model(x))
    assert nn.Module.__call__ is call
    assert nn.Module.__getattr__ is attribute
