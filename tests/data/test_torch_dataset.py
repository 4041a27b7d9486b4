"""Data sets and loaders of PyTorch as data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

import robustkit
from robustkit.data.arrays import as_dataset
from robustkit.errors import RobustkitError, UsageError

X = torch.arange(5 * 3 * 2 * 2).view(5, 3, 2, 2) / 64
Y = torch.tensor([0, 2, 1, 2, 0])


class Items(Dataset[Any]):
    """Items one by one, counting how often they are read."""

    def __init__(self, x: Any = X, y: Any = None) -> None:
        self.x, self.y_of, self.reads = x, Y.tolist() if y is None else y, 0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        self.reads += 1
        return self.x[index], self.y_of[index]


class WithTargets(Items):
    """As torchvision's: labels apart, and names of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.targets, self.classes = Y.tolist(), ["cat", "dog", "frog"]


class Stream(IterableDataset[Any]):
    """Without positions."""

    def __iter__(self) -> Any:
        return iter(zip(X, Y, strict=True))


def same(data: Any) -> None:
    x, y = data.fetch([3, 0])
    assert torch.equal(x, X[[3, 0]]) and y.tolist() == Y[[3, 0]].tolist()
    assert (data.shape, data.classes, len(data)) == ((3, 2, 2), 3, 5)


@pytest.mark.parametrize(
    "made",
    [
        TensorDataset(X, Y),
        Items(),
        WithTargets(),
        Subset(TensorDataset(X.flip(0), Y.flip(0)), [4, 3, 2, 1, 0]),
        DataLoader(TensorDataset(X, Y), batch_size=2),
        DataLoader(TensorDataset(X, Y), batch_size=2, shuffle=True),
        Items(X.numpy(), Y.numpy()),
        Items([image.double() for image in X]),
    ],
    ids=lambda made: type(made).__name__,
)
def test_the_points_are_those_of_the_data_set(made: Any) -> None:
    same(as_dataset("mine", made))


def test_labels_held_apart_cost_no_image_and_name_the_classes() -> None:
    made = WithTargets()
    data = as_dataset("mine", made)
    assert made.reads == 1  # for the shape
    assert data.class_names == ("cat", "dog", "frog")
    few = as_dataset("mine", Subset(made, [0, 2]))
    assert (few.labels.tolist(), few.classes) == ([0, 1], 2)


def test_labels_that_a_transform_changes_are_read_from_the_items() -> None:
    made = WithTargets()
    made.target_transform, made.y_of = abs, (2 - Y).tolist()  # type: ignore[attr-defined]
    assert as_dataset("mine", made).labels.tolist() == (2 - Y).tolist()


def test_bytes_and_bfloat16_are_read_as_elsewhere() -> None:
    raw = torch.arange(5 * 4).view(5, 1, 2, 2).to(torch.uint8)
    assert torch.equal(as_dataset("mine", TensorDataset(raw, Y)).fetch([4])[0], raw[[4]] / 255)
    half = X.bfloat16()
    assert torch.equal(as_dataset("mine", TensorDataset(half, Y)).fetch([1])[0], half[[1]].float())


def collate(batch: Any) -> Any:
    return default_collate(batch)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (Stream(), "a length and items by position, got Stream"),
        (DataLoader(Stream()), "a length and items by position, got Stream"),
        (DataLoader(Items(), sampler=SubsetRandomSampler([1, 2])), "got one with SubsetRandomS"),
        (DataLoader(Items(), batch_size=2, drop_last=True), "drop_last=True"),
        (DataLoader(Items(), collate_fn=collate), "collate_fn of its own"),
        (TensorDataset(X[:0], Y[:0]), "an empty data set"),
        (TensorDataset(X), r"items \(x, y\), got tuple at point 0"),
        (Items(["a.png"], [0]), "images as tensors, got str at point 0"),
        (Items(X[..., None, None]), r"vectors \[d\] or volumes.*, 1, 1\] at point 0"),
        (Items(y=[0.5] * 5), r"got float64 \[5\]"),
        (Items(y=[-1] * 5), "labels from 0 on, got -1"),
        (Items(y=[0]), "point 1 cannot be read: IndexError"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(made: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        as_dataset("mine", made)


def test_images_of_other_sizes_are_refused_by_their_point() -> None:
    data = as_dataset("mine", Items([X[0], X[1, :, :1], *X[2:]]))
    with pytest.raises(UsageError, match=r"got \[3, 1, 2\] at point 1: resize"):
        data.fetch([0, 1])


def test_augmentation_ends_the_run(tmp_path: Any) -> None:
    class Noisy(Items):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.rand(3, 2, 2), int(Y[index])

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
    with pytest.raises(
        RobustkitError, match=r"not the same each time.*Leave out random transforms"
    ):
        robustkit.evaluate(
            model, data=Noisy(), threat="linf:0.1", attacks=["fgsm"], folder=tmp_path
        )


def test_an_evaluation_of_a_loader_is_that_of_its_tensors(tmp_path: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
    loader = DataLoader(TensorDataset(X, Y), shuffle=True)
    one = robustkit.evaluate(model, (X, Y), "linf:0.1", attacks=["fgsm"], folder=tmp_path / "1")
    two = robustkit.evaluate(model, loader, "linf:0.1", attacks=["fgsm"], folder=tmp_path / "2")
    assert one.points == two.points
    assert np.isclose(one.robust, two.robust)
