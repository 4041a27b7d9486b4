"""Models with several outputs per class, of which the largest counts; a surrogate for them.

Lowering the largest output of a class raises the next one: an attack that follows the class's logit
is absorbed. What counts is all of them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustkit.core.types import Images, Labels, Logits, Model
from robustkit.models.surrogates.submodules import hookable, within

_SAME = 1e-5  # of the outputs' range: what rounding may do to a logit
_MOST = 1024  # outputs of a layer


class ClassOutputs(NamedTuple):
    """A layer whose outputs [b, m] are several for a class.

    Attributes:
        layer: the module.
        owner: the class that each output stands for [m].
    """

    layer: nn.Module
    owner: Tensor

    @contextmanager
    def noted(self) -> Iterator[list[Tensor]]:
        """Collect the outputs [b, m] of every pass inside."""
        seen = list[Tensor]()
        handle = self.layer.register_forward_hook(_hook(lambda _, out: seen.append(out)))
        try:
            yield seen
        finally:
            handle.remove()

    def winners(self, outputs: Tensor, y: Labels) -> Labels:
        """Return the place of the largest output that stands for `y` [b]."""
        mine = self.owner.to(y.device) == y[:, None]
        return outputs.masked_fill(~mine, -torch.inf).argmax(1)


def class_outputs(
    model: Model, x: Images, ask: Callable[[Images], Logits] | None = None
) -> ClassOutputs | None:
    """Find the layer whose outputs the logits are chosen from: each logit the largest of its own.

    Every output of a layer inside is raised above the others in turn, on one input. An output
    stands for a class if its logit alone rises then.

    Args:
        x: inputs [b, *f]; the first one is used, in a pass of one row, and one of m + 1 for each
            layer of which every logit is an output.
        ask: passes inputs through the model; the model itself when not given.

    Returns:
        None where there is no such layer, no class has two outputs, or an output has no class.
    """
    ask, x = ask or model, x[:1]
    with torch.no_grad():
        answer, sizes = _passed(model, x, ask)
        wide = [layer for layer, out in sizes.items()
                if len(out) == 1 and answer.shape[1] < out.shape[1] <= _MOST]  # fmt: skip
        for layer in reversed(wide):
            if not _chosen(answer, sizes[layer]):
                continue
            owner = _owners(ask, x, layer, sizes[layer])
            if owner is not None and int(owner.bincount().max()) > 1:
                return ClassOutputs(layer, owner)
    return None


class Pooled:
    """The model's own logits, with the gradient of the log of the sum over all outputs of a class.

    Raises ValueError in a pass of a model whose classes have one output each.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.found: ClassOutputs | None = None

    def __call__(self, x: Images) -> Logits:
        """[b, *f] -> [b, k]."""
        if self.found is None:
            self.found = class_outputs(self.model, x.detach())
        if self.found is None:
            raise ValueError("the model has one output for each class")
        with self.found.noted() as seen:
            answer = self.model(x)
        outputs = seen[-1]
        owner = self.found.owner.to(x.device)
        classes = range(answer.shape[1])
        together = torch.stack([outputs[:, owner == c].logsumexp(1) for c in classes], 1)
        return answer.detach() + (together - together.detach())  # to the last bit


def _passed(
    model: Model, x: Images, ask: Callable[[Images], Logits]
) -> tuple[Logits, dict[nn.Module, Tensor]]:
    """Return the logits, and what the modules inside returned [b, m], in order."""
    seen = dict[nn.Module, Tensor]()
    hook = _hook(lambda layer, out: seen.update({layer: out}))
    layers = filter(hookable, within(model).values())
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        return ask(x), seen
    finally:
        for handle in handles:
            handle.remove()


def _chosen(answer: Logits, outputs: Tensor) -> bool:
    """Whether every logit [1, k] is one of the outputs [1, m]."""
    apart = (answer[0, :, None] - outputs[0]).abs().amin(1)
    return bool((apart <= _SAME * _range(outputs)).all())


def _range(outputs: Tensor) -> Tensor:
    return outputs.amax() - outputs.amin()


def _owners(
    ask: Callable[[Images], Logits], x: Images, layer: nn.Module, outputs: Tensor
) -> Tensor | None:
    """Return the class of every output [m]; None where one of them has none of its own."""
    m, height = outputs.shape[1], _range(outputs) + 1
    raised = torch.cat([outputs.new_zeros(1, m), height * torch.eye(m).to(outputs)])
    handle = layer.register_forward_hook(lambda _, given, out: out + raised)
    try:
        answer = ask(x.repeat(m + 1, *[1] * (x.ndim - 1)))
    finally:
        handle.remove()
    change, slack = answer[1:] - answer[:1], _SAME * height
    rises = change > slack
    alone = (rises.sum(1) == 1) & (change >= -slack).all(1)
    owner = rises.int().argmax(1)
    largest = answer[1:].gather(1, owner[:, None])[:, 0]
    counts = (largest - (outputs[0] + height)).abs() <= slack
    return owner if bool((alone & counts).all() and rises.any(0).all()) else None


def _hook(note: Callable[[nn.Module, Tensor], None]) -> Callable[..., None]:
    """Make a forward hook that notes outputs [b, m]."""

    def hook(layer: nn.Module, given: Any, out: Any) -> None:
        if isinstance(out, Tensor) and out.ndim == 2:
            note(layer, out)

    return hook
