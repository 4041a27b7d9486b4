"""The one function that walks the line: data → defense → certify → search → verify → record."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from robustkit.core.attribution import blaming, outliving_exits
from robustkit.core.criterion import Criterion
from robustkit.core.spec import Spec
from robustkit.core.threat import Threat
from robustkit.data.sampling import PROPORTIONAL, Sample
from robustkit.evaluation.adapt import adapt_line_up
from robustkit.evaluation.budget import Budget, StoppingRule
from robustkit.evaluation.distributed.messages import Named
from robustkit.evaluation.distributed.setup import set_up, start_workers
from robustkit.evaluation.execute import execute
from robustkit.evaluation.identity import folder_before_line_up
from robustkit.evaluation.prepare import prepare, warn_of_eps
from robustkit.evaluation.progress import listening
from robustkit.evaluation.settings import GivenData, GivenModel, Settings, ask
from robustkit.evaluation.sources import with_sources
from robustkit.evaluation.watcher import Watcher
from robustkit.models.normalization import Numbers
from robustkit.models.trust import trusting
from robustkit.models.tuning import AUTOMATIC, Tuning
from robustkit.record.record import Record
from robustkit.search.suites import acts_on_findings
from robustkit.verify.diagnostics.probe import Diagnosis


def evaluate(
    model: GivenModel,
    data: GivenData,
    threat: Threat | str,
    *,
    criterion: Criterion | str | None = None,
    name: str | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    folder: Path | str | None = None,
    suite: str | None = None,
    attacks: Sequence[str | Spec] = (),
    certify: str | None = None,
    attack_certified: bool = False,
    n: int | None = None,
    sample: Sample = PROPORTIONAL,
    points: Sequence[int] | None = None,
    replay: Path | str | None = None,
    budget: Budget | StoppingRule | None = None,
    seed: int = 0,
    device: str = "auto",
    distributed: str | None = None,
    workers: int | None = None,
    named: Named | None = None,
    batch_size: int | None = None,
    tuning: Tuning = AUTOMATIC,
    fresh: bool = False,
    save_adversarial: bool | None = None,
    save_proofs: bool = False,
    minimum_norm: bool = False,
    arguments: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    trust_code: Collection[Path | str] = (),
    watcher: Watcher | None = None,
    progress: bool | None = None,
) -> Record:
    """Evaluate one model and leave `ledger.sqlite` and `record.json` in `folder`.

    A folder that holds part of the same evaluation is resumed, to the verdicts of an uninterrupted
    run. The model itself is never touched: all passes go through a private copy.

    Args:
        model: maps [b, c, h, w] in [0, 1] to logits [b, k], each row by itself; or a name.
        data: (x, y), tensors or arrays; a Dataset or DataLoader of PyTorch; or a name ("bundled").
        threat, criterion: "linf:8/255", in units of the inputs; what breaks a point: "targeted:3".
        name, mean, std: in tables; normalize the inputs inside the model, per channel or for all.
        folder: by default one in robustkit-runs, always the same for the same evaluation.
        suite, attacks: a named line-up, or specs such as "apgd(steps=50)"; "quick" by default.
        trust_code: files that may run code when they are loaded; see `robustkit.load_model`.
        certify: a certificate to try first: "quick", "ibp", "crown", "alpha-crown", "smoothing",
            "auto", or the model's own. Proved points get no attack without `attack_certified`.
        n, points: a fixed, seeded sample of this size; or exactly these positions in the data.
        sample: "proportional": each class has its share of the data; "balanced": all the same.
        replay: folder of an earlier run on the same data, whose adversarial inputs come first.
        budget: may end the run early; the record then speaks of the points that are finished.
        device: "auto", "cpu", "cuda", "cuda:1", or several: "cuda:0,cuda:1", a process on each.
        distributed, workers, named: "ray" or "ray:ADDRESS"; how many, and how they load the model.
        batch_size: points in flight at once; chosen by device when not given.
        seed: names the random streams of attacks, the sample of `n` and the order under a budget.
        tuning: how the model is made fast for searches; verdicts are always float32.
        fresh: discard what the folder holds of an earlier run, and start over.
        save_adversarial, save_proofs: store what was found (by default up to 1 GiB), and proofs.
        minimum_norm: seek each point's closest adversarial input too (`record.points.nearest`).
        arguments, notes: for the record: what the user typed, and what its readers must know.
        watcher, progress: hears what the run does; bars, by default in a notebook alone.

    Raises:
        UsageError: for what cannot be evaluated, and a folder in use or with another evaluation.
        RobustkitError: when the run cannot finish (what it found is kept) or breaks a certificate.
    """
    with trusting(trust_code):
        asked = ask(
            model, data, threat, criterion=criterion, name=name, mean=mean, std=std, folder=folder,
            arguments=arguments, notes=notes, n=n, suite=suite, attacks=attacks, certify=certify,
            attack_certified=attack_certified, sample=sample, points=points, replay=replay,
            budget=budget, seed=seed, device=device, distributed=distributed, workers=workers,
            named=named, fresh=fresh, batch_size=batch_size, tuning=tuning,
            minimum_norm=minimum_norm, save_adversarial=save_adversarial, save_proofs=save_proofs,
        )  # fmt: skip
        return evaluate_settings(asked, watcher, progress)


@outliving_exits()
def evaluate_settings(
    settings: Settings,
    watcher: Watcher | None = None,
    progress: bool | None = None,
    *,
    diagnosis: Diagnosis | None = None,
) -> Record:
    """Evaluate as `evaluate` does, from settings.

    Args:
        diagnosis: of the model, when `robustkit.evaluation.prepare.first_look` was called before.

    Raises:
        UsageError, RobustkitError: as `evaluate`.
    """
    line = settings.line_up()
    setup = set_up(settings.device, settings.distributed, settings.workers)
    prepared = with_sources(settings, prepare(settings, diagnosis), line)
    if acts_on_findings(settings.suite):
        folder = settings.folder
        folder = folder or folder_before_line_up(settings, prepared, [settings.threat], line)
        settings = replace(settings, folder=folder)
        with blaming(settings.name):
            prepared, line = adapt_line_up(settings, prepared)
    with (
        listening(watcher, progress) as heard,
        start_workers(setup, settings, prepared, heard) as scheduler,
    ):
        if not settings.minimum_norm:
            warn_of_eps(settings.threat, settings.data, heard)
        return execute(settings, prepared, line, heard, scheduler=scheduler)
