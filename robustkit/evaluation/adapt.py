"""From a first look at a model to the line-up against it, for suites that act on what is found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from robustkit.core.threat import Threat
from robustkit.core.types import Images, Model
from robustkit.errors import UsageError
from robustkit.evaluation.prepare import Prepared
from robustkit.evaluation.resume import source_digest
from robustkit.evaluation.stages.replay import peek
from robustkit.models.load import load_model
from robustkit.models.surrogates.distillation import FILE, distill
from robustkit.models.surrogates.resolve import SAME_DECISIONS, WithSurrogates, declared, screened
from robustkit.registry import attacks, defenses, suites
from robustkit.search.eot import draws_needed
from robustkit.search.findings import Findings
from robustkit.search.protocol import surrogate_of
from robustkit.search.suites import LineUp, line_up
from robustkit.verify.diagnostics.probe import look

CALLS_MODELS = True  # an error raised below is the model's; see `robustkit.core.attribution`

STUDENT = "student"
_SAMPLE, _TAUGHT = 16, 2048  # points that are looked at, and that a student learns from


def adapt_line_up(
    ground: Prepared, suite: str, threat: Threat, folder: Path, *, fresh: bool = False
) -> tuple[Prepared, LineUp]:
    """Return the line-up of `suite` against the model, and the ground with what it needs.

    What was found when a run in `folder` began decides when it goes on: the line-up of a run never
    changes, though a randomized model may be found otherwise at a second look.

    Raises:
        UsageError: as `line_up`.
        RobustkitError: when the student cannot be stored.
    """
    x = _points(ground, _SAMPLE)
    lent = _lenders(ground, suite, x)
    findings = None if fresh else _kept(folder / "ledger.sqlite")
    if findings is None:
        ground, findings = _find(ground, tuple(lent), x, threat.box)
    else:
        lent = {name: model for name, model in lent.items() if name in findings.lent}
    # The student is made once it is known that it is asked for.
    listed = line_up(suite, (), threat, None, findings)
    wanted = {surrogate_of(attacks.build(spec)) for spec in listed.specs}
    if STUDENT in wanted:
        taught = _points(ground, _TAUGHT)
        if fresh:  # of a teacher that cannot be told from this one: a function has no weights
            (folder / FILE).unlink(missing_ok=True)
        teacher = f"{ground.weights.digest}/{source_digest(ground.name)}"
        student = distill(ground.model, taught, threat, ground.seed, folder, teacher=teacher)
        ground = ground._replace(health=ground.health.after(student.forwards, 0))
        lent[STUDENT] = student
    lent = {name: model for name, model in lent.items() if name in wanted}
    if lent:
        searched = ground.tuned._replace(model=WithSurrogates(ground.tuned.model, lent))
        ground = ground._replace(tuned=searched)
    return ground, line_up(suite, (), threat, WithSurrogates(ground.model, lent), findings)


def _kept(path: Path) -> Findings | None:
    """Return what was found when the run that a ledger holds began."""
    if not path.is_file():
        return None
    try:
        rows = peek(path, "SELECT value FROM meta WHERE key = 'findings'")
    except UsageError:  # whoever opens it next says what is wrong
        return None
    return Findings.read(json.loads(rows[0][0])) if rows else None


def _find(
    ground: Prepared, lent: tuple[str, ...], x: Images, box: tuple[float, float]
) -> tuple[Prepared, Findings]:
    offer, eot = screened(ground.model, x), 1
    forwards, backwards, noisy = offer.forwards, offer.backwards, dict[str, Model]()
    if ground.health.randomized:
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            known = {**declared(ground.model), **offer.models}
            noisy = {name: model for name, model in known.items() if _random(model, x)}
            torch.manual_seed(ground.seed)  # the line-up of a run is a function of its seed
            eot, *spent = draws_needed([ground.model, *noisy.values()], x)
        forwards += spent[0] + 2 * len(known) * len(x)
        backwards += spent[1]
    flags = tuple(flag.name for flag in ground.health.flags)
    true, *spent = _true(ground, offer.models, flags, x, box)
    health = ground.health.after(forwards + len(lent) * len(x) + spent[0], backwards + spent[1])
    found = Findings(flags, tuple(offer.models), lent, eot, tuple(noisy), true)
    return ground._replace(health=health), found


def _true(
    ground: Prepared,
    offered: Mapping[str, Model],
    flags: Sequence[str],
    x: Images,
    box: tuple[float, float],
) -> tuple[tuple[str, ...], int, int]:
    """Name the stand-ins with the decisions of the model whose own gradient stands the probes.

    Outputs that change by jumps agree with no gradient: there it is enough that following the
    stand-in out to the edge of the box changes their class.

    Returns:
        The names, and the forward and backward passes of one input that were spent.
    """
    if not flags:
        return (), 0, 0
    found, forwards, backwards = list[str](), 0, 0
    jumps = bool({"piecewise_constant", "one_hot"} & set(flags))
    for name in (n for n in SAME_DECISIONS if n in offered):
        looked = look(offered[name], ground.name, x, box)
        forwards, backwards = forwards + looked.forwards, backwards + looked.backwards
        wrong = {"no_gradient", "huge_eps"} if jumps else {"no_gradient", "gradient_mismatch"}
        if not wrong & looked.flags:
            found.append(name)
    return tuple(found), forwards, backwards


def _random(model: Model, x: Images) -> bool:
    """Tell whether two passes differ."""
    with torch.no_grad():
        first, second = model(x), model(x)
    return not torch.allclose(first, second, rtol=1e-4, atol=1e-5)


def _points(ground: Prepared, most: int) -> Images:
    """Read up to so many of the points, evenly spaced."""
    chosen: np.ndarray[tuple[int, ...], np.dtype[np.int64]] = ground.points
    chosen = chosen[:: max(1, len(chosen) // most)][:most]
    return ground.data.fetch(chosen)[0].to(ground.device)


def _lenders(ground: Prepared, suite: str, x: Images) -> dict[str, Model]:
    """Load the models that the suite names, if shipped for the data; not the model itself."""
    found: dict[str, Model] = {}
    listed: Sequence[str] = getattr(suites.build(suite), "lenders", list)()
    for name in listed:
        try:
            model = load_model(name, data=ground.data).model
        except UsageError:
            if name not in {entry.name for entry in defenses.entries()}:
                raise
            continue  # none is shipped for this data
        model = model.to(ground.device).requires_grad_(False)
        with torch.no_grad():
            theirs, own = model(x).float(), ground.model(x).float()
        same = theirs.shape == own.shape and torch.allclose(theirs, own, rtol=1e-3, atol=1e-3)
        if theirs.shape[1] >= own.shape[1] and not same:
            found[name] = model
    return found
