"""Which device runs the model, and how the engine is sized for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from robustkit.errors import UsageError


def pick_device(text: str) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda` or `cuda:0` names; `auto` prefers a GPU.

    Raises:
        UsageError: for another name, or a GPU that this PyTorch does not see.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "auto":
        return torch.device("cuda", 0) if count else torch.device("cpu")
    kind, colon, number = text.partition(":")
    if kind not in ("cpu", "cuda") or (colon and (kind == "cpu" or not number.isdecimal())):
        raise UsageError(f"expected device auto, cpu, cuda or cuda:0, got {text!r}")
    if kind == "cpu":
        return torch.device("cpu")
    if int(number or 0) >= count:
        raise UsageError(
            f"device {text!r} does not exist: this PyTorch ({torch.__version__}) sees {count} CUDA "
            "devices. Use --device cpu, or install a CUDA build of PyTorch beside a working "
            "driver (`robustkit doctor` tells more)."
        )
    return torch.device("cuda", int(number or 0))


def pick_devices(text: str) -> list[torch.device]:
    """Return the devices of a list such as `cuda:0,cuda:1`; one may be listed twice.

    Raises:
        UsageError: as `pick_device`.
    """
    return [pick_device(part.strip()) for part in text.split(",")]


def stride(device: torch.device) -> int:
    """Steps between two reads of the done mask: a read waits for a GPU, and is free on a CPU."""
    return 1 if device.type == "cpu" else 5


@contextmanager
def full_precision() -> Iterator[None]:
    """Switch TF32 off, which rounds float32 products on a GPU; restore the settings afterwards."""
    cudnn, matmul = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = cudnn, matmul


def out_of_memory(error: BaseException) -> bool:
    """Tell an allocation that failed, on any device, from other errors."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)
