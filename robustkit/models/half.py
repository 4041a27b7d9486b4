"""A model in 16 bits between its first and its last layer: when it pays, and whether it may be.

Such a model proposes; it never decides a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from robustkit.core.types import Images, Logits, Model
from robustkit.models.agreement import row_change
from robustkit.models.guard import duplicate
from robustkit.models.layer_costs import LayerCosts
from robustkit.models.surrogates.resolve import Wrapping, declared

CALLS_MODELS = True  # an error raised below is the model's; see `robustkit.core.attribution`

Precision: TypeAlias = Literal["auto", "float32", "float16", "bfloat16"]
# Multiply-adds of a point between the edges from which on a CPU with matrix units searches in
# bfloat16 unasked. A ResNet-18 runs 3.6 times as fast, a CNN of 6 million 2.0 times (forward), 1.75
# with the way back, networks of 2 million, such as the bundled ones, only 1.4 times: not worth a
# search that differs from that of other processors.
_PAYS = 5_000_000
_CAST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def chosen(
    precision: Precision, device: str, costs: LayerCosts, *, randomized: bool
) -> torch.dtype | None:
    """Return the 16-bit type to search in, or None for float32.

    By what the processor has and by counted work, not by a stopwatch: a run that was interrupted
    goes on in the same precision.

    Args:
        randomized: logits cannot be compared, so that a CPU, where the gain is less, keeps float32.
    """
    if precision != "auto":
        return {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(precision)
    if device == "cuda":
        return torch.float16
    fits = device == "cpu" and not randomized and costs.middle >= _PAYS
    return torch.bfloat16 if fits and matrix_units() else None


def matrix_units() -> bool:
    """Whether the processor multiplies matrices of bfloat16 in hardware (AMX)."""
    read = getattr(torch.cpu, "get_capabilities", None)  # not in older PyTorch
    return bool(read is not None and read().get("amx_bf16", False))


class Half(Wrapping):
    """A module that runs in 16 bits except for the layers `edges`, and returns float32.

    The first layer stays in float32, since 16 bits would round the perturbation itself, and the
    last one, whose rounding is that of the logits.
    """

    def __init__(self, body: nn.Module, kind: torch.dtype, edges: Sequence[str]) -> None:
        super().__init__()
        self.body, self.exact, self.kind = duplicate(body), body, kind
        for place, name in enumerate(edges):
            layer = self.body.get_submodule(name)
            # What follows the first layer moves half the bytes where its answer is cast at once.
            first = not place and name != edges[-1]
            layer.forward = _in_full(layer.forward, kind if first else torch.float32)
        # Autocast would cast frozen weights anew at every pass.
        for name, layer in self.body.named_modules():
            if type(layer) in _CAST and name not in edges and "weight" in layer._parameters:
                layer.to(kind)

    def forward(self, x: Tensor) -> Tensor:
        """[b, *f] -> [b, k]."""
        return self._cast(self.body)(x)

    def unwrapped(self) -> Model:
        """Return the module in float32."""
        return self.exact

    def surrogates(self) -> dict[str, Model]:
        """Return those of the body, in 16 bits too."""
        return {name: self._cast(surrogate) for name, surrogate in declared(self.body).items()}

    def _cast(self, function: Model) -> Model:
        def run(x: Tensor) -> Tensor:
            with torch.autocast(x.device.type, self.kind):
                return function(x).float()

        return run


def _in_full(forward: Callable[..., Tensor], answer: torch.dtype) -> Callable[..., Tensor]:
    def run(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.float()).to(answer)

    return run


def halved(
    tuned: nn.Module,
    sample: Images,
    kind: torch.dtype,
    edges: Sequence[str],
    exact: Logits | None,
    most: float,
) -> tuple[nn.Module, str]:
    """Return the model in 16 bits; where that fails, as it is, and why.

    Args:
        exact: the original's logits on `sample`, None where they cannot be compared.
        most: the largest change of the logits, by their size.
    """
    try:
        half = Half(tuned, kind, edges)
        answer = forward_backward(half, sample)
    except (RuntimeError, TypeError) as error:
        return tuned, f"float32, since {type(error).__name__} in {name_of(kind)}"
    if answer is None:
        return tuned, f"float32, since {name_of(kind)} overflows"
    change = 0.0 if exact is None else row_change(answer, exact)
    if change > most:
        told = f"{name_of(kind)} moves the logits by {change:.2g} of their size"
        return tuned, f"float32, since {told}"
    return half, ""


def forward_backward(model: nn.Module, sample: Images) -> Tensor | None:
    """Run a forward and a backward pass: the logits, or None where an entry is not finite."""
    query = sample.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        answer = model(query)
        (gradient,) = torch.autograd.grad(answer.sum(), query)
    fine = bool(answer.isfinite().all() and gradient.isfinite().all())
    return answer.detach() if fine else None


def name_of(kind: torch.dtype) -> str:
    """Return `float16` or `bfloat16`."""
    return str(kind).removeprefix("torch.")
