"""Everything that `robustkit evaluate` decides, and refuses, before it attacks the first model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from robustkit.certify.certifier import build_certifier
from robustkit.cli.evaluate.request import Request
from robustkit.cli.evaluate.run_folder import certificate, previous, refuse_other
from robustkit.cli.evaluate.threats import threat_of, threats_of_grid
from robustkit.core import json_files
from robustkit.core.device import pick_devices
from robustkit.core.spec import Spec
from robustkit.core.text import slug
from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset
from robustkit.data.open import open_dataset
from robustkit.data.values import UNIT
from robustkit.errors import UsageError
from robustkit.evaluation.budget import Budget, StoppingRule
from robustkit.evaluation.distributed.messages import Named
from robustkit.evaluation.distributed.setup import set_up
from robustkit.evaluation.distributed.several import at_once
from robustkit.evaluation.eps_grid import folder_of, refuse_audit
from robustkit.evaluation.identity import default_folder, source_digest
from robustkit.evaluation.prepare import chosen_points
from robustkit.evaluation.settings import Settings
from robustkit.evaluation.stages.replay import find_examples
from robustkit.models.load import Subject, bundled, load_model
from robustkit.models.regression import for_targets
from robustkit.models.trust import trusted
from robustkit.record.provenance import weights_digest
from robustkit.search.suites import default_suite

SCHEMA = "robustkit/run/1"

FIRST_LOOK = 200  # points, where no model is named and every bundled one runs


@dataclass(frozen=True)
class Plan:
    """A checked request: models loaded, data open, folder settled.

    Attributes:
        settings: what holds for every model; `settings_of` adds what is each one's own.
        grid: the threat models of `--eps-grid`, the largest first; empty without it.
    """

    request: Request
    settings: Settings
    grid: tuple[Threat, ...]
    subjects: tuple[Subject, ...]
    config: dict[str, Any]
    out: Path

    def settings_of(self, subject: Subject) -> Settings:
        """Return the settings for one model."""
        return replace(
            self.settings,
            model=subject.model,
            name=subject.name,
            folder=self.folder(subject),
            named=self.named(subject),
            arguments=self.arguments(subject),
            workers=self.settings.workers if self.at_once == 1 else None,
            notes=tuple(subject.notes),
        )

    @cached_property
    def at_once(self) -> int:
        """How many models are evaluated at once, each by one process.

        One after the other where each is spread over workers itself: over devices, a cluster, or
        more workers than there are models. Where nobody says, those that nobody named are, on a
        CPU: a process takes seconds to start, which a few small models do not give back.
        """
        request, models = self.request, len(self.subjects)
        devices = pick_devices(request.device)
        if request.distributed or len(devices) > 1:
            return 1
        if request.workers is None:
            plain = not request.models and devices[0].type == "cpu"
            return at_once(models) if plain else 1
        return 1 if request.workers > models else request.workers

    def folder(self, subject: Subject) -> Path:
        """Return the folder of one model's evidence."""
        return self.out / slug(subject.name)

    def records(self, subject: Subject) -> list[Path]:
        """Return where the records of one model will lie."""
        folder = self.folder(subject)
        places = [folder_of(folder, threat) for threat in self.grid] or [folder]
        return [place / "record.json" for place in places]

    def arguments(self, subject: Subject) -> dict[str, Any]:
        """Return what the record keeps of the request."""
        kept = {key: value for key, value in self.config.items() if key != "schema"}
        request = self.request
        spread = {"distributed": request.distributed, "workers": request.workers}
        given = {key: value for key, value in spread.items() if value is not None}
        return {**kept, "model": subject.source, "device": request.device, **given}

    def named(self, subject: Subject) -> Named | None:
        """Return how workers load a model; they may have another working directory."""
        if getattr(self.settings.data, "targets", None) is not None:
            return None  # a model and its targets go there as they are
        weights = self.request.weights
        return Named(
            _absolute(subject.source), weights and weights.resolve(), self.request.mean,
            self.request.std, trusted(),
        )  # fmt: skip


def _absolute(text: str) -> str:
    """Return a model's name with the files of code and weights that it names from the root on."""
    name, at, weights = text.rpartition("@")
    if at and Path(weights).is_file():
        return f"{_absolute(name)}@{Path(weights).resolve()}"
    source, _, attribute = text.rpartition(":")
    return f"{Path(source).resolve()}:{attribute}" if source.endswith(".py") else text


def make(request: Request) -> Plan:
    """Check a request. Nothing is written.

    Raises:
        UsageError: for whatever would make the run fail or mean something else than was asked.
    """
    set_up(request.device, request.distributed, request.workers)
    if request.suite and request.attacks:
        raise UsageError("--suite and --attack exclude each other: give one of them.")
    data = open_dataset(request.data, root=request.data_root, split="test", box=request.box)
    if not request.models and request.n is None:
        request = replace(request, n=min(len(data), FIRST_LOOK))
    grid = threats_of_grid(request)
    asked = request.certify not in (None, "none", "quick")
    request = replace(request, certify=certificate(request))
    settings = settings_for(request, data, grid)
    line = settings.line_up()
    if grid:
        refuse_audit(line, settings.suite)
        settings.refuse_beside("a grid of eps (--eps-grid)")
    if request.attack_certified and not asked:
        raise UsageError("--attack-certified needs --certify: nothing is certified without it.")
    chosen_points(settings)
    if request.replay:
        find_examples(request.replay, data.shape)
    subjects = tuple(
        subject._replace(model=for_targets(subject.model, data, settings.threat.criterion))
        for subject in _subjects(request, data, settings.threat.norm.partition(":")[0])
    )
    for subject in subjects:
        replace(settings, model=subject.model).line_up()
        if asked:
            build_certifier(
                subject.model, data.shape, settings.threat, str(request.certify), request.seed
            )
    config = _config(request, settings, grid, subjects)
    out = request.out or _default(config, data)
    refuse_other(out, config, fresh=request.fresh)
    return Plan(request, settings, grid, subjects, config, out)


def claim(plan: Plan) -> None:
    """Write the configuration into the run's folder; `--fresh` drops the records of another run."""
    if plan.request.fresh and (before := previous(plan.out, fresh=True)):
        places = [plan.out / slug(str(name)) for name in before.get("models") or ()]
        found = {file for place in places for file in place.rglob("record.json")}
        for file in found - {file for subject in plan.subjects for file in plan.records(subject)}:
            file.unlink()
    json_files.write(plan.config, plan.out / "config.json")


def settings_for(request: Request, data: Dataset, grid: Sequence[Threat]) -> Settings:
    """Return what holds for every model; `Plan.settings_of` adds what is each one's own."""
    threat = grid[0] if grid else threat_of(request, data)
    default = default_suite(threat, minimum_norm=request.minimum_norm)
    budget = Budget(request.max_time, request.max_forwards)
    return Settings(
        None, "", data, threat,
        suite=request.suite or (None if request.attacks else default),
        attacks=tuple(Spec.parse(text) for text in request.attacks),
        certify=request.certify,
        attack_certified=request.attack_certified,
        n=request.n,
        sample=request.sample,
        replay=request.replay,
        budget=None if budget == Budget() else StoppingRule(budget),
        seed=request.seed,
        device=request.device,
        distributed=request.distributed,
        workers=request.workers,
        batch_size=request.batch_size,
        tuning=request.tuning,
        fresh=request.fresh,
        save_adversarial=request.save_adversarial,
        save_proofs=request.save_proofs,
        minimum_norm=request.minimum_norm,
    )  # fmt: skip


def _subjects(request: Request, data: Dataset, kind: str) -> tuple[Subject, ...]:
    names = list(request.models) or bundled(data, kind)
    if not names:
        raise UsageError(
            f"no model is bundled for {data.family}: name a MODEL (`robustkit list defenses` shows "
            "for which data weights are bundled)."
        )
    if request.weights is not None and len(request.models) != 1:
        raise UsageError(f"--weights goes with exactly one MODEL, got {len(request.models)}.")
    subjects = [
        load_model(text, data=data, weights=request.weights, mean=request.mean, std=request.std)
        for text in names
    ]
    if request.names and len(request.names) != len(subjects):
        raise UsageError(
            f"--name: expected one for each of {len(subjects)} models, got {len(request.names)}."
        )
    for i, name in enumerate(request.names):
        subjects[i] = subjects[i]._replace(name=name, text=subjects[i].source)
    folders = [slug(subject.name) for subject in subjects]
    for subject, folder in zip(subjects, folders, strict=True):
        if folders.count(folder) > 1:
            raise UsageError(f"{subject.name} is listed twice, or another name is too close to it.")
    return tuple(subjects)


def _config(
    request: Request,
    settings: Settings,
    grid: tuple[Threat, ...],
    subjects: tuple[Subject, ...],
) -> dict[str, Any]:
    """Describe the run: what decides its verdicts, and nothing else."""
    sources = [source_digest(subject.source) for subject in subjects]
    return {
        "schema": SCHEMA,
        "models": [subject.name for subject in subjects],
        # They are part of the digests of weights too: here they are named when they change.
        **({"mean": list(request.mean)} if request.mean else {}),
        **({"std": list(request.std)} if request.std else {}),
        "weights": [weights_digest(subject.model)[0] for subject in subjects],
        **({"sources": sources} if any(sources) else {}),
        "data": request.data,
        **({"box": list(request.box)} if request.box != UNIT else {}),
        "threat": settings.threat.norm if grid else str(settings.threat),
        **({"criterion": str(goal)} if grid and (goal := settings.threat.criterion).suffix else {}),
        "suite": settings.suite and str(Spec.parse(settings.suite)),
        "attacks": [str(spec) for spec in settings.attacks],
        "n": request.n,
        **({"sample": "balanced"} if settings.balanced else {}),
        "seed": request.seed,
        **({"replay": str(request.replay)} if request.replay else {}),
        **({"certify": request.certify} if request.certify else {}),
        **({"attack_certified": True} if request.attack_certified else {}),
        **({"minimum_norm": True} if request.minimum_norm else {}),
        **({"eps_grid": [radius.eps for radius in grid]} if grid else {}),
    }


def _default(config: dict[str, Any], data: Dataset) -> Path:
    threat = config["threat"]
    if radii := config.get("eps_grid"):
        threat = f"{threat}:{radii[-1]:.6g}-{radii[0]:.6g}"
    points = config["n"] or len(data)
    return default_folder(config["data"], threat, config["suite"], points, config["seed"], config)
