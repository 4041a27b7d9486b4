"""Everything that `robustkit evaluate` decides, and refuses, before it attacks the first model."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustkit import jsonfile
from robustkit.bounds.certify import certifier
from robustkit.data import Dataset, open_dataset, select
from robustkit.device import pick_device
from robustkit.errors import UsageError
from robustkit.model import Subject, bundled, load_model
from robustkit.provenance import weights_digest
from robustkit.registry import datasets
from robustkit.replay import find_examples
from robustkit.spec import Spec
from robustkit.suites import line_up
from robustkit.threat import Threat
from robustkit.tuning import AUTOMATIC, Tuning

SCHEMA = "robustkit/run/1"
_DEFAULT_SUITE = "quick"


@dataclass(frozen=True)
class Request:
    """What was asked for, as it was typed."""

    models: tuple[str, ...] = ()
    data: str = "bundled"
    data_root: Path | None = None
    threat: str | None = None
    suite: str | None = None
    attacks: tuple[str, ...] = ()
    certify: str | None = None
    attack_certified: bool = False
    n: int | None = None
    seed: int = 0
    device: str = "auto"
    batch_size: int | None = None
    tuning: Tuning = AUTOMATIC
    replay: Path | None = None
    max_time: float | None = None
    max_forwards: int | None = None
    out: Path | None = None
    fresh: bool = False
    save_adversarial: bool | None = None
    weights: Path | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    threads: int | None = None
    as_json: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Plan:
    """A checked request: models loaded, data open, folder settled."""

    request: Request
    data: Dataset
    threat: Threat
    suite: str | None
    attacks: tuple[Spec, ...]
    subjects: tuple[Subject, ...]
    config: dict[str, Any]
    out: Path

    def folder(self, subject: Subject) -> Path:
        """Return the folder of one model's evidence."""
        return self.out / slug(subject.name)

    def arguments(self, subject: Subject) -> dict[str, Any]:
        """Return what the record keeps of the request."""
        kept = {key: value for key, value in self.config.items() if key != "schema"}
        return {**kept, "model": subject.name, "device": self.request.device}


def make(request: Request) -> Plan:
    """Check a request. Nothing is written.

    Raises:
        UsageError: for whatever would make the run fail or mean something else than was asked.
    """
    pick_device(request.device)
    if request.suite and request.attacks:
        raise UsageError("--suite and --attack exclude each other: give one of them.")
    data = open_dataset(request.data, root=request.data_root, split="test")
    threat = Threat.parse(request.threat or _usual_threat(request.data))
    suite = request.suite or (None if request.attacks else _DEFAULT_SUITE)
    attacks = tuple(Spec.parse(text) for text in request.attacks)
    line_up(suite, attacks, threat)
    if request.attack_certified and not request.certify:
        raise UsageError("--attack-certified needs --certify: nothing is certified without it.")
    select(data, request.n, request.seed)
    if request.replay:
        find_examples(request.replay, data.shape)
    subjects = _subjects(request, data)
    for subject in subjects:
        line_up(suite, attacks, threat, subject.model)
        if request.certify:
            certifier(subject.model, data.shape, threat, request.certify, request.seed)
    config = _config(request, threat, suite, attacks, subjects)
    out = request.out or Path("robustkit-runs") / _default_name(config, data)
    _refuse_other(out, config, fresh=request.fresh)
    return Plan(request, data, threat, suite, attacks, subjects, config, out)


def claim(plan: Plan) -> None:
    """Write the configuration into the run's folder; `--fresh` drops the records of another run."""
    if plan.request.fresh and (before := _previous(plan.out)):
        for name in set(before["models"]) - set(plan.config["models"]):
            (plan.out / slug(name) / "record.json").unlink(missing_ok=True)
    jsonfile.write(plan.config, plan.out / "config.json")


def usual_threat(text: str) -> str | None:
    """Return the threat model that is usual for a registered data set, if one is known."""
    name = text.partition("(")[0].strip()
    fact = datasets.entry(name).facts.get("threat") if name in datasets else None
    return str(fact) if fact else None


def _usual_threat(text: str) -> str:
    threat = usual_threat(text)
    if threat is None:
        raise UsageError(
            f"no threat model is usual for {text!r}: name one, such as --threat linf:8/255 "
            "(norm, and eps in units of inputs between 0 and 1)."
        )
    return threat


def _subjects(request: Request, data: Dataset) -> tuple[Subject, ...]:
    names = list(request.models) or bundled(data)
    if not names:
        raise UsageError(
            f"no model is bundled for {data.family}: name a MODEL (`robustkit list defenses` shows "
            "for which data weights are bundled)."
        )
    if request.weights is not None and len(request.models) != 1:
        raise UsageError(f"--weights goes with exactly one MODEL, got {len(request.models)}.")
    subjects = tuple(
        load_model(text, data=data, weights=request.weights, mean=request.mean, std=request.std)
        for text in names
    )
    folders = [slug(subject.name) for subject in subjects]
    for subject, folder in zip(subjects, folders, strict=True):
        if folders.count(folder) > 1:
            raise UsageError(f"{subject.name} is listed twice, or another name is too close to it.")
    return subjects


def _config(
    request: Request,
    threat: Threat,
    suite: str | None,
    attacks: tuple[Spec, ...],
    subjects: tuple[Subject, ...],
) -> dict[str, Any]:
    """Describe the run: what decides its verdicts, and nothing else."""
    return {
        "schema": SCHEMA,
        "models": [subject.name for subject in subjects],
        "weights": [weights_digest(subject.model)[0] for subject in subjects],
        "data": request.data,
        "threat": str(threat),
        "suite": suite and str(Spec.parse(suite)),
        "attacks": [str(spec) for spec in attacks],
        "n": request.n,
        "seed": request.seed,
        **({"replay": str(request.replay)} if request.replay else {}),
        **({"certify": request.certify} if request.certify else {}),
        **({"attack_certified": True} if request.attack_certified else {}),
    }


def _default_name(config: dict[str, Any], data: Dataset) -> str:
    norm, _, eps = config["threat"].partition(":")
    suite, points = config["suite"] or "attacks", config["n"] or len(data)
    code = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]
    return slug(f"{config['data']}-{norm}-{eps}-{suite}-{points}-s{config['seed']}-{code}")


def _refuse_other(out: Path, config: dict[str, Any], *, fresh: bool) -> None:
    """Refuse a folder that holds something else than this run."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; --out names a folder.")
    before = _previous(out)
    if before is None or fresh:
        return
    for key in {**config, **before}:
        was, now = before.get(key), config.get(key)
        if was != now:
            raise UsageError(
                f"{out} holds another evaluation: {_difference(key, was, now, config)}. "
                "Choose another --out, or start over with --fresh."
            )


def _previous(out: Path) -> dict[str, Any] | None:
    path = out / "config.json"
    if not path.exists():
        return None
    found = jsonfile.read(path)
    if not isinstance(found, dict) or not str(found.get("schema")).startswith("robustkit/run/"):
        raise UsageError(f"{path} is not of robustkit: choose a folder of its own for --out.")
    return found


def _difference(key: str, was: Any, now: Any, config: dict[str, Any]) -> str:
    if key == "weights" and isinstance(was, list):
        pairs = zip(config["models"], was, now, strict=False)
        changed = ", ".join(name for name, old, new in pairs if old != new)
        return f"the weights of {changed} have changed"
    return f"{key} was {_shown(was)}, now {_shown(now)}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "not given" if value is None else str(value)


def slug(name: str) -> str:
    """Return `name` as the name of a folder on any system."""
    slug = re.sub(r"[^A-Za-z0-9._=+]+", "-", name).strip("-.") or "model"
    if len(slug) <= 80:
        return slug
    return f"{slug[:70]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
