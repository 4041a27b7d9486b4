"""A network's operations, traced by torch.fx, while other threads go on using networks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from robustkit.models.architectures import Normalize

_ONE_AT_A_TIME = threading.Lock()  # torch.fx patches nn.Module, and puts back what it found there


def listed(model: nn.Module) -> fx.Graph:
    """Return the operations of one call of `model`; raise whatever the call raises."""
    with _ONE_AT_A_TIME:
        return _Tracer().trace(model)


class _Tracer(fx.Tracer):
    """Traces what its own thread does.

    torch.fx patches nn.Module for the whole process: calls and attributes of modules in other
    threads pass through its tracer, and must be kept out of the graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # One affine operation in place of a difference and a quotient.
        return isinstance(m, Normalize) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)
