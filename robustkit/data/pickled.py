"""CIFAR as pickled batches, the form that its page calls the Python version: named and refused."""

from __future__ import annotations

from pathlib import Path

from robustkit.errors import UsageError

FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
_FILES = {"cifar10": ("batches.meta", "data_batch_1"), "cifar100": ("meta", "train", "test")}
_BINARY = {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}


def refuse_batches(folder: Path) -> None:
    """Refuse a folder that holds pickled batches of CIFAR-10 or CIFAR-100; no file is opened.

    Raises:
        UsageError: naming the forms that are read, and the way from this one to them.
    """
    for name, files in _FILES.items():
        named = folder.name == FOLDERS[name] and folder.is_dir()
        if named or all((folder / file).is_file() for file in files):
            raise UsageError(
                f"{folder} holds pickled batches, which can run code when they are loaded; none is "
                f"loaded here. Expected {name}.npz in the data root (x_train, x_test: uint8 [n, "
                f"32, 32, 3]; y_train, y_test: integers [n]), or {_BINARY[name]}, the binary "
                "version of the original. The tutorial on CIFAR-10 has the lines that write the "
                "npz."
            )
