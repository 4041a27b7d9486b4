"""The robustified model: its gate, what is tuned, its surrogates, and the fit of its numbers."""

from __future__ import annotations

import copy
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.core.rng import generator
from robustkit.data.open import open_dataset
from robustkit.errors import UsageError
from robustkit.models.architectures import small_cnn
from robustkit.models.surrogates.resolve import declared
from robustkit.models.training import Step
from robustkit.registry import defenses

module = import_module("robustkit.defenses.robustified")


@pytest.fixture
def defense(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The defense on two untrained networks, so that no weights are needed."""

    def load_model(name: str, **_: Any) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(len(name))
            return type("Subject", (), {"model": small_cnn((1, 28, 28), 10, 4)})

    monkeypatch.setattr(module, "load_model", load_model)
    return defenses.build("robustified")


@pytest.fixture
def model(defense: Any) -> Any:
    return defense.load(open_dataset("bundled"))


X, Y = open_dataset("bundled").fetch(range(0, 1000, 40))


def set_gate(model: Any, cutoff: float, temperature: float = 1.0) -> None:
    model.tuned.cutoff.fill_(cutoff)
    model.tuned.temperature.fill_(temperature)


def test_untrained_all_heads_are_the_base(model: Any) -> None:
    heads = model.eval().heads(X)
    assert torch.equal(heads[:, 0], heads[:, 1]) and torch.equal(heads[:, 1], heads[:, 2])
    assert torch.equal(model(X), heads[:, 0])


def test_the_gate_takes_the_unchanged_head_where_it_is_sure_else_the_surer_one(model: Any) -> None:
    logits = torch.tensor([[[4.0, 0], [0, 1], [0, 2]], [[1.0, 0], [3, 0], [0, 2]],
                           [[1.0, 0], [1, 0], [0, 2]]])  # fmt: skip
    set_gate(model, 0.9)
    chosen = model.chosen(logits)
    assert chosen.tolist() == [[4, 0], [3, 0], [0, 2]]
    set_gate(model, 0.9, temperature=4.0)  # 4 / 4: no longer sure
    assert model.chosen(logits)[0].tolist() == [0, 2]
    set_gate(model, 1.01)
    assert not model.sure(logits * 1000).any()


def test_each_head_is_a_surrogate_beside_the_models_own_logits(model: Any) -> None:
    with torch.no_grad():
        for place, weights in enumerate((model.tuned.clean, model.tuned.robust)):
            weights.bias.add_(torch.linspace(0, place + 1, 10))
    set_gate(model, 0.5)
    heads = model.heads(X)
    surrogates = declared(model)
    assert list(surrogates) == list(module.HEADS)
    for place, name in enumerate(module.HEADS):
        surrogate, own = surrogates[name].both(X)  # type: ignore[attr-defined]
        assert torch.equal(surrogate, heads[:, place])
        assert torch.equal(own, model(X))


def test_only_tail_and_heads_learn_and_the_teacher_is_no_part(defense: Any, model: Any) -> None:
    own = list(defense.learned(model).parameters())
    before = copy.deepcopy(model.state_dict())
    step = Step(0.5, generator(0, 1, 0), points=torch.arange(len(X)))
    loss = defense.objective(model.train(), X, Y, step)
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in own)
    others = [p for p in model.parameters() if not any(p is one for one in own)]
    assert others and all(p.grad is None and not p.requires_grad for p in others)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any("teacher" in key for key in before)


def test_the_more_layers_are_tuned_the_more_weights(defense: Any) -> None:
    data = open_dataset("bundled")
    sizes = [
        sum(p.numel() for p in type(defense)(tuned=tuned).load(data).tuned.parameters())
        for tuned in (0, 1, 2)
    ]
    assert sizes == sorted(set(sizes))
    assert sizes[0] == 2 * (128 * 10 + 10)
    with pytest.raises(UsageError, match="of more than 5 layers with weights"):
        type(defense)(tuned=5).load(data)


def test_a_base_of_another_build_is_refused(defense: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = type("Subject", (), {"model": nn.ModuleList([nn.Linear(2, 2)])})
    monkeypatch.setattr(module, "load_model", lambda *_, **__: other)
    with pytest.raises(UsageError, match="got a ModuleList of 0"):
        defense.load(open_dataset("bundled"))


class Known(nn.Module):
    """Heads that are known: the unchanged one errs on half of the points, and is unsure there."""

    def __init__(self, y: Tensor) -> None:
        super().__init__()
        right = torch.nn.functional.one_hot(y, 10).float()
        wrong = right.roll(1, 1)
        unsure = (torch.arange(len(y)) % 2 == 0)[:, None]
        unchanged = torch.where(unsure, wrong, 8 * right)
        self.logits = torch.stack([unchanged, 2 * right, torch.where(unsure, right, 3 * wrong)], 1)


def test_the_gate_is_fitted_to_the_most_right_answers(
    defense: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Known(Y)
    monkeypatch.setattr(module, "_all_heads", lambda *_: known.logits)
    defense.calibrate(model, X, Y, generator(0, 4, 0))
    cooled = known.logits[:, 0].double() / model.tuned.temperature
    losses = [float(nn.functional.cross_entropy(cooled * factor, Y)) for factor in (0.9, 1.0, 1.1)]
    assert min(losses) == losses[1]
    assert bool((model.chosen(known.logits).argmax(1) == Y).all())
