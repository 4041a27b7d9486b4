"""Tuning the model that attacks run on: layout, precision, compilation. Automatic by device.

The tuned model never decides a verdict: every candidate is verified by the original model in
float32 (`robustkit.verify.candidates`), and the attack goes on where one is not confirmed.
"""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import nn

from robustkit.core.allocator import keep_freed_memory
from robustkit.core.types import Images, Logits, Model
from robustkit.models import fast_conv, fast_pool
from robustkit.models.agreement import (
    HALF_PRECISION,
    OTHER_ORDER,
    UNASKED_PRECISION,
    logit_distance,
)
from robustkit.models.folding import fold
from robustkit.models.guard import duplicate
from robustkit.models.half import Half, Precision, chosen, forward_backward, halved, name_of
from robustkit.models.layer_costs import layer_costs
from robustkit.models.surrogates.resolve import declared

CALLS_MODELS = True  # an error raised below is the model's; see `robustkit.core.attribution`

Layout: TypeAlias = Literal["auto", "contiguous", "channels_last"]
_CACHE = 24 * 2**20  # bytes of layer outputs up to which a CPU's caches hold them


@dataclass(frozen=True)
class Tuning:
    """The options of tuning.

    Attributes:
        precision: of the passes between the first and the last layer; these two, losses, inputs and
            projections are always float32. auto: float16 on a GPU; on a CPU bfloat16 where
            it has matrix units for it and the network is large enough, else float32.
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
        randomized: two passes differ, so that logits are not compared.
    """
    if sample.device.type == "cpu":
        keep_freed_memory()
    if not isinstance(model, nn.Module):
        slots = _slots(sample, 256 * sample[0].numel() * 4)
        return Tuned(model, False, ("search: a plain function is called as it is",), slots, 0, 0)
    costs, device, notes = layer_costs(model, sample), sample.device.type, list[str]()
    forwards, backwards, exact = 1, 0, None
    kind = chosen(tuning.precision, device, costs, randomized=randomized)
    tuned = duplicate(model)
    if folded := fold(tuned):
        forwards += 2 * (1 + len(declared(model))) * len(sample)
        if _same(tuned, model, sample):
            notes.append(f"{folded} batch normalizations folded into the layers before them")
        else:
            tuned = duplicate(model)
    if kind is not None and not randomized:
        with torch.no_grad():
            exact = model(sample).float()
        forwards += len(sample)
    if tuning.layout != "contiguous" and sample.ndim == 4:
        # Module.to(memory_format=…) refuses a module that has 5-D tensors too.
        for held in itertools.chain(tuned.parameters(), tuned.buffers()):
            if held.ndim == 4:
                held.data = held.data.contiguous(memory_format=torch.channels_last)
        notes.append("channels_last")
    if device == "cpu" and (count := fast_conv.speed_up(tuned)):
        notes.append(f"{count} first convolutions with a faster backward pass")
    if device == "cpu" and (count := fast_pool.speed_up(tuned)):
        notes.append(f"{count} poolings with a faster backward pass")
    if kind is not None:
        unasked = tuning.precision == "auto" and device == "cpu"
        most = UNASKED_PRECISION if unasked else HALF_PRECISION
        tuned, refusal = halved(tuned, sample, kind, costs.edges, exact, most)
        forwards, backwards = forwards + len(sample), backwards + len(sample)
        notes.append(refusal or name_of(kind))
    half = isinstance(tuned, Half)
    if tuning.compiled:
        tuned, refusal = _compiled(tuned, sample)
        forwards, backwards = forwards + len(sample), backwards + len(sample)
        notes.append(refusal or "compiled")
    summary = (f"search: {', '.join(notes)}",) if notes else ()
    return Tuned(tuned, half, summary, _slots(sample, costs.size), forwards, backwards)


def _same(tuned: nn.Module, model: nn.Module, sample: Images) -> bool:
    """Whether a rewritten copy answers as the original does, and its declared surrogates too.

    Asked are copies, with the same draws: of a model that is random by other means no two agree.
    """
    answers: list[list[Logits]] = []
    devices = [sample.device] if sample.is_cuda else []
    for copy in (duplicate(tuned), duplicate(model)):
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            try:
                asked: list[Model] = [copy, *declared(copy).values()]
                answers.append([one(sample).float() for one in asked])
            except RuntimeError:  # a surrogate may need gradients of its own
                return False
    pairs = zip(*answers, strict=True)
    return all(logit_distance(new, old) <= OTHER_ORDER for new, old in pairs)


def _slots(sample: Images, size: int) -> int:
    if sample.device.type == "cuda":
        free = torch.cuda.mem_get_info(sample.device)[0]
        return _power_of_two(free / 2 / (3 * size), 64, 4096)
    return _power_of_two(_CACHE / size, 32, 256)


def _power_of_two(number: float, least: int, most: int) -> int:
    """Return the largest power of two up to `number`, within limits."""
    return int(min(max(2.0 ** math.floor(math.log2(max(number, 1))), least), most))


def _compiled(tuned: nn.Module, sample: Images) -> tuple[nn.Module, str]:
    """Return the model compiled; where that fails, as it is, and why."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of compilers, about themselves
            compiled: Any = torch.compile(tuned, dynamic=True)
            forward_backward(compiled, sample)
    except Exception as error:  # compilers and their tool chains fail in many ways
        return tuned, f"not compiled, since {type(error).__name__} was raised"
    return compiled, ""
