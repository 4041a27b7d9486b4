"""What `robustkit diagnose --reliance` does: load, measure, keep what is measured."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from robustkit.cli.progress import counting
from robustkit.core import files, json_files
from robustkit.core.device import pick_device
from robustkit.core.text import spreadsheet
from robustkit.core.types import Model, Shape
from robustkit.data.dataset import Dataset, digest, select
from robustkit.data.open import open_dataset
from robustkit.errors import UsageError
from robustkit.models.checkpoints import digest as file_digest
from robustkit.models.load import load_model
from robustkit.models.readiness import private_copy
from robustkit.models.surrogates.resolve import source
from robustkit.record.provenance import weights_digest
from robustkit.verify.diagnostics.blocks import Block, given_masks, named_block, ready_blocks
from robustkit.verify.diagnostics.reliance import Asked, Reliance, Row, measure_reliance


class Request(NamedTuple):
    """The options of the command, by name."""

    models: tuple[str, ...]
    data: str
    data_root: Path | None
    n: int
    blocks: tuple[str, ...]
    masks: Path | None
    parts: tuple[str, ...]
    permutations: int
    seed: int
    out: Path | None
    fresh: bool


def run(request: Request, *, quiet: bool) -> tuple[Reliance, dict[str, Any]]:
    """Measure, and return what was found with the values to write as JSON.

    Raises:
        UsageError: for a request that does not fit the models, the data or the folder.
    """
    data = open_dataset(request.data, root=request.data_root)
    points = select(data, min(request.n, len(data)), request.seed, "proportional").tolist()
    asked = Asked.of(_models(request, data), data.fetch(points[:2])[0])
    blocks = _blocks(request, data.shape)
    state = {
        "models": list(request.models), "parts": list(request.parts),
        "weights": [weights_digest(m)[0] for m in asked.models.values()
                    if isinstance(m, nn.Module)],
        "data": digest(data, points), "n": len(points), "seed": request.seed,
        "permutations": request.permutations, "names": asked.names,
        "blocks": list(request.blocks), "masks": request.masks and file_digest(request.masks),
    }  # fmt: skip
    known = _known(request, state)

    with counting("reliance", 1 + len(blocks) * request.permutations, quiet=quiet) as count:

        def progress(unit: str) -> None:
            if request.out is not None:
                json_files.write({"run": state, "measured": known}, request.out / "state.json")
            count(unit)

        found = measure_reliance(
            asked, data, points, blocks, permutations=request.permutations, seed=request.seed,
            known=known, progress=progress,
        )  # fmt: skip
    told = _told(found, state)
    if request.out is not None:
        json_files.write(told, request.out / "reliance.json")
        files.write(_csv(found).encode(), request.out / "reliance.csv")
    return found, told


def _models(request: Request, data: Dataset) -> dict[str, Model]:
    where = pick_device("cpu")
    found = {
        name: private_copy(load_model(name, data=data).model, where, name)
        for name in request.models
    }
    if not request.parts:
        return found
    if len(found) != 1:
        raise UsageError("--member names parts of one model: give a single MODEL.")
    ((_, model),) = found.items()
    return {name: source(model, name) for name in request.parts}


def _blocks(request: Request, shape: Shape) -> list[Block]:
    named = [named_block(text, shape) for text in request.blocks]
    if request.masks is not None:
        try:
            with np.load(request.masks, allow_pickle=False) as stored:
                named += given_masks(dict(stored), shape)
        except (OSError, ValueError) as error:
            raise UsageError(f"{request.masks} is no readable npz of masks: {error}.") from None
    return named or ready_blocks(shape)


def _known(request: Request, state: dict[str, Any]) -> dict[str, list[str]]:
    """Return what the folder holds of the same request."""
    if request.out is None:
        return {}
    request.out.mkdir(parents=True, exist_ok=True)
    path = request.out / "state.json"
    if request.fresh or not path.exists():
        return {}
    held = json_files.read(path)
    if held.get("run") != state:
        raise UsageError(
            f"{request.out} holds a measurement of other models, data or options. Choose another "
            "--out, or start over with --fresh."
        )
    measured: dict[str, list[str]] = held["measured"]
    return measured


def _told(found: Reliance, state: dict[str, Any]) -> dict[str, Any]:
    pairs = [
        {"members": list(pair), "cosine": cosine, "common_errors": found.common_errors[pair]}
        for pair, cosine in found.similarity.items()
    ]
    return {
        **state, "chance": found.chance, "verdict": found.verdict,
        "accuracy": dict(zip(found.names, found.accuracy, strict=True)),
        "rows": [row._asdict() for row in found.rows], "pairs": pairs,
    }  # fmt: skip


def _csv(found: Reliance) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(
        [spreadsheet(row.member), spreadsheet(row.block), *(f"{value:.6f}" for value in row[2:])]
        for row in found.rows
    )
    return text.getvalue()
