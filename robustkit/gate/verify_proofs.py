"""Stored proofs put to the proof: every bound recomputed, and held against the record of the run.

A proof is about the network beside it. That this is the model's is what the digests tie to the
record, and `robustkit verify-record` asks the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustkit.core.types import Model
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError, some
from robustkit.evaluation.stages.proofs import apart
from robustkit.record.evidence import RECORD
from robustkit.record.record import Record, load
from robustkit.verify.proofs.folder import MANIFEST, Failure, check_folder, read

FOLDER = "proofs"


class Checked(NamedTuple):
    """The proofs of one run: points that have one, what does not hold, and what else is to say."""

    folder: Path
    points: list[int]
    failures: list[Failure]
    note: str = ""


def proof_folders(path: Path) -> list[Path]:
    """Return the folders of proofs at `path`: itself, a run's, or those of several runs.

    Raises:
        UsageError: where there are none.
    """
    for found in (path, path / FOLDER):
        if (found / MANIFEST).is_file():
            return [found]
    several = sorted(found.parent for found in path.rglob(f"{FOLDER}/{MANIFEST}"))
    if not several:
        raise UsageError(
            f"{path}: expected a run's folder or its {FOLDER}, got one without {MANIFEST}. "
            "`robustkit evaluate --save-proofs` writes it when the run is finished."
        )
    return several


def verify_proofs(folder: Path, report: Callable[[int], None] = lambda _: None) -> Checked:
    """Check every proof of a folder, and the record beside it.

    Args:
        report: called after every proof with how many are done.
    """
    points, failures = check_folder(folder, report)
    path = folder.parent / RECORD
    if folder.name != FOLDER or not path.is_file():
        return Checked(folder, points, failures, f"there is no {RECORD} to hold them against")
    try:
        record = load(path)
    except UsageError as error:
        return Checked(folder, points, [*failures, Failure(-1, str(error))])
    if points or not failures:
        failures = [
            *failures,
            *_against(record, json.loads((folder / MANIFEST).read_text("utf-8"))),
        ]
    certified = [p for p, s in zip(record.points.index, record.points.status, strict=True)
                 if s == "certified"]  # fmt: skip
    without = sorted(set(certified) - set(points))
    if certified and not points and not failures:
        told = f"expected proofs of the record's {len(certified)} certified points, found none"
        failures = [Failure(-1, told)]
    return Checked(folder, points, failures, f"no proof of points {some(without)}" * bool(without))


def against_model(checked: Checked, data: Dataset, model: Model) -> Checked:
    """Hold proofs against the images of the data, and their network against the model's logits.

    Proofs speak of the images and of the network that lie beside them: both could be exchanged.
    """
    failures, network, images = list(checked.failures), None, list[Tensor]()
    for point in checked.points:
        clean = data.fetch([point])[0]
        with np.load(checked.folder / f"{point}.npz", allow_pickle=False) as held:
            same = np.array_equal(held["x"], clean[0].cpu().numpy())
        images.append(clean)
        if not same:
            failures.append(Failure(point, "expected the image of the data, found another"))
    if images and not failures:
        network, x = read(checked.folder), torch.cat(images[:_ASKED])
        with torch.no_grad():
            logits = model(x)
        if (off := apart(network, x, logits)) > _NEAR * (1 + float(logits.abs().max())):
            told = f"expected the record's model, found a network whose logits are {off:.3g} off"
            failures.append(Failure(-1, told))
    return checked._replace(failures=failures)


_ASKED, _NEAR = 8, 1e-5  # points; of the logits, what a model may lose beyond float32's bounds


def _against(record: Record, manifest: dict[str, object]) -> list[Failure]:
    """Compare what the proofs are about with the record: threat model, points, labels."""
    found = list[Failure]()
    threat, told = record.threat, manifest["threat"]
    assert isinstance(told, dict)
    l0 = threat.norm == "l0"  # proved in the l1 ball around it
    eps = threat.eps * (threat.upper - threat.lower) if l0 else threat.eps
    norm = "l1" if l0 else threat.norm
    if (told["norm"], told["lower"], told["upper"]) != (norm, threat.lower, threat.upper) or not (
        told["eps"] >= eps
    ):
        found.append(
            Failure(-1, f"expected {norm} and eps ≥ {eps:g} as in the record, found {told}")
        )
    if manifest["record"] != record.digest:
        found.append(
            Failure(-1, f"expected the record {record.digest[:12]}…, found another digest")
        )
    columns = zip(record.points.index, record.points.label, record.points.status, strict=True)
    known, entries = {p: (label, s) for p, label, s in columns}, manifest["points"]
    assert isinstance(entries, dict)
    for name, entry in entries.items():
        if known.get(int(name)) != (entry["label"], "certified"):
            told = known.get(int(name), "no such point")
            found.append(
                Failure(int(name), f"expected a certified point as in the record ({told}), found a "
                        f"proof for label {entry['label']}")
            )  # fmt: skip
    return found
