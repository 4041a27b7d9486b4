"""Several models of one command at once, each evaluated by a process of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from robustkit.cli.evaluate.plan import Plan, settings_for
from robustkit.cli.evaluate.request import Request
from robustkit.cli.evaluate.told import finished_row
from robustkit.cli.screen import Screen
from robustkit.core.device import pick_devices
from robustkit.core.threat import Threat
from robustkit.core.types import Images
from robustkit.data.open import open_dataset
from robustkit.errors import RobustkitError
from robustkit.evaluation.budget import StoppingRule
from robustkit.evaluation.distributed import several
from robustkit.evaluation.distributed.messages import Evaluation
from robustkit.evaluation.distributed.scheduler import Scheduler
from robustkit.evaluation.prepare import looked_at
from robustkit.evaluation.watcher import Watcher
from robustkit.models.load import Subject, load_model
from robustkit.models.readiness import private_copy
from robustkit.models.regression import for_targets
from robustkit.models.trust import trusted, trusting
from robustkit.record.provenance import weights_digest
from robustkit.record.record import Record
from robustkit.verify.diagnostics.probe import Diagnosis, recheck

Found = list[tuple[Path, Record]]
_OneModel = Callable[[Plan, Subject, Watcher, Diagnosis | None], Found]


@contextlib.contextmanager
def workers(plan: Plan, watcher: Watcher) -> Iterator[Scheduler | None]:
    """Start the workers for the models of a plan; None where they come one after the other."""
    if plan.at_once == 1:
        yield None
        return
    with several.start(plan.at_once, str(pick_devices(plan.request.device)[0]), watcher) as found:
        yield found


def evaluate_all(
    plan: Plan,
    scheduler: Scheduler,
    looks: Mapping[str, Diagnosis | None],
    screen: Screen,
    evaluate: _OneModel,
    found: dict[str, Found],
) -> dict[str, RobustkitError]:
    """Evaluate the models, in the order of `looks`; return failures by model.

    What is None among the looks is looked at by its worker.
    Models that a worker could not build as they are here are in neither.

    Args:
        found: gets the records of each model as it ends.
    """

    def ended(name: str, records: Any) -> None:
        if records is not None:  # else it is evaluated here, on the same lane
            found[name] = records
            screen.end(name, finished_row(records))

    subjects = {subject.name: subject for subject in plan.subjects}
    sample = looked_at(plan.settings, torch.device("cpu"))
    evaluations = [
        Evaluation(
            subject.name,
            _OneOfSeveral(
                plan.request, plan.settings.budget, plan.grid, plan.config, plan.out,
                subject.name, subject.source,
                weights_digest(subject.model)[0] if _is_module(subject) else None,
                sample, look and look.to("cpu"), trusted(), evaluate,
            ),
        )
        for subject, look in ((subjects[name], look) for name, look in looks.items())
    ]  # fmt: skip
    return several.carry_out(scheduler, evaluations, screen.lane, ended)


def _is_module(subject: Subject) -> bool:
    return isinstance(subject.model, torch.nn.Module)


@dataclass(frozen=True)
class _OneOfSeveral:
    """One model of a plan, as a worker gets it: it opens the data and loads the model itself.

    Attributes:
        source: what the model is loaded by.
        weights: digest of the model's weights, as the driver sees them; None: a function.
        sample: some of the points, as the driver sees them.
        diagnosis: what the driver found; None: the worker looks at the model itself.
    """

    request: Request
    budget: StoppingRule | None
    grid: Sequence[Threat]
    config: dict[str, Any]
    out: Path
    name: str
    source: str
    weights: str | None
    sample: Images
    diagnosis: Diagnosis | None
    trusted: Sequence[Path]
    evaluate: _OneModel

    def __call__(self, watcher: Watcher) -> Found | None:
        """Evaluate it; None: it is not what the driver looked at (random weights, random data)."""
        with trusting(self.trusted):
            plan, device = self._plan(), pick_devices(self.request.device)[0]
            (subject,) = plan.subjects
            if not self._is_the_same(plan, subject, device):
                return None
            look = self.diagnosis and self.diagnosis.to(str(device))
            return self.evaluate(plan, subject, watcher, look)

    def _plan(self) -> Plan:
        request = replace(self.request, workers=None)
        data = open_dataset(request.data, root=request.data_root, split="test", box=request.box)
        subject = load_model(
            self.source, data=data, weights=request.weights, mean=request.mean, std=request.std
        )._replace(name=self.name, text=self.source)
        settings = replace(settings_for(request, data, self.grid), budget=self.budget)
        judged = for_targets(subject.model, data, settings.threat.criterion)
        subject = subject._replace(model=judged)
        return Plan(self.request, settings, tuple(self.grid), (subject,), self.config, self.out)

    def _is_the_same(self, plan: Plan, subject: Subject, device: torch.device) -> bool:
        sample = looked_at(plan.settings_of(subject), torch.device("cpu"))
        if not torch.equal(sample, self.sample):
            return False
        if _is_module(subject) and weights_digest(subject.model)[0] != self.weights:
            return False
        if self.diagnosis is None:
            return True
        private = private_copy(subject.model, device, subject.name)
        return not recheck(private, self.diagnosis.to(str(device)))
