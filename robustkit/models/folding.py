"""Batch normalization folded into the convolution or linear layer before it, for frozen weights.

In evaluation mode it is an affine function of each channel: the same network, one pass over the
activations less. Done only where the traced graph shows that nothing else reads what lies between;
without a graph, for neighbors in an `nn.Sequential`.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from robustkit.models.surrogates.resolve import declared
from robustkit.models.tracer import listed

_NORMS = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.Linear: nn.BatchNorm1d,
}


def fold(model: nn.Module) -> int:
    """Fold what can be folded, in place; return how many.

    A model that cannot be traced, or that declares surrogates (they may use its layers one by one),
    is folded inside its `nn.Sequential`s alone. Whether somebody uses the layers of those one by
    one is for the caller to see: then answers change.
    """
    norms = tuple(_NORMS.values())
    if not any(type(layer) in norms for layer in model.modules()):
        return 0
    try:
        found = _neighbors(model) if declared(model) else _pairs(model, listed(model))
    except Exception:  # tracing runs the model's code on what is no tensor: it fails in many ways
        found = _neighbors(model)
    for first, second in found:
        layer: Any = model.get_submodule(first)
        norm: Any = model.get_submodule(second)
        statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        # Not fuse_linear_bn_weights: it fails where the normalization has no weights.
        layer.weight, layer.bias = fuse_conv_bn_weights(layer.weight, layer.bias, *statistics)
        parent, _, name = second.rpartition(".")
        setattr(model.get_submodule(parent), name, nn.Identity())
        layer.requires_grad_(False)
    return len(found)


def _pairs(model: nn.Module, graph: fx.Graph) -> list[tuple[str, str]]:
    """List layer and normalization where the second alone reads the first, and both run once."""
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    shared = _places(model)
    found = []
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and len(node.args) == 1 else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        first, second = str(before.target), str(node.target)
        layer, norm = model.get_submodule(first), model.get_submodule(second)
        once = calls[first] == calls[second] == shared[id(layer)] == shared[id(norm)] == 1
        if once and _suits(layer, norm):
            found.append((first, second))
    return found


def _neighbors(model: nn.Module) -> list[tuple[str, str]]:
    """List layer and normalization that follow each other in an `nn.Sequential`."""
    places = _places(model)
    return [
        (f"{name}.{first}".lstrip("."), f"{name}.{second}".lstrip("."))
        for name, part in model.named_modules()
        if type(part) is nn.Sequential
        for (first, layer), (second, norm) in pairwise(part._modules.items())
        if layer is not None and norm is not None
        if places[id(layer)] == places[id(norm)] == 1 and _suits(layer, norm)
    ]


def _places(model: nn.Module) -> Counter[int]:
    """Count the names of every layer, by its identity."""
    return Counter(id(layer) for _, layer in model.named_modules(remove_duplicate=False))


def _suits(layer: nn.Module, norm: nn.Module) -> bool:
    """Whether both are what their class says: no hook, no parametrization, frozen statistics."""
    plain = all(
        not (part._forward_hooks or part._forward_pre_hooks or part.training)
        and "weight" in part._parameters
        for part in (layer, norm)
    )
    fits = type(norm) is _NORMS.get(type(layer))
    size = getattr(norm, "num_features", None)
    known = fits and getattr(norm, "running_mean", None) is not None
    return plain and known and layer.get_parameter("weight").shape[0] == size
