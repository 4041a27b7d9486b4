"""A `torch.utils.data.Dataset` or `DataLoader` as data: images are read when they are fetched."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import data as torch_data

from robustkit.core.imports import failure
from robustkit.data.dataset import ImageSet
from robustkit.data.values import UNIT, Box
from robustkit.errors import UsageError

_LABELS = ("targets", "labels", "y")  # where torchvision and others keep all labels


def is_torch_data(made: Any) -> bool:
    """Whether `made` is a data set or a loader of PyTorch."""
    return isinstance(made, torch_data.Dataset | torch_data.DataLoader)


def from_torch(name: str, made: Any, *, box: Box = UNIT) -> ImageSet:
    """Make a data set of PyTorch's: items are (x, y), and more is left alone.

    x is an image [c, h, w] or [h, w], a vector [d] or a volume [c, d, h, w]; signals [c, t] would
    be read as images [h, w]: hand them out by `robustkit.data.from_arrays`.
    Labels are taken from `targets`, `labels` or the second tensor, where there are any; else every
    item is read once for its label. The points are those of the data set in its own order, whatever
    the order of a loader. Items must be the same each time: augmentation belongs to training.

    Args:
        made: with a length and items by position; of a loader, its `dataset`.
        box: the range of floats; bytes become x / 255.

    Raises:
        UsageError: for a loader that leaves out points or collates them itself, for data without
            positions, and for items of another form.
    """
    source = _of_loader(name, made) if isinstance(made, torch_data.DataLoader) else made
    if isinstance(source, torch_data.IterableDataset) or not hasattr(source, "__len__"):
        raise UsageError(
            f"{name}: expected a data set with a length and items by position, got "
            f"{type(source).__name__}: stack its items into (x, y), two tensors."
        )
    if not len(source):
        raise UsageError(f"{name}: expected at least one image, got an empty data set.")
    first = _image(name, source, 0)
    labels = _labels(name, source)
    if labels.min() < 0:
        raise UsageError(f"{name}: expected labels from 0 on, got {labels.min()}.")
    named = getattr(source, "classes", None)
    names = tuple(map(str, named)) if isinstance(named, list | tuple) else ()
    classes = max(2, int(labels.max()) + 1, len(names))
    shape = tuple(map(int, first.shape))

    def read(indices: NDArray[np.int64]) -> NDArray[Any]:
        if not len(indices):
            return np.empty((0, *shape), dtype=first.dtype)
        images = [_image(name, source, int(index)) for index in indices]
        for index, image in zip(indices, images, strict=True):
            if image.shape != shape:
                raise UsageError(
                    f"{name}: expected images {list(shape)}, got {list(image.shape)} at point "
                    f"{index}: resize them in the data set's transform."
                )
        return np.stack(images)

    return ImageSet(
        name, name, shape, classes, labels, read,
        class_names=names if len(names) == classes else (), box=box,
    )  # fmt: skip


def _of_loader(name: str, loader: torch_data.DataLoader[Any]) -> Any:
    """Return the data set of a loader that hands out all of it."""
    kept = (torch_data.SequentialSampler, torch_data.RandomSampler)
    sampler = getattr(loader, "sampler", None)
    whole = isinstance(sampler, kept) and len(sampler) == len(loader.dataset)  # type: ignore[arg-type]
    if isinstance(loader.dataset, torch_data.IterableDataset):
        return loader.dataset
    if not whole or loader.drop_last:
        raise UsageError(
            f"{name}: expected a DataLoader that hands out every point once, got one with "
            f"{'drop_last=True' if whole else type(sampler).__name__}: give its points by "
            "torch.utils.data.Subset(dataset, indices)."
        )
    if loader.collate_fn is not torch_data.default_collate:
        raise UsageError(
            f"{name}: the DataLoader has a collate_fn of its own, and points are read one by one: "
            "do its work in the data set, or give (x, y), two tensors."
        )
    return loader.dataset


def _item(name: str, source: Any, index: int) -> Any:
    try:
        item = source[index]
    except (Exception, SystemExit) as error:
        raise UsageError(f"{name}: point {index} cannot be read: {failure(error)}.") from error
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise UsageError(
            f"{name}: expected items (x, y), got {type(item).__name__} at point {index}."
        )
    return item


def _image(name: str, source: Any, index: int) -> NDArray[Any]:
    """Return the input at a position; an image as [c, h, w]."""
    part = _item(name, source, index)[0]
    if not isinstance(part, Tensor | np.ndarray):
        raise UsageError(
            f"{name}: expected images as tensors, got {type(part).__name__} at point {index}: "
            "give the data set transform=torchvision.transforms.ToTensor()."
        )
    part = part.detach().cpu() if isinstance(part, Tensor) else torch.as_tensor(part)
    image = (part.float() if part.dtype == torch.bfloat16 else part).numpy()
    image = image[None] if image.ndim == 2 else image
    if image.ndim not in (1, 3, 4):
        raise UsageError(
            f"{name}: expected images [c, h, w] or [h, w], vectors [d] or volumes [c, d, h, w], "
            f"got {list(image.shape)} at point {index}."
        )
    return image


def _labels(name: str, source: Any) -> NDArray[np.int64]:
    """Return all labels [n], without reading images where the data set holds them apart."""
    held = _held_labels(source)
    listed = [_item(name, source, i)[1] for i in range(len(source))] if held is None else held
    try:
        labels = np.asarray(listed)
    except (TypeError, ValueError):  # rows of different lengths
        labels = np.empty(0)
    if labels.shape != (len(source),) or not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(
            f"{name}: expected one whole number as label of each of {len(source)} points, got "
            f"{labels.dtype} {list(labels.shape)}."
        )
    return labels.astype(np.int64)


def _held_labels(source: Any) -> NDArray[Any] | None:
    """Return the labels that a data set holds apart from its images, None where it does not."""
    if isinstance(source, torch_data.Subset):
        held = _held_labels(source.dataset)
        return None if held is None else held[list(source.indices)]
    if isinstance(source, torch_data.TensorDataset) and len(source.tensors) > 1:
        return np.asarray(source.tensors[1].numpy(force=True))
    # What torchvision calls target_transform changes labels and is seen in the items alone.
    if getattr(source, "target_transform", None) is not None:
        return None
    for key in _LABELS:
        part = getattr(source, key, None)
        if isinstance(part, Tensor):
            part = part.numpy(force=True)
        if isinstance(part, np.ndarray | list | tuple) and len(part) == len(source):
            return np.asarray(part)
    return None
