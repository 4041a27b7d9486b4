"""Where a number came from: versions, device, commit, and a digest of the weights."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.core.packages import own_version
from robustkit.record import git
from robustkit.record.schema import Commit

PACKAGES = ("torch", "numpy", "pyautoattack", "torchattacks", "robustbench")


def versions() -> dict[str, str]:
    """Versions of Python, robustkit and each of `PACKAGES` that is installed; imports none of them.

    PyTorch's includes the build, such as 2.13.0+cpu.
    """
    return {**_installed(), "torch": str(torch.__version__)}


@functools.cache  # what is installed is read from disk, 20 ms for every record
def _installed() -> dict[str, str]:
    found = {"python": platform.python_version(), "robustkit": own_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def device_name(device: torch.device) -> str:
    """`cpu: <processor>, <n> threads`, or `cuda: <name of the GPU>`; any other device by type."""
    if device.type == "cpu":
        return f"cpu: {_processor()}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return str(device)


def device_peak(device: torch.device) -> int | None:
    """Return the most memory in bytes that tensors took on a CUDA device; None on any other."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def commit(path: Path | str = ".") -> Commit | None:
    """Return the commit checked out around `path`; None where there is no git or no commit.

    Dirty means that tracked files differ from the commit: a run's own folder is not one of them.
    Never raises, takes at most two seconds, and runs nothing that the repository configures.
    """
    return git.head(path)


def weights_digest(module: nn.Module) -> tuple[str, int]:
    """SHA-256 of the state dict, and the number of parameters (shared ones counted once).

    The digest covers the name, dtype, shape and bytes of every tensor, parameters and buffers
    alike, in the order of their names; device, memory layout and training mode do not enter.
    """
    digest = hashlib.sha256()
    for name, value in sorted({**_constants(module), **module.state_dict()}.items()):
        for tensor in _tensors(value):
            digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            digest.update(_content(tensor))
    return digest.hexdigest(), sum(parameter.numel() for parameter in module.parameters())


def _constants(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that frozen scripted modules hold in their code; others hold none."""
    found: dict[str, Tensor] = {}
    for place, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule) and not part.state_dict():
            graph: Any = part.inlined_graph  # the nodes live as long as it does
            held = graph.findAllNodes("prim::Constant")
            tensors = [node.t("value") for node in held if _holds_tensor(node)]
            found |= {f"{place}\0{number}": tensor for number, tensor in enumerate(tensors)}
    return found


def _holds_tensor(node: Any) -> bool:
    return bool(node.hasAttribute("value") and node.kindOf("value") == "t")


def _tensors(value: Any) -> Iterator[Tensor]:
    """Return the plain tensors in an entry of a state dict: quantized weights are made of some."""
    if isinstance(value, (tuple, list)):  # packed weights and their bias
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Tensor) and value.is_quantized:
        yield value.int_repr()
        yield value.dequantize()  # with what one step of the integers is
    elif isinstance(value, Tensor) and hasattr(value, "__tensor_flatten__"):
        for name in value.__tensor_flatten__()[0]:
            yield from _tensors(getattr(value, name))
    elif isinstance(value, Tensor):
        yield value.to_dense() if value.layout is not torch.strided else value


def _content(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().reshape(-1).contiguous()
    return flat.view(torch.uint8).numpy().tobytes()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown processor"
