"""Broken points as pictures: clean, adversarial, and what was changed, with both predictions.

Adversarial inputs come from the ledger that lies beside a record, clean images from the data set;
both are shown only if they are provably those of the record.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustkit.core.text import clean
from robustkit.errors import RobustkitError
from robustkit.leaderboard.report.drawn import SAYS, drawn, widest
from robustkit.leaderboard.report.images import SHOWN, Pixels, fitted, magnified, pixels
from robustkit.leaderboard.report.view import class_name
from robustkit.record.ledger_reader import open_readonly
from robustkit.record.ledger_schema import BrokenPoint
from robustkit.record.record import Record

if TYPE_CHECKING:
    from robustkit.data.dataset import Dataset
    from robustkit.data.values import Box


class Picture(NamedTuple):
    """One broken point; names are those of the classes."""

    point: int
    label: str
    fooled: str
    """What the model calls the adversarial input."""
    attack: str
    distance: float
    factor: float
    """How many times the perturbation is magnified, around gray, in the image as it is shown."""
    images: tuple[Pixels, Pixels, Pixels]
    """Clean, adversarial, perturbation."""
    size: tuple[int, int] = (0, 0)
    """Height and width of the input in pixels; the images may be shrunk."""
    says: str = ""
    """What is seen, where the input is no image."""

    @property
    def zoom(self) -> float:
        """How many pixels of the screen a pixel of the input takes along each side."""
        return self.shown / self.size[1]

    @property
    def shown(self) -> int:
        """Width on the screen: a whole number of pixels for each of the image."""
        width = int(self.images[0].shape[1])
        return width * max(1, SHOWN // width)


class Gallery(NamedTuple):
    """The pictures of one record, or the reason why there are none."""

    pictures: list[Picture]
    reason: str = ""


class GalleryMaker:
    """Opens each data set once for all records that name it.

    Args:
        root: the data root, as `robustkit.open_dataset` takes it.
        data: what to open instead of what the records name.
    """

    def __init__(self, root: Path | None = None, data: str | None = None) -> None:
        self._root, self._data = root, data
        self._open: dict[tuple[str, Box], Dataset | str] = {}
        self._same: dict[tuple[str, str], bool] = {}

    def gallery(
        self, record: Record, path: Path | str, limit: int, often: Mapping[int, int] | None = None
    ) -> Gallery:
        """Show up to `limit` broken points, chosen evenly over the classes.

        Args:
            often: how many models each point is broken of; within a class those of many come first,
                so that the galleries of several models show the same points.
        """
        if limit < 1:
            return Gallery([], "No pictures were asked for.")
        if not any(status == "broken" for status in record.points.status):
            return Gallery([], "No point was broken.")
        ledger = Path(path).parent / "ledger.sqlite"
        if not ledger.exists():
            return Gallery(
                [],
                "There is no ledger.sqlite beside the record, which holds the adversarial inputs.",
            )
        data = self._dataset(record)
        if isinstance(data, str):
            return Gallery([], data)
        chosen = _choose(record, limit, often or {})
        found = _found(record, ledger, chosen)
        if isinstance(found, str):
            return Gallery([], found)
        x = data.fetch(np.array(chosen))[0].numpy()
        return Gallery(
            [
                _picture(record, before, *found[point])
                for point, before in zip(chosen, x, strict=True)
                if point in found
            ]
        )

    def _dataset(self, record: Record) -> Dataset | str:
        """Return the data set that the record was made on, or why it cannot be shown."""
        from robustkit.data.open import names_code, open_dataset  # needs PyTorch

        name = self._data or record.arguments.get("data")
        if not isinstance(name, str):
            return "The record does not name its data set: name it with --data."
        if self._data is None and names_code(name):
            return (
                f"The record names {clean(name)}, which would run code: it is opened only if you "
                "name it yourself with --data."
            )
        box = record.threat.lower, record.threat.upper
        if (name, box) not in self._open:
            try:
                self._open[name, box] = open_dataset(name, root=self._root, download=False, box=box)
            except RobustkitError as error:
                self._open[name, box] = (
                    f"The clean images cannot be opened: {clean(str(error))} Name the folder that "
                    "holds them with --data-root, or the data set with --data."
                )
        data = self._open[name, box]
        if not isinstance(data, str) and not self._belongs(data, name, record):
            return (
                f"The images of {clean(name)} that lie here are not those of the record: their "
                "digests differ. Name the right ones with --data-root or --data."
            )
        return data

    def _belongs(self, data: Dataset, name: str, record: Record) -> bool:
        from robustkit.data.dataset import digest

        key = name, record.data.digest
        if key not in self._same:
            index = sorted(record.points.index)
            fits = list(data.shape) == record.data.shape and index[-1] < len(data)
            try:
                self._same[key] = fits and digest(data, np.array(index)) == record.data.digest
            except RobustkitError:
                self._same[key] = False
        return self._same[key]


def _choose(record: Record, limit: int, often: Mapping[int, int]) -> list[int]:
    """Take broken points class by class, each class by `often`, then as in the data set."""
    of_class: dict[int, list[int]] = defaultdict(list)
    columns = record.points.index, record.points.label, record.points.status
    rows = sorted(zip(*columns, strict=True), key=lambda row: (-often.get(row[0], 0), row[0]))
    for index, label, status in rows:
        if status == "broken":
            of_class[label].append(index)
    turns = zip_longest(*(of_class[label] for label in sorted(of_class)))
    chosen = [point for point in chain.from_iterable(turns) if point is not None]
    return chosen[:limit]


def _found(
    record: Record, path: Path, chosen: list[int]
) -> dict[int, tuple[BrokenPoint, NDArray[Any]]] | str:
    """Return the adversarial inputs of the chosen points, or why there are none."""
    try:
        with open_readonly(path) as ledger:
            broken = ledger.broken()
            images = ledger.examples(tuple(record.data.shape), chosen)
    except RobustkitError as error:
        return f"The ledger beside the record cannot be read: {clean(str(error))}"
    columns = record.points.index, record.points.status, record.points.distance
    told = {i: distance for i, status, distance in zip(*columns, strict=True) if status == "broken"}
    if {point: found.distance for point, found in broken.items()} != told:
        return "The ledger beside the record is not that of the record: their verdicts differ."
    if not images:
        return "The run did not store its adversarial inputs (--no-save-adversarial)."
    return {point: (broken[point], image.numpy()) for point, image in images.items()}


def _picture(
    record: Record, before: NDArray[Any], broken: BrokenPoint, after: NDArray[Any]
) -> Picture:
    row = record.points.index.index(broken.point)
    axes, (low, high) = before.ndim, (record.threat.lower, record.threat.upper)
    before, after = ((part - low) / (high - low) for part in (before, after))
    if axes == 4:
        place = widest(before, after)
        before, after = before[:, place], after[:, place]
    if before.ndim == 3:
        # Shrinking averages a change away: what is magnified, by how much, is what is shown.
        size = before.shape[1], before.shape[2]
        before, after = fitted(before), fitted(after)
        change, factor = magnified(before, after)
    else:
        change, factor = magnified(before, after)
        before, after, change = drawn(before), drawn(after), drawn(change, 0.5)
        size = before.shape[1], before.shape[2]
    return Picture(
        point=broken.point,
        label=class_name(record, record.points.label[row]),
        fooled=class_name(record, broken.predicted),
        attack=clean(str(record.points.attack[row])),
        distance=broken.distance,
        factor=factor,
        images=(pixels(before), pixels(after), pixels(change)),
        size=size,
        says=SAYS.get(axes, ""),
    )
