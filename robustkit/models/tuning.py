"""Tuning the model that attacks run on: layout, precision, compilation. Automatic by device.

The tuned model never decides a verdict: every candidate is verified by the original model in
float32 (`robustkit.verify.candidates`), and the attack goes on where one is not confirmed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from robustkit.core.types import Images, Model
from robustkit.models import fast_conv
from robustkit.models.agreement import HALF_PRECISION, row_change
from robustkit.models.guard import duplicate
from robustkit.models.surrogates.resolve import Wrapping, declared

CALLS_MODELS = True  # an error raised below is the model's; see `robustkit.core.attribution`

Precision: TypeAlias = Literal["auto", "float32", "float16", "bfloat16"]
Layout: TypeAlias = Literal["auto", "contiguous", "channels_last"]
_CACHE = 24 * 2**20  # bytes of layer outputs up to which a CPU's caches hold them


@dataclass(frozen=True)
class Tuning:
    """The options of tuning.

    Attributes:
        precision: of the passes between the first and the last layer; these two, losses, inputs and
            projections are always float32. auto: float16 on a GPU, float32 on a CPU.
        layout: of images and convolution weights. auto: channels_last.
        compiled: whether to use `torch.compile`.
    """

    precision: Precision = "auto"
    layout: Layout = "auto"
    compiled: bool = False


AUTOMATIC = Tuning()


class Tuned(NamedTuple):
    """The tuned model.

    Attributes:
        half: it runs in 16 bits, where the loss must be scaled by point for gradients not to
            vanish.
        notes: what was done, and why an option was not applied.
        slots: how many points to run at once. A CPU is fastest while the layers' outputs stay in
            its caches; a GPU wants to be full, within half of its free memory.
        forwards, backwards: passes of one point that the tuning took.
    """

    model: Model
    half: bool
    notes: tuple[str, ...]
    slots: int
    forwards: int
    backwards: int


def tune(model: Model, sample: Images, tuning: Tuning, *, randomized: bool = False) -> Tuned:
    """Return a faster copy of `model` for attacks on the device of `sample` [b, *f].

    Args:
        model: in evaluation mode with frozen weights; it stays as it is.
        randomized: two passes differ, so that the tuned logits are not compared.
    """
    if not isinstance(model, nn.Module):
        slots = _slots(sample, 256 * sample[0].numel() * 4)
        return Tuned(model, False, ("search: a plain function is called as it is",), slots, 0, 0)
    slots, spent = _slots(sample, _footprint(model, sample)), 0
    device, notes = sample.device.type, list[str]()
    tuned = duplicate(model)
    if tuning.layout != "contiguous" and sample.ndim == 4:
        layout: dict[str, Any] = {"memory_format": torch.channels_last}
        tuned = tuned.to(**layout)
        notes.append("channels_last")
    if device == "cpu" and (count := fast_conv.speed_up(tuned)):
        notes.append(f"{count} first convolutions with a faster backward pass")
    kind = _precision(tuning.precision, device)
    if kind is not None:
        tuned, refusal = _halved(model, tuned, sample, kind, compare=not randomized)
        spent += len(sample)
        notes.append(refusal or _name(kind))
    half = isinstance(tuned, Half)
    if tuning.compiled:
        tuned, refusal = _compiled(tuned, sample)
        spent += len(sample)
        notes.append(refusal or "compiled")
    summary = (f"search: {', '.join(notes)}",) if notes else ()
    forwards = 1 + spent + (1 + len(sample) if kind is not None else 0)
    return Tuned(tuned, half, summary, slots, forwards, spent)


def _slots(sample: Images, size: int) -> int:
    if sample.device.type == "cuda":
        free = torch.cuda.mem_get_info(sample.device)[0]
        return _power_of_two(free / 2 / (3 * size), 64, 4096)
    return _power_of_two(_CACHE / size, 32, 256)


def _power_of_two(number: float, least: int, most: int) -> int:
    """Return the largest power of two up to `number`, within limits."""
    return int(min(max(2.0 ** math.floor(math.log2(max(number, 1))), least), most))


def _footprint(model: nn.Module, sample: Images) -> int:
    """Return the bytes of one point: the layers' outputs, and the images of a slot."""
    sizes = [16 * 4 * sample[0].numel()]

    def note(_: object, __: object, output: object) -> None:
        if isinstance(output, Tensor):
            row = output[0] if output.ndim and len(output) else output
            sizes.append(row.numel() * output.element_size())

    layers = [
        layer
        for layer in model.modules()
        if not list(layer.children()) and not isinstance(layer, torch.jit.ScriptModule)
    ]
    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        with torch.no_grad():
            model(sample[:1])
    finally:
        for handle in handles:
            handle.remove()
    return sum(sizes)


def _precision(precision: Precision, device: str) -> torch.dtype | None:
    if precision == "auto":
        return torch.float16 if device == "cuda" else None
    return {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(precision)


class Half(Wrapping):
    """A module that runs in 16 bits except for the layers `edges`, and returns float32.

    The first layer stays in float32, since 16 bits would round the perturbation itself, and the
    last one, whose rounding is that of the logits.
    """

    def __init__(self, body: nn.Module, kind: torch.dtype, edges: Sequence[str]) -> None:
        super().__init__()
        self.body, self.kind = duplicate(body), kind
        for name in edges:
            layer = self.body.get_submodule(name)
            layer.forward = _in_full(layer.forward)

    def forward(self, x: Tensor) -> Tensor:
        """[b, *f] -> [b, k]."""
        return self._cast(self.body)(x)

    def unwrapped(self) -> Model:
        """Return the body, which computes in float32 by itself."""
        return self.body

    def surrogates(self) -> dict[str, Model]:
        """Return those of the body, in 16 bits too."""
        return {name: self._cast(surrogate) for name, surrogate in declared(self.body).items()}

    def _cast(self, function: Model) -> Model:
        def run(x: Tensor) -> Tensor:
            with torch.autocast(x.device.type, self.kind):
                return function(x).float()

        return run


def _in_full(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.float())

    return run


def _edges(model: nn.Module, sample: Images) -> list[str]:
    """Return the names of the first and the last layer with weights that a pass calls."""
    called: list[str] = []
    handles = [
        layer.register_forward_pre_hook(lambda *_, name=name: called.append(name))
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
    ]
    try:
        with torch.no_grad():
            model(sample[:1])
    finally:
        for handle in handles:
            handle.remove()
    return [called[0], called[-1]] if called else []


def _halved(
    model: nn.Module, tuned: nn.Module, sample: Images, kind: torch.dtype, *, compare: bool
) -> tuple[nn.Module, str]:
    """Return the model in 16 bits; where that fails, as it is, and why."""
    try:
        half = Half(tuned, kind, _edges(tuned, sample))
        answer = _forward_backward(half, sample)
    except (RuntimeError, TypeError) as error:
        return tuned, f"float32, since {type(error).__name__} in {_name(kind)}"
    if answer is None:
        return tuned, f"float32, since {_name(kind)} overflows"
    with torch.no_grad():
        exact = model(sample).float()
    change = row_change(answer, exact)
    if compare and change > HALF_PRECISION:
        return tuned, f"float32, since {_name(kind)} moves the logits by {change:.2g} of their size"
    return half, ""


def _compiled(tuned: nn.Module, sample: Images) -> tuple[nn.Module, str]:
    """Return the model compiled; where that fails, as it is, and why."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of compilers, about themselves
            compiled: Any = torch.compile(tuned, dynamic=True)
            _forward_backward(compiled, sample)
    except Exception as error:  # compilers and their tool chains fail in many ways
        return tuned, f"not compiled, since {type(error).__name__} was raised"
    return compiled, ""


def _forward_backward(model: nn.Module, sample: Images) -> Tensor | None:
    """Run a forward and a backward pass: the logits, or None where an entry is not finite."""
    query = sample.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        answer = model(query)
        (gradient,) = torch.autograd.grad(answer.sum(), query)
    fine = bool(answer.isfinite().all() and gradient.isfinite().all())
    return answer.detach() if fine else None


def _name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")
