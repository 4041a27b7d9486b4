"""Batch normalization is folded where nothing else can tell, and only there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustkit.models.folding import fold
from robustkit.models.guard import duplicate
from robustkit.models.tuning import Tuning, tune

X = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """A residual block and a head, both normalized; `also` reads what the first convolution says.

    `twice` calls the second normalization again.
    """

    def __init__(self, *, also: bool = False, twice: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.also, self.twice = also, twice
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.second, self.after = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head, self.last = nn.Linear(256, 5), nn.BatchNorm1d(5, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """[b, 3, 8, 8] -> [b, 5]."""
        inner = self.first(x)
        h = self.norm(inner).relu()
        h = h + self.after(self.second(h))
        if self.twice:
            h = self.after(h)
        h = h + inner if self.also else h
        answer: Tensor = self.last(self.head(h.flatten(1)))
        return answer


class Declares(Block):
    def surrogates(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return {"plain": self}


def trained(net: nn.Module) -> nn.Module:
    """Give the normalizations statistics that matter."""
    for _ in range(5):
        net(torch.rand(32, 3, 8, 8))
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("net", "folded"),
    [
        (Block(), 3),
        (Block(also=True), 2),
        (Block(twice=True), 2),
        (Declares(), 0),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), 0),
    ],
)
def test_folded_is_what_nothing_else_reads(net: nn.Module, folded: int) -> None:
    net = trained(net)
    copy = duplicate(net)
    assert fold(copy) == folded
    torch.testing.assert_close(copy(X), net(X), rtol=1e-5, atol=1e-5)
    if folded == 3:
        assert not any("BatchNorm" in type(layer).__name__ for layer in copy.modules())


def test_a_hook_between_the_two_is_heeded() -> None:
    net = trained(Block())
    assert isinstance(net, Block)
    net.first.register_forward_hook(lambda *given: 2 * given[2])
    assert fold(duplicate(net)) == 2


def test_what_cannot_be_traced_stays() -> None:
    class Asks(Block):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    net = trained(Asks())
    assert fold(duplicate(net)) == 0


def test_the_tuned_model_is_folded_and_the_original_is_not() -> None:
    net = trained(Block())
    tuned = tune(net, X, Tuning(precision="float32"))
    assert "3 batch normalizations folded" in tuned.notes[0]
    torch.testing.assert_close(tuned.model(X), net(X), rtol=1e-5, atol=1e-5)
    assert isinstance(net, Block)
    assert isinstance(net.norm, nn.BatchNorm2d)


def test_a_trace_that_does_not_tell_all_is_refused() -> None:
    """A condition on the state, which a trace sees once: here it holds for the trace alone."""

    class Moody(Block):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if isinstance(x, torch.fx.Proxy):
                return super().forward(x)
            inner = self.first(x)
            answer: Tensor = self.last(self.head((self.norm(inner) + inner).flatten(1)))
            return answer

    net = trained(Moody())
    tuned = tune(net, X, Tuning(precision="float32"))
    assert "folded" not in tuned.notes[0]
    torch.testing.assert_close(tuned.model(X), net(X))


class Drawn(nn.Module):
    """Random by PyTorch's generator, with normalization in an `nn.Sequential` and a surrogate.

    `pieces` says that the surrogate leaves the normalization out.
    """

    def __init__(self, *, pieces: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pieces = pieces
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[b, 3, 8, 8] -> [b, 5]."""
        answer: Tensor = self.head(self.stem(x + 0.1 * torch.rand_like(x)).flatten(1))
        return answer

    def surrogates(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Return one without noise."""
        stem = self.stem[0] if self.pieces else self.stem
        return {"calm": lambda x: self.head(stem(x).flatten(1))}


def test_a_randomized_model_with_surrogates_is_folded_in_its_sequences() -> None:
    net = trained(Drawn())
    tuned = tune(net, X, Tuning(), randomized=True)
    assert "1 batch normalizations folded" in tuned.notes[0]
    assert isinstance(net, Drawn)
    assert isinstance(tuned.model, Drawn)
    torch.testing.assert_close(
        tuned.model.surrogates()["calm"](X), net.surrogates()["calm"](X), rtol=1e-5, atol=1e-5
    )


def test_a_surrogate_that_uses_the_layers_one_by_one_is_heeded() -> None:
    tuned = tune(trained(Drawn(pieces=True)), X, Tuning(), randomized=True)
    assert "folded" not in tuned.notes[0]


def test_a_layer_that_stands_twice_in_a_sequence_is_not_folded() -> None:
    class Untraceable(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = super().forward(x if x.sum() > 0 else -x)
            return answer

    same = nn.Conv2d(3, 3, 3, padding=1)
    net = trained(Untraceable(nn.Sequential(same, nn.ReLU(), same, nn.BatchNorm2d(3))))
    assert fold(duplicate(net)) == 0
