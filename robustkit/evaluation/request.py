"""What a caller may leave out or say in words: model, data, threat model, and where to keep it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from numpy.typing import NDArray
from torch import Tensor, nn

from robustkit.core.text import slug
from robustkit.core.threat import Threat
from robustkit.core.types import Model
from robustkit.data.arrays import as_dataset
from robustkit.data.dataset import Dataset
from robustkit.data.open import open_dataset
from robustkit.errors import UsageError
from robustkit.models.load import load_model

RUNS = Path("robustkit-runs")
Pair: TypeAlias = "tuple[Tensor | NDArray[Any], Tensor | NDArray[Any]]"
GivenModel: TypeAlias = "Model | nn.Module | str"
GivenData: TypeAlias = "Dataset | Pair | str"


class Asked(NamedTuple):
    """A request in full: objects where there were names."""

    model: Model | nn.Module
    name: str
    data: Dataset
    threat: Threat
    arguments: dict[str, Any]
    notes: tuple[str, ...]


def ask(
    model: GivenModel,
    name: str | None,
    data: GivenData,
    threat: Threat | str,
    arguments: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Asked:
    """Turn what was said in words into objects; objects come back as they are.

    Args:
        model: or what `robustkit evaluate` takes as MODEL.
        name: that of the model's class or function when not given.
        data: or what `--data` takes, or (x, y) as tensors or arrays.
        threat: or such as "linf:8/255".
        arguments: what the user typed; the name of the data is added, so that a report finds it.

    Raises:
        UsageError: for a name that is not known, or data that cannot be used.
    """
    points = dataset(data)
    radius = Threat.parse(threat) if isinstance(threat, str) else threat
    if not isinstance(radius, Threat):
        raise UsageError(
            "threat: expected a robustkit.Threat or a text such as 'linf:8/255', "
            f"got {type(radius).__name__}."
        )
    given = dict(arguments or {})
    if isinstance(data, str):
        given.setdefault("data", data)
    if isinstance(model, str):
        subject = load_model(model, data=points)
        return Asked(subject.model, name or subject.name, points, radius, given,
                     (*subject.notes, *notes))  # fmt: skip
    own = str(getattr(model, "__name__", type(model).__name__))
    return Asked(model, name or own, points, radius, given, tuple(notes))


def dataset(data: GivenData) -> Dataset:
    """Open data by its name, or make a data set of (x, y).

    Raises:
        UsageError: when it is neither these nor a `Dataset`.
    """
    return open_dataset(data) if isinstance(data, str) else as_dataset("arrays", data)


def home(
    data: str, threat: str, suite: str | None, n: int, seed: int, identity: Mapping[str, Any]
) -> Path:
    """Return the folder of a run that was given none; the same run comes back to it.

    Args:
        threat: such as "linf:0.1"; of several eps "linf:0.1-0.3".
        identity: all that the verdicts depend on; its digest ends the name.
    """
    norm, _, eps = threat.partition(":")
    code = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
    return RUNS / slug(f"{data}-{norm}-{eps}-{suite or 'attacks'}-{n}-s{seed}-{code[:8]}")
