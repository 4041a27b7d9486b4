"""MAITE's protocols for image classification, both ways: data sets, models, attacks.

MAITE (https://github.com/mit-ll-ai-technology/maite, tried: 0.10.3) has structural protocols: what
is here fits them without importing it. Images are [c, h, w]; targets are one-hot [k].
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from robustkit.core.threat import Threat
from robustkit.core.types import Images, Logits
from robustkit.data.dataset import Dataset, ImageSet
from robustkit.data.torch_dataset import from_torch
from robustkit.data.values import UNIT, Box
from robustkit.errors import RobustkitError, UsageError
from robustkit.registry import read_threat
from robustkit.search.functional import Draws, attack_points

if TYPE_CHECKING:
    from collections.abc import Mapping

    from maite.protocols import (
        AugmentationMetadata,
        DatasetMetadata,
        DatumMetadata,
        ModelMetadata,
    )

_IDENTITIES = 1 << 31


class MaiteDataset:
    """A robustkit data set as `maite.protocols.image_classification.Dataset`.

    Items are an image [c, h, w], float32, its one-hot target [k], and the position as `id`.

    Args:
        data: what `robustkit.open_dataset` opens.
        inputs: of some points, images [c, h, w] in their place, such as the verified ones that
            `robustkit.adversarial_inputs(FOLDER)` reads; positions in `data` -> image.
    """

    def __init__(self, data: Dataset, inputs: Mapping[int, Images] | None = None) -> None:
        self.data, self.inputs = data, dict(inputs or {})
        names = dict(enumerate(data.class_names or map(str, range(data.classes))))
        self.metadata: DatasetMetadata = {"id": data.name, "index2label": names}

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(
        self, ind: int, /
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], DatumMetadata]:
        """Return image, one-hot target and metadata of one point; IndexError past the end."""
        if not -len(self) <= ind < len(self):
            raise IndexError(f"expected a position up to {len(self) - 1}, got {ind}")
        place = int(ind) % len(self)
        x, y = self.data.fetch([place])
        image = self.inputs.get(place, x[0]).numpy(force=True)
        return image, _one_hot(int(y[0]), self.data.classes), {"id": place}


class MaiteModel:
    """A model of PyTorch as `maite.protocols.image_classification.Model`; targets are logits [k].

    Args:
        model: images [b, c, h, w] in [0, 1] to logits [b, k]; used as it is.
        name: its `id`.
        class_names: in order of the labels.
    """

    def __init__(self, model: nn.Module, name: str, class_names: Sequence[str] = ()) -> None:
        self.model = model
        self.metadata: ModelMetadata = {"id": name}
        if class_names:
            self.metadata = {"id": name, "index2label": dict(enumerate(class_names))}

    def __call__(self, batch: Sequence[ArrayLike], /) -> Sequence[NDArray[np.float32]]:
        """Return the logits [k] of each image [c, h, w]: bytes become x / 255."""
        if not len(batch):
            return []
        with torch.no_grad():
            logits = self.model(_stacked(batch, self.model))
        return list(logits.float().numpy(force=True))


class MaiteAttack:
    """An attack as `maite.protocols.image_classification.Augmentation`.

    It returns adversarial inputs within the threat model, and images it did not break as they were.
    What it finds depends on the image and its `id`, not on the batch it comes in. They are not
    verified afresh: `robustkit.evaluate` does that.

    Args:
        model: images [b, c, h, w] in [0, 1] to logits [b, k].
        attack, threat: such as "apgd" and "linf:8/255".
        seed: every random draw follows from it, with the `id`.
    """

    def __init__(
        self, model: nn.Module, attack: str, threat: Threat | str, *, seed: int = 0
    ) -> None:
        self.model, self.attack, self.seed = model, attack, seed
        self.threat = read_threat(threat)
        self.metadata: AugmentationMetadata = {"id": f"{attack}, {self.threat}"}

    def __call__(
        self,
        batch: tuple[Sequence[ArrayLike], Sequence[ArrayLike], Sequence[DatumMetadata]],
        /,
    ) -> tuple[
        Sequence[NDArray[np.float32]], Sequence[NDArray[np.float32]], Sequence[DatumMetadata]
    ]:
        """Attack a batch of images [c, h, w], targets [k] and metadata.

        Raises:
            UsageError: for targets without one largest entry, and what the attack refuses.
            RobustkitError: when the model returns NaN or infinite logits.
        """
        images, targets, metadata = batch
        if not len(images):
            return [], [], metadata
        x = _stacked(images, self.model)
        y = torch.tensor([_label(t, i) for i, t in enumerate(targets)], device=x.device)
        points = [_identity(datum["id"]) for datum in metadata]
        found = attack_points(self.model, x, y, self.attack, self.threat, Draws(self.seed, points))
        same = [np.asarray(target, dtype=np.float32) for target in targets]
        return list(found.float().numpy(force=True)), same, metadata


class FromMaite(nn.Module):
    """A MAITE model as a model of PyTorch: images [b, c, h, w] in [0, 1] to its targets [b, k].

    MAITE promises arrays, which carry no gradient: attacks by scores and decisions apply
    (`square`, `hopskipjump`), and an evaluation flags the missing gradient.

    Args:
        model: of the protocol.
        tensors: hand it tensors, and keep the gradients of what it returns; for models that take
            and return tensors of PyTorch.
    """

    def __init__(self, model: Any, *, tensors: bool = False) -> None:
        super().__init__()
        self.model, self.tensors = model, tensors
        if isinstance(model, nn.Module):
            self.train(model.training)

    def forward(self, x: Images) -> Logits:
        """Ask it.

        Raises:
            RobustkitError: where it does not answer every image with as many scores.
        """
        batch = list(x) if self.tensors else list(x.numpy(force=True))
        answers = self.model(batch)
        rows = [answer if isinstance(answer, Tensor) else torch.from_numpy(np.array(answer))
                for answer in answers]  # fmt: skip
        shapes = {tuple(row.shape) for row in rows}
        if len(rows) != len(x) or len(shapes) != 1 or len(next(iter(shapes))) != 1:
            raise RobustkitError(
                f"expected {len(x)} targets [k] of the MAITE model, got {len(rows)} of shapes "
                f"{sorted(shapes)}: it must answer every image of a batch, with one score a class."
            )
        stacked: Logits = torch.stack(rows).to(x)
        return stacked


def from_maite_dataset(dataset: Any, *, name: str | None = None, box: Box = UNIT) -> ImageSet:
    """Return a data set of MAITE's as one of robustkit's, whose points are read when fetched.

    Args:
        dataset: of the protocol; its labels are read once, by `get_target` where it has that.
        name: what records call it, by default its `id`.
        box: the range of floats; bytes become x / 255.

    Raises:
        UsageError: for targets without one largest entry, images of several shapes, and no points.
    """
    title = str(dataset.metadata["id"]) if name is None else name
    return from_torch(title, _Items(dataset), box=box)


class _Items:
    """A MAITE data set as items (x, y), its labels read once."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        read = getattr(dataset, "get_target", None)
        targets = (read(i) if read else dataset[i][1] for i in range(len(dataset)))
        rows = [np.asarray(target) for target in targets]
        self.targets = [_label(row, i) for i, row in enumerate(rows)]
        names: Mapping[int, str] = dataset.metadata.get("index2label", {})
        count = max((row.size for row in rows), default=0)
        self.classes = [str(names.get(k, k)) for k in range(count)]

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = np.array(self._dataset[index][0])
        return torch.from_numpy(image), self.targets[index]


def _stacked(images: Sequence[ArrayLike], model: nn.Module) -> Images:
    """Return images as floats [b, c, h, w] where the model's parameters are."""
    x = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    x = x if x.is_floating_point() else x / 255
    where = next(model.parameters(), torch.empty(0)).device
    return x.to(where, torch.float32)


def _one_hot(label: int, classes: int) -> NDArray[np.float32]:
    target = np.zeros(classes, dtype=np.float32)
    target[label] = 1
    return target


def _label(target: ArrayLike, place: int) -> int:
    """Return the class of a target [k]: its one largest entry."""
    row = np.asarray(target)
    if row.ndim != 1 or not row.size or int((row == row.max()).sum()) != 1:
        raise UsageError(
            f"expected a target [k] with one largest entry, such as a one-hot one, got shape "
            f"{list(row.shape)} at point {place}: {row.ravel()[:8].tolist()}."
        )
    return int(row.argmax())


def _identity(name: int | str) -> int:
    """Return what random draws of a datum are keyed by."""
    if isinstance(name, (int, np.integer)) and 0 <= name < _IDENTITIES:
        return int(name)
    digest = hashlib.sha256(str(name).encode()).digest()
    return int.from_bytes(digest[:4], "big") % _IDENTITIES
