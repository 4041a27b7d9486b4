"""What a forward pass does beside answering: gradients of its own, and memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from robustkit.core.types import Images, Model
from robustkit.verify.diagnostics.counted_model import CountedModel


class Buffers:
    """The buffers of a module as they are, to see later whether a pass has changed them."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.before = {key: buffer.clone() for key, buffer in self._now().items()}

    def changed(self) -> str:
        """Name what has changed since; empty where nothing has."""
        now = self._now()
        moved = [
            key
            for key in sorted(self.before.keys() | now.keys())
            if key not in now or key not in self.before or not _same(now[key], self.before[key])
        ]
        return f"a pass changes the buffers of the model ({', '.join(moved[:3])})" if moved else ""

    def _now(self) -> dict[str, Tensor]:
        return dict(self.model.named_buffers()) if isinstance(self.model, nn.Module) else {}


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two buffers are equal, numbers that are none included."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


class _Listening(TorchFunctionMode):
    """Counts the calls of autograd."""

    calls = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in (torch.autograd.grad, Tensor.backward):
            self.calls += 1
        return func(*args, **(kwargs or {}))


def differentiates(counted: CountedModel, x: Images) -> bool:
    """Whether a pass over `x` goes backward by itself.

    Two ears: a mode hears `torch.autograd.grad` and `Tensor.backward`, and a hook on saved tensors
    hears any other way into autograd, since none is saved and used again in a mere forward pass.
    """
    used = [0]

    def unpack(saved: Tensor) -> Tensor:
        used[0] += 1
        return saved

    listening = _Listening()
    for hooks in (saved_tensors_hooks(lambda saved: saved, unpack), None):
        try:
            with torch.no_grad(), listening:
                if hooks is None:
                    counted.logits(x)
                else:
                    with hooks:
                        counted.logits(x)
            break
        except RuntimeError:  # torch.func refuses the hooks; the mode hears it
            continue
    return bool(listening.calls or used[0])
