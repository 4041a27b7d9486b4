"""What an evaluation found, read back from its folder."""

from __future__ import annotations

from pathlib import Path

from robustkit.core import arguments
from robustkit.core.types import Images
from robustkit.errors import UsageError
from robustkit.record.evidence import refuse_altered_ledger
from robustkit.record.ledger_reader import open_readonly


def adversarial_inputs(folder: Path | str) -> dict[int, Images]:
    """Return what an evaluation found: position of the point in the data set -> input [c, h, w].

    Args:
        folder: that of one model's evaluation; it must not be in use.

    Raises:
        UsageError: when there is no ledger in it, or a run is writing it.
        EvidenceAltered: when the ledger is not as its run left it.
    """
    path = arguments.path("folder", folder) / "ledger.sqlite"
    if not path.exists():
        raise UsageError(f"{folder} holds no ledger.sqlite: name the folder of one model's run.")
    refuse_altered_ledger(path)
    with open_readonly(path) as ledger:
        shape = ledger.shape()
        return {} if shape is None else ledger.examples(shape)
