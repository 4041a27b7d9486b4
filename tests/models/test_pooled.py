"""Models with several outputs per class: found, told apart from others, and followed together."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustkit.models.surrogates.pooled import class_outputs
from robustkit.models.surrogates.resolve import screened, source
from robustkit.verify.diagnostics.probe import examine


class Several(nn.Module):
    """A linear layer with twelve outputs for four classes, pooled somehow."""

    def __init__(self, pool: Callable[[Tensor], Tensor], m: int = 12, scale: float = 1.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(20, m))
        self.pool, self.scale = pool, scale
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.scale * self.net(x))


def inputs() -> Tensor:
    return torch.rand(16, 1, 4, 5, generator=torch.Generator().manual_seed(2))


def by_class(outputs: Tensor) -> Tensor:
    """[b, 12] -> [b, 3, 4]: class c has the outputs c, c + 4 and c + 8."""
    return outputs.reshape(len(outputs), 3, -1)


CHOSEN: dict[str, Callable[[Tensor], Tensor]] = {
    "amax": lambda z: by_class(z).amax(1),
    "topk": lambda z: by_class(z).topk(1, dim=1).values[:, 0],
    "maximum": lambda z: torch.maximum(torch.maximum(z[:, :4], z[:, 4:8]), z[:, 8:]),
    "where": lambda z: torch.where(z[:, :4] > z[:, 4:8], z[:, :4], z[:, 4:8]).maximum(z[:, 8:]),
}
OTHER: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda z: by_class(z).sum(1),
    "first": lambda z: z[:, :4],
    "head": lambda z: z.relu() @ torch.ones(12, 4).tril(),
    "shared": lambda z: torch.stack([z[:, i : i + 9].amax(1) for i in range(4)], 1),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_each_output_is_given_to_its_class(name: str) -> None:
    found = class_outputs(Several(CHOSEN[name]), inputs())
    assert found is not None
    assert found.owner.tolist() == [0, 1, 2, 3] * 3


@pytest.mark.parametrize("name", OTHER)
def test_other_uses_of_a_wide_layer_are_not_taken_for_it(name: str) -> None:
    assert class_outputs(Several(OTHER[name]), inputs()) is None


def test_a_class_may_have_more_outputs_than_another() -> None:
    net = Several(lambda z: torch.cat([z[:, :9].amax(1, keepdim=True), z[:, 9:]], 1))
    found = class_outputs(net, inputs())
    assert found is not None
    assert found.owner.bincount().tolist() == [9, 1, 1, 1]


def test_the_surrogate_has_the_logits_of_the_model_and_the_gradient_of_all_outputs() -> None:
    net, x = Several(CHOSEN["amax"]), inputs().requires_grad_(True)
    pooled = source(net, "pooled")
    assert torch.equal(pooled(x), net(x))
    (found,) = torch.autograd.grad(pooled(x)[:, 1].sum(), x)
    (wanted,) = torch.autograd.grad(by_class(net.net(x))[:, :, 1].logsumexp(1).sum(), x)
    torch.testing.assert_close(found, wanted)
    alone = torch.cat([torch.autograd.grad(pooled(x[i : i + 1])[:, 1].sum(), x)[0][i : i + 1]
                       for i in range(len(x))])  # fmt: skip
    torch.testing.assert_close(found, alone)
    assert "pooled" in screened(net, x.detach()).models


def test_it_is_refused_where_classes_have_one_output() -> None:
    refused = screened(Several(OTHER["first"]), inputs()).refused
    assert "one output for each class" in refused["pooled"]


def test_outputs_that_take_turns_are_flagged() -> None:
    """Of the class that leads one output falls where the other rises."""
    flags = dict[str, set[str]]()
    for name, pool in {**CHOSEN, **OTHER}.items():
        net = Several(pool)
        last = net.net[1]
        assert isinstance(last, nn.Linear)
        last.weight[0] -= last.weight[0].mean()  # so that both are about even
        last.weight[4], last.bias[0], last.bias[4] = -last.weight[0], 1.0, 1.0
        flags[name] = {flag.name for flag in examine(net, inputs() / 2, 4, name).flags}
    assert all("absorbing_outputs" in flags[name] for name in CHOSEN)
    assert not any("absorbing_outputs" in flags[name] for name in OTHER)


def test_outputs_that_never_take_turns_are_not_flagged() -> None:
    def ahead(z: Tensor) -> Tensor:
        return by_class(z + 100.0 * (torch.arange(12) < 4)).amax(1)

    flags = examine(Several(ahead), inputs(), 4, "ahead").flags
    assert "absorbing_outputs" not in {flag.name for flag in flags}
