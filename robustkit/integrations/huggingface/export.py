"""A record as two folders, laid out as repositories of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from robustkit.core import files
from robustkit.errors import UsageError
from robustkit.integrations.huggingface.dataset_card import (
    ARRAYS,
    TABLE,
    Inputs,
    arrays,
    chosen,
    dataset_card,
    table,
)
from robustkit.integrations.huggingface.model_card import model_card
from robustkit.leaderboard.rows import load_records
from robustkit.record.evidence import LEDGER
from robustkit.record.ledger_reader import open_readonly
from robustkit.record.record import Record

MODEL, DATASET, CARD = "model", "dataset", "README.md"


class Exported(NamedTuple):
    """What was written; `dataset` is None where no adversarial inputs are stored."""

    model: Path
    dataset: Path | None
    inputs: int


def export_card(
    record: Path,
    out: Path,
    *,
    name: str | None = None,
    license: str | None = None,
    data_license: str | None = None,
    dataset_repo: str | None = None,
) -> Exported:
    """Write OUT/model (card and record) and OUT/dataset (card, arrays and table).

    The second is written where the ledger beside the record holds adversarial inputs; one that lies
    there from an earlier export is removed otherwise. No model is loaded and no code runs.

    Args:
        record: a record, or the folder of one model's run.
        name: of the model on the cards, instead of the record's.
        license: of the model, by its identifier on the hub.
        data_license: of the clean images.
        dataset_repo: the repository the inputs will lie in, such as "user/name", for a link.

    Raises:
        UsageError: when there is not one record, or huggingface_hub is not installed.
        EvidenceAltered: when record or ledger is not what its run wrote.
        RobustkitError: when a file cannot be written.
    """
    ((path, found),) = _one(record)
    inputs = _inputs(found, path.with_name(LEDGER))
    linked = dataset_repo if inputs is not None else None
    model, dataset = out / MODEL, out / DATASET
    texts = {
        model / CARD: model_card(found, name=name, license=license, inputs=linked).encode(),
        model / "record.json": path.read_bytes(),
    }
    if inputs is not None:
        card = dataset_card(found, inputs, name=name, license=data_license)
        texts |= {
            dataset / CARD: card.encode(),
            dataset / ARRAYS: arrays(found, inputs),
            dataset / TABLE: table(found, inputs),
        }
    for place in (model, dataset) if inputs is not None else (model,):
        files.make_folder(place)
    for file, content in texts.items():
        files.write(content, file)
    if inputs is None:  # of an earlier export: they are not this record's
        for name_ in (CARD, ARRAYS, TABLE):
            files.remove(dataset / name_)
        return Exported(model, None, 0)
    return Exported(model, dataset, len(inputs.points))


def _one(place: Path) -> list[tuple[Path, Record]]:
    if not place.exists():
        raise UsageError(f"{place}: expected a record or the folder of a run, got no such path.")
    found = load_records([place])
    if len(found) != 1:
        raise UsageError(f"{place} holds {len(found)} records: name one of them.")
    return found


def _inputs(record: Record, ledger: Path) -> Inputs | None:
    """Read the inputs of the broken points of a record from the ledger beside it."""
    if not ledger.is_file():
        return None
    counted = {
        point
        for point, status in zip(record.points.index, record.points.status, strict=True)
        if status == "broken"
    }
    with open_readonly(ledger) as reader:
        shape = reader.shape()
        if shape is None:
            return None
        examples = {p: x.numpy() for p, x in reader.examples(shape, counted).items()}
        return chosen(examples, reader.broken(counted))
