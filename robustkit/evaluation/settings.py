"""What an evaluation was asked for: one frozen object, which CLI, grid, gate and monitor adapt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import data as torch_data

from robustkit.certify.certifier import share_of
from robustkit.core import arguments as argument
from robustkit.core.finite import FiniteThreat
from robustkit.core.named import NamedThreat
from robustkit.core.spec import Spec
from robustkit.core.threat import Threat
from robustkit.core.types import Model
from robustkit.data.arrays import as_dataset
from robustkit.data.dataset import Dataset
from robustkit.data.open import open_dataset
from robustkit.data.sampling import PROPORTIONAL, Sample
from robustkit.data.values import UNIT, Box
from robustkit.errors import UsageError, unknown
from robustkit.evaluation.budget import Budget, StoppingRule
from robustkit.evaluation.criterion import with_criterion
from robustkit.evaluation.distributed.messages import Named
from robustkit.models.half import Precision
from robustkit.models.load import load_model
from robustkit.models.normalization import Numbers, in_units, normalized
from robustkit.models.readiness import without_replicas
from robustkit.models.regression import for_targets
from robustkit.models.scores import Probabilistic, has_scores, of_estimator
from robustkit.models.tuning import AUTOMATIC, Layout, Tuning
from robustkit.registry import read_threat
from robustkit.search.suites import LineUp, default_suite, line_up, refuse_fixed

Pair: TypeAlias = "tuple[Tensor | NDArray[Any], Tensor | NDArray[Any]]"
GivenModel: TypeAlias = "Model | nn.Module | Probabilistic | str"
GivenData: TypeAlias = "Dataset | Pair | torch_data.Dataset[Any] | torch_data.DataLoader[Any] | str"


@dataclass(frozen=True)
class Settings:
    """One evaluation as it was asked for; the names are those of `robustkit.evaluate`.

    Attributes:
        model, name, data, threat: objects, where a user may have given names; `model` is None
            while a request is checked before its models are loaded.
        attacks: specs, as text or parsed; empty where a suite is named.
        n, sample: how many points, and how they are drawn (`robustkit.data.sampling`).
        budget: ends the run early; a `Budget` alone stops when it is used up.
    """

    model: Any
    name: str
    data: Dataset
    threat: Threat
    folder: Path | None = None
    suite: str | None = None
    attacks: tuple[str | Spec, ...] = ()
    certify: str | None = None
    attack_certified: bool = False
    n: int | None = None
    sample: Sample = PROPORTIONAL
    points: tuple[int, ...] | None = None
    replay: Path | None = None
    budget: StoppingRule | None = None
    seed: int = 0
    device: str = "auto"
    distributed: str | None = None
    workers: int | None = None
    named: Named | None = None
    batch_size: int | None = None
    tuning: Tuning = AUTOMATIC
    fresh: bool = False
    save_adversarial: bool | None = None
    save_proofs: bool = False
    minimum_norm: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse numbers that no run can be made with, whoever asks.

        Raises:
            UsageError: for a seed, a batch size, workers or an eps outside of what there is.
        """
        argument.whole("seed", self.seed, 0, argument.SEEDS)
        for name in ("batch_size", "workers"):
            if (value := getattr(self, name)) is not None:
                argument.whole(name, value, 1)
        self.threat.refuse_beyond_box(self.data.shape)
        if isinstance(self.threat, NamedThreat):
            self._refuse_without_ball(self.threat)

    def _refuse_without_ball(self, threat: NamedThreat) -> None:
        object.__setattr__(self, "threat", threat := threat.beside(self.data))
        threat.check(self.data.shape, self.data.labels)
        if self.minimum_norm:
            raise threat.refusal("minimum_norm (--minimum-norm)")
        listed = isinstance(threat, FiniteThreat)
        if listed and self.certify and self.certify != "quick" and share_of(self.certify) is None:
            raise threat.refusal(f"certify={self.certify} (--certify)")

    @property
    def balanced(self) -> bool:
        """Whether the points are as many of every class, whatever its share of the data."""
        return self.n is not None and self.sample == "balanced"

    def line_up(self) -> LineUp:
        """Return the attacks in order, checked against the rest of the request.

        Raises:
            UsageError: for attacks that cannot be run as asked, and for requests that exclude each
                other.
        """
        line = line_up(self.suite, self.attacks, self.threat, self.model)
        if self.minimum_norm:
            refuse_fixed(line)
            self.refuse_beside("minimum_norm (--minimum-norm)")
        return line

    def refuse_beside(self, mode: str) -> None:
        """Refuse what a run over several eps, or one for distances, cannot be combined with.

        Raises:
            UsageError: naming the argument, and the option of the command line.
        """
        given = {
            "replay (--replay)": self.replay,
            "budget (--max-time, --max-forwards)": self.budget,
        }
        for option in (name for name, there in given.items() if there is not None):
            raise UsageError(f"{option} does not go with {mode}: leave one of them out.")


def ask(
    model: GivenModel | None,
    data: GivenData,
    threat: Threat | str,
    *,
    name: str | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    arguments: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    **others: Any,
) -> Settings:
    """Turn a request in words into settings; objects come back as they are.

    Args:
        model: or what `robustkit evaluate` takes as MODEL; None where it is still to come.
        data: or what `--data` takes, or (x, y) as tensors or arrays.
        threat: or such as "linf:8/255".
        name: that of the model's class or function when not given.
        mean, std: normalize the inputs inside the model.
        arguments: what the user typed; the name of the data is added, so that a report finds it.
        others: fields of `Settings`; and `criterion`, in place of that of the threat model.

    Raises:
        UsageError: for a name that is not known, or data that cannot be used.
    """
    more = tuple(argument.text("notes", note) for note in argument.several("notes", notes))
    others = {key: _read(key, value) for key, value in others.items()}
    radius = with_criterion(read_threat(threat), others.pop("criterion", None))
    points = dataset(data, radius.box)
    if not isinstance(arguments, Mapping | None):
        raise argument.refused("arguments", "a dict of what the user typed", arguments)
    given = dict(arguments or {})
    if isinstance(data, str):
        given.setdefault("data", data)
    if others.get("points") is not None:
        others["points"] = _positions(others["points"], len(points))
    called = None if name is None else argument.text("name", name)
    subject, usual, known = named_model(model, points, mean, std)
    if not (others.get("suite") or others.get("attacks")):
        others["suite"] = default_suite(radius, minimum_norm=bool(others.get("minimum_norm")))
    return Settings(
        for_targets(subject, points, radius.criterion), called or usual, points, radius,
        arguments=given, notes=(*known, *more), **others,
    )  # fmt: skip


_SWITCHES = ("attack_certified", "fresh", "save_adversarial", "save_proofs", "minimum_norm")


def _read(key: str, value: Any) -> Any:
    """Read one field of `Settings` as it may be given from Python.

    Raises:
        UsageError: for a value of another type.
    """
    if value is None and key not in ("attacks", "seed", "device", "tuning"):
        return None
    if key in _SWITCHES:
        return argument.switch(key, value)
    match key:
        case "seed":
            return argument.whole(key, value, 0, argument.SEEDS)
        case "n":  # how many there are is for the data to say
            return argument.whole(key, value, -argument.SEEDS)
        case "batch_size" | "workers":
            return argument.whole(key, value, 1)
        case "folder" | "replay":
            return argument.path(key, value)
        case "suite" | "certify" | "distributed":
            return argument.text(key, value)
        case "device":
            return argument.text(key, str(value) if isinstance(value, torch.device) else value)
        case "attacks":
            specs = argument.several(key, value)
            return tuple(s if isinstance(s, Spec) else argument.text(key, s) for s in specs)
        case "budget":
            value = StoppingRule(value) if isinstance(value, Budget) else value
            return argument.instance(
                key, value, StoppingRule, "a robustkit.evaluation.budget.Budget"
            )
        case "tuning":
            return _tuning(value)
        case "named":
            return argument.instance(key, value, Named, "a Named")
    return value


def _tuning(value: Any) -> Any:
    tuning: Tuning = argument.instance("tuning", value, Tuning, "a robustkit.models.tuning.Tuning")
    for name, known in (("precision", get_args(Precision)), ("layout", get_args(Layout))):
        if (given := getattr(tuning, name)) not in known:
            raise unknown(f"{name} of the tuning", str(given), known)
    argument.switch("compiled", tuning.compiled)
    return tuning


def _positions(given: Any, n: int) -> tuple[int, ...]:
    """Read points as positions in the data set, or as a mask with one bool for each of its n."""
    if isinstance(given, Tensor):
        given = given.detach().cpu().numpy()
    listed = given if isinstance(given, np.ndarray) else argument.several("points", given)
    try:
        chosen = np.asarray(listed if np.size(listed) else np.empty(0, dtype=np.int64))
    except (TypeError, ValueError):  # rows of different lengths
        chosen = np.empty(0)
    if chosen.ndim == 1 and chosen.dtype == np.bool_:
        if len(chosen) != n:
            raise UsageError(f"points: expected a mask of {n}, one for each, got {len(chosen)}.")
        chosen = np.flatnonzero(chosen)
    if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
        raise argument.refused("points", "positions in the data set, or a mask", given)
    return tuple(map(int, chosen))


def named_model(
    model: GivenModel | None,
    data: Dataset,
    mean: Numbers | None = None,
    std: Numbers | None = None,
) -> tuple[Any, str, tuple[str, ...]]:
    """Load a model by its name; a model comes back as it is, with the name of its class.

    Returns:
        The model, its name, and notes for the record.

    Raises:
        UsageError: for a name that is not known.
    """
    if isinstance(model, str):
        subject = load_model(model, data=data, mean=mean, std=std)
        return subject.model, subject.name, tuple(subject.notes)
    if has_scores(model):
        scores = of_estimator(model, data.shape, data.classes, data.class_names)
        model, made = scores, type(model).__name__
        model.__name__ = made  # type: ignore[assignment]  # what tables call it
    if isinstance(model, type) or not (model is None or callable(model)):
        raise argument.refused("model", "an nn.Module, a function of images, or a name", model)
    if isinstance(model, nn.Module):
        model = without_replicas(model)
    called = str(getattr(model, "__name__", type(model).__name__))
    if mean is None and std is None:
        return None if model is None else in_units(model, data), called, ()
    if not isinstance(model, nn.Module):
        raise argument.refused("model", "an nn.Module, which mean and std are put before", model)
    wrapped, note = normalized(model, data.shape, mean, std)
    return in_units(wrapped, data), called, (note,)


def dataset(data: GivenData, box: Box = UNIT) -> Dataset:
    """Open data by its name, or make a data set of (x, y); floats lie in the box.

    Raises:
        UsageError: when it is neither these nor a `Dataset`.
    """
    if isinstance(data, str):
        return open_dataset(data, box=box)
    return as_dataset("arrays", data, box=box)
