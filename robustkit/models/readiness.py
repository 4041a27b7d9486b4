"""From a user's module to the private copy that is evaluated: whole, in evaluation mode, frozen."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from robustkit.core.types import Model
from robustkit.errors import UsageError
from robustkit.models.guard import duplicate, guarded

_MODAL = {f"torch.nn.modules.{kind}" for kind in ("dropout", "batchnorm", "instancenorm")}
_MODAL_NAMES = re.compile(r"(Alpha|Feature)*Dropout\dd?|Dropout|\w*BatchNorm\w*|InstanceNorm\dd")
_DYNAMIC = ("torch.ao.nn.quantized.dynamic", "torch.ao.nn.intrinsic.quantized.dynamic")
_MODAL_OPERATORS = ("dropout", "batch_norm", "rrelu")

DYNAMIC_BATCH = (
    "Export it with a dynamic batch: `torch.export.export(model.eval(), (x,), "
    'dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))`, with an example x of at least 2 '
    "inputs."
)


class Program(nn.Module):
    """An exported or scripted program as a plain module, which takes hooks and any mode."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.training = getattr(inner, "training", False)

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> logits [b, k]."""
        answer: Tensor = self.inner(x)
        return answer

    def train(self, mode: bool = True) -> Program:
        """Set the flag only: the mode of an exported program was fixed when it was exported."""
        self.training = mode
        return self


def private_copy(model: Model | nn.Module, device: torch.device, name: str) -> Model:
    """Return a guarded copy in evaluation mode with frozen weights; a function is only guarded.

    Raises:
        UsageError: when the model is in a training mode that changes its answers, has no weights
            yet, or cannot be copied.
    """
    if not isinstance(model, nn.Module):
        return guarded(model)
    model = without_replicas(model)
    refuse_unready(model, name)
    refuse_training_mode(model, name)
    try:
        private = duplicate(model)
    except Exception as error:  # whatever an attribute's own way to be copied raises
        raise UsageError(
            f"{name} cannot be copied ({type(error).__name__}: {error}); hand over a module whose "
            "attributes are parameters, buffers and plain values (no open files, generators or "
            "locks inside other objects), or name a function that returns it."
        ) from error
    private = frozen(private.to(device))
    scripted = isinstance(private, torch.jit.ScriptModule)
    return guarded(Program(private) if scripted else private)


def without_replicas(model: nn.Module) -> nn.Module:
    """Return the module inside DataParallel and its like, which would spread over devices."""
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    return model


def frozen(model: nn.Module) -> nn.Module:
    """Set evaluation mode and freeze the weights, in place."""
    model = evaluation_mode(model)
    for weights in model.parameters():  # scripted modules have no requires_grad_
        weights.requires_grad_(False)
    return model


def evaluation_mode(model: nn.Module) -> nn.Module:
    """Call `eval()`; of exported programs, whose mode is fixed and which refuse, set the flag."""
    try:
        return model.eval()
    except NotImplementedError:
        for layer in model.modules():
            layer.training = False
        return model


def refuse_unready(model: nn.Module, name: str) -> None:
    """Refuse weights that are not there yet, and layers that couple points in any mode.

    Raises:
        UsageError: naming them, with the cure.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    lazy = [key for key, tensor in tensors if is_lazy(tensor)]
    if lazy:
        raise UsageError(
            f"{name} has weights that are not initialized yet ({_few(lazy)}): a lazy module takes "
            "their shape from its first batch. Pass one through it and load its weights where it "
            "is defined."
        )
    empty = [key for key, tensor in tensors if tensor.is_meta]
    if empty:
        raise UsageError(
            f"{name} has weights on the device `meta`, which holds no numbers ({_few(empty)}). "
            "Call .to_empty(device='cpu') and load its weights where it is defined."
        )
    dynamic = [f"{key or 'itself'} ({_kind(part)})" for key, part in model.named_modules()
               if type(part).__module__.startswith(_DYNAMIC) and not _in_float16(part)]  # fmt: skip
    if dynamic:
        raise UsageError(
            f"{name} is quantized dynamically ({_few(dynamic)}): its activations are scaled by "
            "the range of the whole batch, so that a verdict would depend on the other points. "
            "Evaluate the model before quantization, or quantize statically or the weights alone."
        )


def _in_float16(layer: nn.Module) -> bool:
    """Whether a dynamic layer rounds its weights alone."""
    return getattr(getattr(layer, "_packed_params", None), "dtype", None) is torch.float16


def refuse_training_mode(model: nn.Module, text: str) -> nn.Module:
    """Return `model`, unless it is in a training mode that changes its outputs (a UsageError)."""
    modal = [
        f"{name or 'itself'} ({_kind(layer)})"
        for name, layer in model.named_modules()
        if getattr(layer, "training", False) and _is_modal(layer)  # frozen scripts have none
    ]
    if modal:
        raise UsageError(
            f"{text} is in training mode, in which these layers behave differently: "
            f"{_few(modal)}. Call .eval() on it where it is defined, or name a function that "
            "returns it."
        )
    fixed = [operator for layer in model.modules() for operator in _training_operators(layer)]
    if fixed:
        raise UsageError(
            f"{text} was exported in training mode, in which these operators behave differently: "
            f"{_few(fixed)}. Call .eval() on the model before torch.export.export."
        )
    return model


def _is_modal(layer: nn.Module) -> bool:
    if isinstance(layer, torch.jit.ScriptModule):
        return _MODAL_NAMES.fullmatch(_kind(layer)) is not None
    return any(base.__module__ in _MODAL for base in type(layer).__mro__)


def _kind(layer: nn.Module) -> str:
    return str(getattr(layer, "original_name", "") or type(layer).__name__)


def _training_operators(layer: nn.Module) -> list[str]:
    """Name the operators of an exported program that are fixed to what they do in training."""
    graph = layer.graph if isinstance(layer, torch.fx.GraphModule) else None
    found = []
    for node in graph.nodes if graph is not None else ():
        schema = getattr(node.target, "_schema", None)
        if schema is None or not any(kind in schema.name for kind in _MODAL_OPERATORS):
            continue
        if schema.overload_name == "no_stats":  # instance normalization, which has one mode
            continue
        names = [argument.name for argument in schema.arguments]
        given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        if (given.get("train") or given.get("training")) is True and given.get("p") != 0:
            found.append(f"{node.name} ({schema.name})")
    return found


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
