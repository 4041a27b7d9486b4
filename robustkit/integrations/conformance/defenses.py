"""What every defense must do: be built, answer for each input alone, and learn."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.core.rng import generator
from robustkit.core.spec import Spec
from robustkit.data.dataset import Dataset
from robustkit.data.open import open_dataset
from robustkit.integrations.conformance.fixtures import need
from robustkit.models.protocols import Network, assemble, learned
from robustkit.models.surrogates.resolve import Relaxed, declared
from robustkit.models.training import Step
from robustkit.registry import Entry, defenses
from robustkit.verify.diagnostics.probe import examine

_SHAPES = ((1, 8, 8), (3, 12, 12))


def checks(entry: Entry) -> Iterator[tuple[str, Callable[[], None]]]:
    """List the checks of one defense, by name; one for a data set is tried on that alone."""
    if hasattr(entry.target, "network") and "data" not in entry.facts:
        for shape in _SHAPES:
            told = "x".join(map(str, shape))
            yield f"can be trained on inputs {told}", partial(_trains, entry, shape)
            yield f"answers for each input alone, {told}", partial(_answers, entry, shape)
    else:
        yield "can be loaded", partial(_loads, entry)
        yield "answers for each input alone", partial(_composed, entry)
    yield "declares surrogates that have a gradient", partial(_surrogates, entry)


def _built(entry: Entry, shape: tuple[int, int, int]) -> tuple[Any, nn.Module, Tensor, Tensor]:
    """Return defense, network of three classes, and five points."""
    options = {"width": 4} if "width" in entry.options else {}
    defense = defenses.build(Spec(entry.name, tuple(options.items())))
    need(isinstance(defense, Network), "expected a method network(shape, classes)")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = defense.network(shape, 3)
        x = torch.rand(5, *shape)
    need(isinstance(network, nn.Module), f"network() returned {type(network).__name__}")
    return defense, network, x, torch.tensor([0, 1, 2, 1, 0])


def _trains(entry: Entry, shape: tuple[int, int, int]) -> None:
    defense, network, x, y = _built(entry, shape)
    need(defense.recipe.epochs >= 1, "expected a recipe of at least one epoch")
    flags = [p.requires_grad for p in network.parameters()]
    need(all(flags), "expected every weight to ask for a gradient before training")
    network.train()
    for progress in (0.0, 0.5, 1.0):
        twice = [
            defense.objective(network, x, y, Step(progress, generator(0, 1, 0))) for _ in range(2)
        ]
        loss = twice[0]
        need(loss.ndim == 0 and bool(loss.isfinite()), f"expected a finite scalar, got {loss}")
        need(torch.equal(*twice), "the same step gave two losses: draw from step.generator")
        gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
        found: list[Tensor | None] = list(gradients)
        dead = sum(g is None or not bool(g.isfinite().all()) for g in found)
        need(dead == 0, f"{dead} weights get no gradient, or one that is not finite")
    need([p.requires_grad for p in network.parameters()] == flags, "the objective froze weights")
    need(all(p.grad is None for p in network.parameters()), "gradients were left in the weights")


def _answers(entry: Entry, shape: tuple[int, int, int]) -> None:
    _, network, x, _ = _built(entry, shape)
    _examined(network.eval(), x, 3)


def _examined(model: nn.Module, x: Tensor, classes: int) -> None:
    """Expect logits, without coupling in the batch; randomness only where it is declared."""
    diagnosis = examine(model, x, classes, "the model")
    declares = bool(getattr(model, "randomized", False))
    need(
        diagnosis.randomized == declares,
        f"two passes {'differ' if diagnosis.randomized else 'agree'}, yet the model says "
        f"randomized = {declares}",
    )


def _data(entry: Entry) -> Dataset:
    """Open the data that a composed defense is for: it says so by `data` where it is no images."""
    return open_dataset(entry.facts.get("data", "bundled"), download=False)


def _loads(entry: Entry) -> None:
    defense, data = defenses.build(entry.name), _data(entry)
    model = assemble(defense, data)
    need(isinstance(model, nn.Module), f"load() returned {type(model).__name__}")
    part = learned(defense, model)
    if part is None or not hasattr(defense, "objective"):
        return
    x, y = data.fetch([0, 1, 2, 3])
    state = copy.deepcopy(model.state_dict())
    own = list(part.parameters())
    loss = defense.objective(model.train(), x, y, Step(0.5, generator(0, 1, 0)))
    need(bool(loss.isfinite()), f"expected a finite loss, got {loss}")
    found = torch.autograd.grad(loss, own)
    need(all(bool(g.isfinite().all()) for g in found), "a gradient is not finite")
    others = [key for key, p in model.named_parameters() if not any(p is weight for weight in own)]
    moved = [key for key in others if not torch.equal(model.state_dict()[key], state[key])]
    need(not moved, f"the objective changed weights that are not its own, first {moved[:1]}")


def _composed(entry: Entry) -> None:
    defense, data = defenses.build(entry.name), _data(entry)
    _examined(assemble(defense, data).eval(), data.fetch([0, 1, 2, 3])[0], data.classes)


def _surrogates(entry: Entry) -> None:
    if hasattr(entry.target, "network") and "data" not in entry.facts:
        _, model, x, _ = _built(entry, _SHAPES[0])
    else:
        data = _data(entry)
        model, x = assemble(defenses.build(entry.name), data), data.fetch([0, 1, 2, 3])[0]
    for name, surrogate in declared(model.eval()).items():
        if isinstance(surrogate, Relaxed):
            query, surrogate = surrogate.relax(x).detach(), surrogate.logits
        else:
            query = x.clone()
        query.requires_grad_(True)
        (gradient,) = torch.autograd.grad(surrogate(query).square().sum(), query)
        alive = bool(gradient.isfinite().all()) and bool(gradient.any())
        need(alive, f"the surrogate {name!r} has no finite gradient")
