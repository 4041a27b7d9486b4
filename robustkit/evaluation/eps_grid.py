"""The whole security curve in one run: many eps at little more than the cost of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from robustkit.core import arguments as argument
from robustkit.core.attribution import outliving_exits
from robustkit.core.criterion import UNTARGETED, Criterion
from robustkit.core.spec import Spec
from robustkit.core.threat import Threat
from robustkit.data.sampling import PROPORTIONAL, Sample
from robustkit.errors import UsageError
from robustkit.evaluation.carry_over import Carried, collect
from robustkit.evaluation.distributed.messages import Named
from robustkit.evaluation.distributed.scheduler import Scheduler
from robustkit.evaluation.distributed.setup import set_up, start_workers
from robustkit.evaluation.execute import execute
from robustkit.evaluation.identity import folder_before_line_up
from robustkit.evaluation.prepare import Prepared, prepare, warn_of_eps
from robustkit.evaluation.progress import listening
from robustkit.evaluation.radii import bisect
from robustkit.evaluation.settings import GivenData, GivenModel, Settings, ask
from robustkit.evaluation.sources import with_sources
from robustkit.evaluation.watcher import Relay, Watcher, tell
from robustkit.models.normalization import Numbers
from robustkit.models.trust import trusting
from robustkit.models.tuning import AUTOMATIC, Tuning
from robustkit.record.record import Record
from robustkit.registry import attacks as known
from robustkit.search.suites import LineUp, line_up
from robustkit.verify.diagnostics.probe import Diagnosis

# The suite that goes ahead in a long grid: it tells at once how far away the broken points are. In
# a short one it costs more than it saves.
_SCOUT, _LONG = "scout", 8


def evaluate_grid(
    model: GivenModel,
    data: GivenData,
    threat: Threat | str,
    grid: Sequence[float],
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
    seed: int = 0,
    device: str = "auto",
    distributed: str | None = None,
    workers: int | None = None,
    named: Named | None = None,
    batch_size: int | None = None,
    tuning: Tuning = AUTOMATIC,
    fresh: bool = False,
    save_adversarial: bool | None = None,
    arguments: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    trust_code: Collection[Path | str] = (),
    watcher: Watcher | None = None,
    progress: bool | None = None,
) -> list[Record]:
    """Evaluate one model at every eps of `grid`; return the records from the smallest eps up.

    The line-up runs at the largest eps first, then downward. At each eps it is given only the
    points that were broken at the next larger one and are not yet known to be broken here: a point
    is found robust once. The attacks that broke most of them there come first, those without
    gradients last. A point broken at some distance is broken at every larger eps; a point with a
    certificate has one at every smaller eps; a point that was robust is *carried* as robust to
    every smaller eps without another attack (`record.points.carried`). The curve never rises with
    eps. From 8 eps on, a short minimum-norm search goes ahead on the points that the largest eps
    broke.

    With `certify`, `radii.json` in `folder` holds for every point the radius within which it is
    proved robust, to an eighth of a step of the grid, and the distance of the nearest adversarial
    input; see `robustkit.record.radii`.

    Every eps has a folder of its own in `folder`, with its record and ledger; a record counts the
    passes that its eps added. The run resumes where it was. Other arguments are those of
    `evaluate`; of `threat` the norm and the box count ("linf" alone will do).

    Raises:
        UsageError, RobustkitError: as `evaluate`; also for a grid that is empty, or holds an eps
            twice or one that is not positive.
    """
    norm = f"{threat}:1" if isinstance(threat, str) and ":" not in threat else threat
    with trusting(trust_code):
        settings = ask(
            model, data, norm, criterion=criterion, name=name, mean=mean, std=std,
            arguments=arguments, notes=notes, folder=folder, suite=suite, attacks=attacks,
            certify=certify, attack_certified=attack_certified, n=n, sample=sample, seed=seed,
            device=device, distributed=distributed, workers=workers, named=named,
            batch_size=batch_size, tuning=tuning, fresh=fresh, save_adversarial=save_adversarial,
        )  # fmt: skip
        return evaluate_grid_settings(
            settings, descending(settings.threat, grid), watcher, progress
        )


@outliving_exits()
def evaluate_grid_settings(
    settings: Settings,
    radii: Sequence[Threat],
    watcher: Watcher | None = None,
    progress: bool | None = None,
    *,
    diagnosis: Diagnosis | None = None,
) -> list[Record]:
    """Evaluate as `evaluate_grid` does, from settings.

    Args:
        radii: the threat models, the largest first; see `descending`.
        diagnosis: of the model, when `robustkit.evaluation.prepare.first_look` was called before.

    Raises:
        UsageError, RobustkitError: as `evaluate_grid`.
    """
    runs = [replace(settings, threat=radius) for radius in radii]
    line_ups = [run.line_up() for run in runs]
    refuse_audit(line_ups[0], settings.suite)
    settings.refuse_beside("a grid of eps (--eps-grid)")
    setup = set_up(settings.device, settings.distributed, settings.workers)
    prepared = with_sources(settings, prepare(settings, diagnosis), line_ups[0])
    folder = settings.folder or folder_before_line_up(settings, prepared, radii, line_ups[0])
    runs = [replace(run, folder=folder_of(folder, run.threat)) for run in runs]
    with (
        listening(watcher, progress) as heard,
        start_workers(setup, settings, prepared, heard) as scheduler,
    ):
        records = _descend(runs, prepared, line_ups, _once(heard), scheduler)
        bisect(settings, prepared, records, Path(folder), heard)
        return records


def _descend(
    runs: Sequence[Settings],
    prepared: Prepared,
    line_ups: Sequence[LineUp],
    watcher: Watcher,
    scheduler: Scheduler | None,
) -> list[Record]:
    """Go from the largest eps to the smallest; return the records from the smallest up."""
    warn_of_eps(runs[0].threat, runs[0].data, watcher)
    carried, records = Carried.nothing(tuple(run.threat.eps for run in runs)), list[Record]()
    for number, (run, line) in enumerate(zip(runs, line_ups, strict=True)):
        scouts = _scouts(runs, prepared, line_ups) if number == 1 else None
        here = _promising(line, records[-1], run.threat) if records else line
        if scouts is not None:
            here = here._replace(
                specs=[*scouts.specs, *here.specs], searches=[*scouts.searches, *here.searches],
                scouts=len(scouts.specs),
            )  # fmt: skip
        here = here._replace(audited=len(here.specs))
        records.append(execute(run, prepared, here, watcher, scheduler=scheduler, carried=carried))
        if number + 1 < len(runs):
            assert run.folder is not None
            smaller = runs[number + 1].threat
            carried = collect(carried.grid, run.folder, here.specs, run.threat, smaller)
    return records[::-1]


def _once(watcher: Watcher) -> Watcher:
    """Return a watcher that passes on what it hears, but no note twice: most hold at every eps."""
    told = set[Any]()

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "note" or arguments not in told:
            tell(watcher, event, arguments)
        if event == "note":
            told.add(arguments)

    return Relay(hear)


def descending(threat: Threat, grid: Sequence[float]) -> list[Threat]:
    """Return the threat models of a grid, the largest first.

    Raises:
        UsageError: for a grid that is empty, holds an eps twice, or one that is not positive.
    """
    given = [argument.real("grid", eps) for eps in argument.several("grid", grid)]
    if not given:
        raise UsageError("expected at least one eps in the grid, got none.")
    radii = [replace(threat, eps=eps) for eps in sorted(given, reverse=True)]
    names = [str(radius) for radius in radii]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"the grid holds {name} twice (to six digits).")
    return radii


def folder_of(folder: Path | str, threat: Threat) -> Path:
    """Return where the evidence of one eps lies in the folder of the run."""
    plain = replace(threat, criterion=UNTARGETED)  # all in this folder have the same
    return Path(folder) / str(plain).replace(":", "-")


def _promising(line: LineUp, larger: Record, threat: Threat) -> LineUp:
    """Put first the attacks that broke most of the points that are open at the smaller `threat`.

    Which points end robust does not depend on the order; the cost does. Attacks without gradients
    stay behind those with, which is how masked gradients are noticed.
    """
    limit, points = threat.limit(prod(larger.data.shape)), larger.points
    pairs = zip(points.attack, points.distance, strict=True)
    counts = Counter(attack for attack, length in pairs if length is not None and length > limit)
    blind = {spec: not known.entry(spec.name).facts["white_box"] for spec in line.specs}
    pairs_of = zip(line.specs, line.searches, strict=True)
    order = sorted(pairs_of, key=lambda pair: (blind[pair[0]], -counts[str(pair[0])]))
    return line._replace(specs=[spec for spec, _ in order], searches=[found for _, found in order])


def refuse_audit(line: LineUp, suite: str | None) -> None:
    """Refuse a suite whose audit speaks of one eps alone (a UsageError)."""
    if line.audit:
        raise UsageError(
            f"the suite {suite} audits its survivors at one eps, but the grid carries survivors "
            "from eps to eps. Use quick or parity with --eps-grid."
        )


def _scouts(
    runs: Sequence[Settings], prepared: Prepared, line_ups: Sequence[LineUp]
) -> LineUp | None:
    """Return the searches that go ahead at the second eps; None in a short grid."""
    if len(runs) < _LONG:
        return None
    listed = {spec for line in line_ups for spec in line.specs}
    scouts = line_up(_SCOUT, (), runs[0].threat, prepared.model)
    fresh = [
        pair for pair in zip(scouts.specs, scouts.searches, strict=True) if pair[0] not in listed
    ]
    return scouts._replace(specs=[s for s, _ in fresh], searches=[search for _, search in fresh])
