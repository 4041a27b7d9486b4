"""The adversarial inputs of a run as a data set of the hub: arrays, a table and a card."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustkit.core.optional import library
from robustkit.core.text import clean, spreadsheet
from robustkit.integrations.huggingface.model_card import EXTRA, TASK, public, threat
from robustkit.leaderboard.formats import markdown_text
from robustkit.record.ledger_schema import BrokenPoint
from robustkit.record.record import Record

ARRAYS, TABLE = "adversarial.npz", "points.csv"
_HEADS = (
    "row",
    "point",
    "label",
    "label_name",
    "predicted",
    "predicted_name",
    "attack",
    "distance",
)
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


class Inputs(NamedTuple):
    """Verified adversarial inputs of one run, in order of the points.

    Attributes:
        points: positions in the data set.
        x: [n, c, h, w], float32, in the box of the threat model.
        found: how each point was broken.
    """

    points: list[int]
    x: NDArray[np.float32]
    found: list[BrokenPoint]


def arrays(record: Record, inputs: Inputs) -> bytes:
    """Return an npz that `npz:FILE` opens: x, y (the true labels), classes, layout, point."""
    labels = dict(zip(record.points.index, record.points.label, strict=True))
    content = io.BytesIO()
    np.savez_compressed(
        content,
        x=inputs.x,
        y=np.array([labels[point] for point in inputs.points], dtype=np.int64),
        classes=np.array(record.data.classes),
        layout=np.array("nchw"),
        point=np.array(inputs.points, dtype=np.int64),
    )
    return content.getvalue()


def table(record: Record, inputs: Inputs) -> bytes:
    """Return a CSV with a row for each input, which the viewer of the hub shows."""
    labels = dict(zip(record.points.index, record.points.label, strict=True))
    attacks = dict(zip(record.points.index, record.points.attack, strict=True))
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(_HEADS)
    for row, (point, found) in enumerate(zip(inputs.points, inputs.found, strict=True)):
        names = [spreadsheet(record.class_name(k)) for k in (labels[point], found.predicted)]
        writer.writerow(
            [row, point, labels[point], names[0], found.predicted, names[1],
             spreadsheet(attacks[point] or ""), repr(found.distance)]
        )  # fmt: skip
    return lines.getvalue().encode()


def dataset_card(
    record: Record, inputs: Inputs, *, name: str | None = None, license: str | None = None
) -> str:
    """Return the text of a data set card: metadata of huggingface_hub's making, then Markdown.

    Args:
        name: of the model, instead of the record's.
        license: that of the clean images, by its identifier on the hub.

    Raises:
        UsageError: when huggingface_hub is not installed.
    """
    hub: Any = library("huggingface_hub", EXTRA)
    model, data = clean(name or public(record.defense)), public(record.data.title)
    n = len(inputs.points)
    metadata = hub.DatasetCardData(
        pretty_name=f"Adversarial inputs of {model} on {data} ({threat(record)})",
        license=license, task_categories=[TASK], tags=["adversarial-robustness", "robustkit"],
        size_categories=next((size for most, size in _SIZES if n < most), "n>1M"),
        configs=[{"config_name": "points", "data_files": TABLE}],
    )  # fmt: skip
    body = _body(record, n, markdown_text(model), markdown_text(data), license)
    return str(hub.DatasetCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n".join(body) + "\n"))


def _body(record: Record, n: int, model: str, data: str, license: str | None) -> Sequence[str]:
    shape = " × ".join(map(str, record.data.shape))
    rights = "" if license else " Name it in the metadata above before you publish them."
    return (
        f"# Adversarial inputs of {model}\n",
        f"{n} inputs that {model} misclassifies, each within {threat(record)} of a correctly "
        f"classified point of {data}; every one was verified by fresh float32 passes of the model. "
        f"They are those of robustkit's record with the points "
        f"{markdown_text(record.data.digest[:16])}: {record.n} points "
        f"evaluated, {n} of them stored here.\n",
        f"- `{ARRAYS}`: `x` [{n}, {', '.join(map(str, record.data.shape))}], float32 in "
        f"[{record.threat.lower:g}, {record.threat.upper:g}] (each image {shape}); `y`, the true "
        "labels; `point`, positions in the data set. Rounded to bytes they may lie outside the "
        "threat model, or be classified correctly.",
        f"- `{TABLE}`: for each row the point, both classes, the attack and the distance.\n",
        "```bash",
        f"robustkit evaluate MODEL --data npz:{ARRAYS} --threat {_typed(record)}",
        "```\n",
        "The clean accuracy of that run is the share of these inputs that MODEL withstands: they "
        "transfer from another model, so that it says nothing about attacks on MODEL itself.\n",
        f"The images are changed copies of images of {data}, whose license holds.{rights}",
    )


def _typed(record: Record) -> str:
    return record.threat.text


def chosen(
    examples: Mapping[int, NDArray[np.float32]], broken: Mapping[int, BrokenPoint]
) -> Inputs | None:
    """Return the inputs that are stored, in order of their points; None: there are none."""
    points = sorted(point for point in examples if point in broken)
    if not points:
        return None
    return Inputs(points, np.stack([examples[p] for p in points]), [broken[p] for p in points])
