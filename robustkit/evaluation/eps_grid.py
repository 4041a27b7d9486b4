"""The whole security curve in one run: many eps at little more than the cost of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from robustkit.core.spec import Spec
from robustkit.core.threat import Threat
from robustkit.errors import UsageError
from robustkit.evaluation.carry_over import Carried, collect
from robustkit.evaluation.distributed.messages import Named
from robustkit.evaluation.distributed.scheduler import Scheduler
from robustkit.evaluation.distributed.setup import set_up, staff
from robustkit.evaluation.evaluate import prepare, warn_of_eps
from robustkit.evaluation.execute import Wish, conduct, default_folder_of
from robustkit.evaluation.prepare import Prepared
from robustkit.evaluation.progress import listening
from robustkit.evaluation.request import GivenData, GivenModel, ask
from robustkit.evaluation.watcher import Watcher
from robustkit.models.tuning import AUTOMATIC, Tuning
from robustkit.record.record import Record
from robustkit.registry import attacks as known
from robustkit.search.suites import LineUp, line_up

# The suite that goes ahead in a long grid: where the points that fell lie, it tells at once. In a
# short one it costs more than it saves.
_SCOUT, _LONG = "scout", 8


def evaluate_grid(
    model: GivenModel,
    *,
    name: str | None = None,
    data: GivenData,
    threat: Threat | str,
    grid: Sequence[float],
    folder: Path | str | None = None,
    suite: str | None = None,
    attacks: Sequence[str | Spec] = (),
    certify: str | None = None,
    attack_certified: bool = False,
    n: int | None = None,
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
    watcher: Watcher | None = None,
    progress: bool | None = None,
) -> list[Record]:
    """Evaluate one model at every eps of `grid`; return the records from the smallest eps up.

    The line-up runs at the largest eps first, then downward. At each eps it is given only the
    points that fell to the next larger one and are not yet known to fall here: a point costs one
    survival. The attacks that took most of them there come first, those without gradients last.
    A point that fell at some distance has fallen at every larger eps; a point with a certificate
    has one at every smaller eps; a point that stood is *carried* as standing to every smaller eps
    without another attack (`record.points.carried`). The curve never rises with eps. From 8 eps
    on, a short minimum-norm search goes ahead on the points that the largest eps broke.

    Every eps has a folder of its own in `folder`, with its record and ledger; a record counts the
    passes that its eps added. The run resumes where it was. Other arguments are those of
    `evaluate`; of `threat` the norm and the box count ("linf" alone will do).

    Raises:
        UsageError, RobustkitError: as `evaluate`; also for a grid that is empty, or holds an eps
            twice or one that is not positive.
    """
    norm = f"{threat}:1" if isinstance(threat, str) and ":" not in threat else threat
    asked = ask(model, name, data, norm, arguments, notes)
    radii = descending(asked.threat, grid)
    line_ups = [line_up(suite, attacks, radius, asked.model) for radius in radii]
    refuse_audit(line_ups[0], suite)
    setup = set_up(device, distributed, workers)
    ground = prepare(asked.model, asked.name, asked.data, n, seed, device,
                    tuning=tuning, box=asked.threat.box)  # fmt: skip
    wish = Wish(suite, certify, attack_certified, batch_size, fresh, save_adversarial,
                asked.arguments, asked.notes)  # fmt: skip
    place = (
        Path(folder) if folder is not None else default_folder_of(ground, radii, line_ups[0], wish)
    )
    with (
        listening(watcher, progress) as heard,
        staff(setup, ground, named, batch_size, tuning, heard) as crew,
    ):
        return _descend(ground, radii, line_ups, place, wish, _Once(heard), crew)


def _descend(
    ground: Prepared,
    radii: Sequence[Threat],
    line_ups: Sequence[LineUp],
    folder: Path,
    wish: Wish,
    watcher: Watcher,
    crew: Scheduler | None,
) -> list[Record]:
    """Go from the largest eps to the smallest; return the records from the smallest up."""
    warn_of_eps(radii[0], ground.data, watcher)
    scouts = _scouts(radii, ground.model, line_ups)
    carried, records = Carried.nothing(tuple(radius.eps for radius in radii)), list[Record]()
    for number, (radius, line) in enumerate(zip(radii, line_ups, strict=True)):
        ahead = scouts if number == 1 else []
        order = _promising(line.specs, records[-1], radius) if records else line.specs
        specs, place = [*ahead, *order], folder_of(folder, radius)
        here = LineUp(specs, len(specs), None)
        records.append(
            conduct(ground, here, radius, place, wish, watcher, scouts=len(ahead),
                    carried=carried, crew=crew)
        )  # fmt: skip
        if radius is not radii[-1]:
            carried = collect(carried.grid, place, specs, radius, radii[number + 1])
    return records[::-1]


class _Once(Watcher):
    """Passes on what it hears, but no note twice: most hold at every eps alike."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher, self._told = watcher, set[str]()

    def model(self, name: str, points: int) -> None:
        """Pass on."""
        self._watcher.model(name, points)

    def stage(self, name: str, tasks: int) -> None:
        """Pass on."""
        self._watcher.stage(name, tasks)

    def advance(self, done: int, robust: int, points: int) -> None:
        """Pass on."""
        self._watcher.advance(done, robust, points)

    def kept(self, path: Path) -> None:
        """Pass on."""
        self._watcher.kept(path)

    def note(self, message: str) -> None:
        """Pass on what is new."""
        if message not in self._told:
            self._told.add(message)
            self._watcher.note(message)


def descending(threat: Threat, grid: Sequence[float]) -> list[Threat]:
    """Return the threat models of a grid, the largest first.

    Raises:
        UsageError: for a grid that is empty, holds an eps twice, or one that is not positive.
    """
    if not grid:
        raise UsageError("expected at least one eps in the grid, got none.")
    radii = [replace(threat, eps=float(eps)) for eps in sorted(grid, reverse=True)]
    names = [str(radius) for radius in radii]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"the grid holds {name} twice (to six digits).")
    return radii


def folder_of(folder: Path | str, threat: Threat) -> Path:
    """Return where the evidence of one eps lies in the folder of the run."""
    return Path(folder) / str(threat).replace(":", "-")


def _promising(specs: Sequence[Spec], larger: Record, threat: Threat) -> list[Spec]:
    """Put first the attacks that took most of the points that are open at the smaller `threat`.

    What is left standing does not depend on the order; the cost does. Attacks without gradients
    stay behind those with, which is how masked gradients are noticed.
    """
    limit, points = threat.limit(prod(larger.data.shape)), larger.points
    pairs = zip(points.attack, points.distance, strict=True)
    taken = Counter(attack for attack, length in pairs if length is not None and length > limit)
    blind = {spec: not known.entry(spec.name).facts["white_box"] for spec in specs}
    return sorted(specs, key=lambda spec: (blind[spec], -taken[str(spec)]))


def refuse_audit(line: LineUp, suite: str | None) -> None:
    """Refuse a suite whose audit speaks of one eps alone (a UsageError)."""
    if line.audit:
        raise UsageError(
            f"the suite {suite} audits its survivors at one eps, but the grid carries survivors "
            "from eps to eps. Use quick or parity with --eps-grid."
        )


def _scouts(radii: Sequence[Threat], model: Any, line_ups: Sequence[LineUp]) -> list[Spec]:
    """Return the searches that go ahead at the second eps."""
    if len(radii) < _LONG:
        return []
    listed = {spec for line in line_ups for spec in line.specs}
    return [spec for spec in line_up(_SCOUT, (), radii[0], model).specs if spec not in listed]
