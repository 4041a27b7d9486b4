"""From a first look at a model to the line-up against it, for suites that act on what is found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from robustkit.core import files
from robustkit.core.types import Images, Model
from robustkit.errors import UsageError
from robustkit.evaluation.identity import source_of
from robustkit.evaluation.prepare import Prepared
from robustkit.evaluation.settings import Settings
from robustkit.models.agreement import repeats, same_model
from robustkit.models.load import load_model
from robustkit.models.surrogates.distillation import FILE, distill
from robustkit.models.surrogates.resolve import SAME_DECISIONS, WithSurrogates, declared, screened
from robustkit.record.ledger_reader import open_readonly
from robustkit.registry import defenses, suites
from robustkit.search.eot import draws_needed
from robustkit.search.findings import Findings
from robustkit.search.protocol import surrogate_of
from robustkit.search.suites import LineUp, line_up
from robustkit.verify.diagnostics.probe import look

CALLS_MODELS = True  # an error raised below is the model's; see `robustkit.core.attribution`

STUDENT = "student"
_TAUGHT = 2048  # points that a student learns from


def adapt_line_up(settings: Settings, prepared: Prepared) -> tuple[Prepared, LineUp]:
    """Return the line-up of the suite against the model, and what it takes beside the model.

    What was found when a run in `settings.folder` began decides when it goes on: the line-up of a
    run never changes, though a randomized model may be found otherwise at a second look.

    Raises:
        UsageError: as `line_up`.
        RobustkitError: when the student cannot be stored.
    """
    assert settings.folder is not None
    suite, threat, folder = settings.suite, settings.threat, settings.folder
    x = prepared.sample()
    others = _transfer_sources(settings, prepared, x)
    findings = None if settings.fresh else _kept(folder / "ledger.sqlite")
    if findings is None:
        prepared, findings = _find(settings, prepared, tuple(others), x)
    else:
        others = {name: model for name, model in others.items() if name in findings.transfer}
    # The student is made once it is known that it is asked for.
    listed = line_up(suite, (), threat, None, findings)
    wanted = {surrogate_of(search) for search in listed.searches}
    if STUDENT in wanted:
        taught = prepared.sample(_TAUGHT)
        if settings.fresh:  # of a teacher that cannot be told from this one: it has no weights
            files.remove(folder / FILE)
        teacher = f"{prepared.weights.digest}/{source_of(settings)}"
        student = distill(prepared.model, taught, threat, settings.seed, folder, teacher=teacher)
        prepared = _spend(prepared, student.forwards, 0)
        others[STUDENT] = student
    others = {name: model for name, model in others.items() if name in wanted}
    if others:
        searched = prepared.tuned._replace(model=WithSurrogates(prepared.tuned.model, others))
        prepared = prepared._replace(tuned=searched)
    return prepared, line_up(suite, (), threat, WithSurrogates(prepared.model, others), findings)


def _kept(path: Path) -> Findings | None:
    """Return what was found when the run that a ledger holds began."""
    if not path.is_file():
        return None
    try:
        with open_readonly(path) as ledger:
            kept = ledger.identity("findings")
    except UsageError:  # whoever opens it next says what is wrong
        return None
    return Findings.read(kept) if kept else None


def _find(
    settings: Settings, prepared: Prepared, others: tuple[str, ...], x: Images
) -> tuple[Prepared, Findings]:
    """Look for built-in surrogates that lead somewhere, and for noise; see `Findings`."""
    screening, eot = screened(prepared.model, x), 1
    forwards, backwards, noisy = screening.forwards, screening.backwards, dict[str, Model]()
    if prepared.diagnosis.randomized:
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            known = {**declared(prepared.model), **screening.models}
            noisy = {name: model for name, model in known.items() if _random(model, x)}
            torch.manual_seed(settings.seed)  # the line-up of a run is a function of its seed
            eot, *spent = draws_needed([prepared.model, *noisy.values()], x)
        forwards += spent[0] + 2 * len(known) * len(x)
        backwards += spent[1]
    flags = tuple(flag.name for flag in prepared.diagnosis.flags)
    true, *spent = _true(settings, screening.models, flags, x)
    prepared = _spend(prepared, forwards + len(others) * len(x) + spent[0], backwards + spent[1])
    found = Findings(flags, tuple(screening.models), others, eot, tuple(noisy), true)
    return prepared, found


def _spend(prepared: Prepared, forwards: int, backwards: int) -> Prepared:
    """Return the same with more passes spent."""
    return prepared._replace(diagnosis=prepared.diagnosis.after(forwards, backwards))


def _true(
    settings: Settings, surrogates: Mapping[str, Model], flags: Sequence[str], x: Images
) -> tuple[tuple[str, ...], int, int]:
    """Name the surrogates with the decisions of the model whose own gradient passes the probes.

    Outputs that change by jumps agree with no gradient: there it is enough that following the
    surrogate out to the edge of the box changes their class.

    Returns:
        The names, and the forward and backward passes of one input that were spent.
    """
    if not flags:
        return (), 0, 0
    found, forwards, backwards = list[str](), 0, 0
    jumps = bool({"piecewise_constant", "one_hot"} & set(flags))
    for name in (n for n in SAME_DECISIONS if n in surrogates):
        probe = look(surrogates[name], settings.name, x, settings.threat.box)
        forwards, backwards = forwards + probe.forwards, backwards + probe.backwards
        wrong = {"no_gradient", "huge_eps"} if jumps else {"no_gradient", "gradient_mismatch"}
        if not wrong & probe.flags:
            found.append(name)
    return tuple(found), forwards, backwards


def _random(model: Model, x: Images) -> bool:
    """Tell whether two passes differ."""
    with torch.no_grad():
        first, second = model(x), model(x)
    return not repeats(first, second)


def _transfer_sources(settings: Settings, prepared: Prepared, x: Images) -> dict[str, Model]:
    """Load the models that the suite names, if shipped for the data; not the model itself."""
    found: dict[str, Model] = {}
    listed: Sequence[str] = getattr(suites.build(settings.suite or ""), "transfer_sources", list)()
    for name in listed:
        try:
            model = load_model(name, data=settings.data).model
        except UsageError:
            if name not in {entry.name for entry in defenses.entries()}:
                raise
            continue  # none is shipped for this data
        model = model.to(prepared.device).requires_grad_(False)
        with torch.no_grad():
            theirs, own = model(x).float(), prepared.model(x).float()
        if theirs.shape[1] >= own.shape[1] and not same_model(theirs, own):
            found[name] = model
    return found
