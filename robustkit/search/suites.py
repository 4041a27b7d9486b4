"""Named line-ups of attacks. The packs register them; here a name or a list becomes specs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch

from robustkit.core.finite import FiniteThreat
from robustkit.core.named import NamedThreat
from robustkit.core.spec import Spec
from robustkit.core.threat import Threat
from robustkit.errors import UsageError
from robustkit.models.scores import Scores, without_gradients
from robustkit.models.surrogates.resolve import SOURCE, WithSurrogates, declared, source
from robustkit.registry import attacks, suites
from robustkit.search.audit import Audit
from robustkit.search.external import ExternalAttack
from robustkit.search.findings import Findings, Remedies
from robustkit.search.protocol import aims, minimizes, suits, surrogate_of
from robustkit.search.tasks import fresh_tasks


class Suite(Protocol):
    """A line-up with its budgets.

    One that leaves out attacks for speed may have a method `audit(threat)` too, which returns how
    to audit what it does not break (`robustkit.search.audit`).

    One that acts on what is found about a model has a method `remedies(threat, surrogates,
    findings)`, which returns what to add (`robustkit.search.findings`), and may have
    `transfer_sources()`: names of registered models that may serve as transfer sources.

    For a model without gradients the attacks that follow the model's own are left out; where none
    is left, those of a method `without_gradients(threat)` take their place, or of the suite scores.
    """

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """List attack specs in order; each is given the points that the ones before did not break.

        Args:
            surrogates: the surrogates that the model declares.
        """
        ...


class LineUp(NamedTuple):
    """The attacks of a run in order; those from `audited` on are the audit's.

    The last `screened` before the audit's run on a sample of the survivors, and on others as long
    as they break any; so do the last `reserve` of all, where attacks of their kind, with gradients
    or without, broke points late.

    Attributes:
        searches: built from `specs`, in the same order; a spec is built here and nowhere else.
        findings: what the attacks were chosen by, None where they do not depend on the model.
        answers: flags that the attacks answer, if the audit finds nothing more.
        scouts: so many attacks use up their budget and keep the closest success.
    """

    specs: list[Spec]
    searches: list[Any]
    audited: int
    audit: Audit | None
    reserve: int = 0
    findings: Findings | None = None
    answers: Sequence[str] = ()
    scouts: int = 0
    screened: int = 0

    def ranked(self, threat: Threat, classes: int) -> int:
        """Return how many classes of a point to know: the predicted one, and those aimed at."""
        matter = threat.criterion.classes(classes)
        wanted = [aims(search, search.jobs(threat, matter)) for search in self.searches]
        return min(matter, 1 + max(wanted, default=0))

    @property
    def reserved(self) -> range:
        """The attacks of the reserve, by number."""
        return range(len(self.specs) - self.reserve, len(self.specs))

    @property
    def auditing(self) -> range:
        """The attacks of the audit, by number: those before the reserve."""
        return range(self.audited, self.reserved.start)

    def screens(self, number: int) -> bool:
        """Tell whether an attack runs on a sample first, and on others if it breaks any there."""
        return self.audited - self.screened <= number < self.audited or number in self.reserved

    def below(self, number: int) -> int | None:
        """Return the last screened attack before one that is the same with fewer draws."""
        own = _bare(self.specs[number])
        earlier = (n for n in range(number) if self.screens(n))
        return max((n for n in earlier if _bare(self.specs[n]) == own), default=None)


def default_suite(threat: Threat, *, minimum_norm: bool = False) -> str:
    """Name the suite of a request that names no attacks."""
    if isinstance(threat, NamedThreat):
        return threat.suite
    return "minimum_norm" if minimum_norm else "quick"


def line_up(
    suite: str | None,
    chosen: Sequence[Spec | str],
    threat: Threat,
    model: Any = None,
    findings: Findings | None = None,
) -> LineUp:
    """Return the attacks of a run on `model` in order, checked.

    Args:
        findings: what is known of the model, for a suite that acts on it.

    Raises:
        UsageError: when both or neither are given, or a name, option, norm or surrogate is not
            supported.
    """
    known = list(declared(model.model if isinstance(model, WithSurrogates) else model))
    if bool(suite) == bool(chosen):
        raise UsageError("expected either a suite or a list of attacks, got both or neither")
    built = suites.build(suite) if suite else None
    if isinstance(threat, NamedThreat) and built and not suits(built, threat):
        raise threat.refusal(f"the suite {suite}")
    line = _specs(built.attacks(threat, known) if built else chosen)
    audit: Audit | None = built.audit(threat) if built and hasattr(built, "audit") else None
    if (blind := without_gradients(model)) is not None:
        line, audit = _without_gradients(line, audit, built, threat, blind)
    audited, reserve = _specs(audit.attacks if audit else ()), list[Spec]()
    answers, screened = list[str](), list[Spec]()
    if findings is not None and built is not None and blind is None:
        more: Remedies = built.remedies(threat, known, findings)
        line, answers = _once([*line, *_specs(more.line)]), list(more.answers)
        screened = _once(_specs(more.screened), line)
        line += screened
        audited = _once(audited, line)
        reserve = _once(_specs(more.reserve), [*line, *audited])
        audit = audit and replace(audit, attacks=[str(spec) for spec in [*audited, *reserve]])
    specs = [*line, *audited, *reserve]
    searches = [attacks.build(spec) for spec in specs]
    for spec, search in zip(specs, searches, strict=True):
        if isinstance(threat, NamedThreat) and not suits(search, threat):
            raise threat.refusal(str(spec))
        if isinstance(search, ExternalAttack) and threat.criterion.suffix:
            raise UsageError(
                f"{spec} seeks any wrong decision, and --criterion {threat.criterion} asks for "
                "another: attacks of other libraries know no criterion. Take robustkit's own."
            )
        search.jobs(threat, 10)
        if model is not None and not surrogate_of(search).startswith(SOURCE):  # still to be loaded
            source(model, surrogate_of(search))
    repeated = {str(spec) for spec in specs if specs.count(spec) > 1}
    if repeated:
        raise UsageError(f"attack {sorted(repeated)[0]!r} is listed twice")
    return LineUp(specs, searches, len(line), audit, len(reserve), findings, tuple(answers),
                  screened=len(screened))  # fmt: skip


def _without_gradients(
    line: list[Spec], audit: Audit | None, suite: Any, threat: Threat, model: Scores
) -> tuple[list[Spec], Audit | None]:
    """Leave out what follows the gradient of a model that has none.

    Raises:
        UsageError: where such an attack was asked for by name.
    """
    useless = [spec for spec in line if _follows_model(attacks.build(spec))]
    if suite is None and useless:
        raise UsageError(
            f"{useless[0].name} follows gradients, and the model has scores alone. Use --suite "
            "scores, or attacks without gradients: square, spsa, rays (linf), hopskipjump (l2)."
        )
    if suite is None:
        return line, audit
    left = [spec for spec in line if spec not in useless]
    exact = _specs(model.attacks)
    if not left and not (exact and threat.norm == "l0"):  # for which there is no other
        own = getattr(suite, "without_gradients", None) or suites.build("scores").attacks
        left = _specs(own(threat))
    return _once([*exact, *left]), None


def _follows_model(search: Any) -> bool:
    return bool(getattr(search, "uses_gradient", False)) and not surrogate_of(search)


def rehearse(line: LineUp, threat: Threat, shape: Sequence[int], classes: int) -> None:
    """Let every attack start once on inputs [*shape], before any pass of any attack is spent.

    Raises:
        UsageError: of an attack that does not take inputs of this shape.
    """
    if isinstance(threat, FiniteThreat):  # an exact count has no start apart from its run
        return
    x = torch.full((1, *shape), (threat.lower + threat.upper) / 2)
    y = point = torch.zeros(1, dtype=torch.long)
    for spec, search in zip(line.specs, line.searches, strict=True):
        if isinstance(search, ExternalAttack):  # has no start apart from its run
            continue
        jobs = search.jobs(threat, classes)
        if jobs:
            ranked = torch.arange(min(classes, 1 + aims(search, jobs)))[None]
            tasks = fresh_tasks(x, y, ranked, point, jobs[:1], str(spec), seed=0)
            search.start(tasks, threat)


def acts_on_findings(suite: str | None) -> bool:
    """Tell whether the line-up of a suite depends on what is found about the model."""
    return suite is not None and hasattr(suites.build(suite), "remedies")


def _specs(texts: Sequence[Spec | str]) -> list[Spec]:
    return [Spec.parse(text) if isinstance(text, str) else text for text in texts]


def _bare(spec: Spec) -> Spec:
    """Return an attack without how many draws it averages."""
    return spec._replace(options=tuple(pair for pair in spec.options if pair[0] != "eot"))


def _once(specs: Sequence[Spec], before: Sequence[Spec] = ()) -> list[Spec]:
    """Drop what is listed before, here or there."""
    return [s for i, s in enumerate(specs) if s not in before and s not in specs[:i]]


def refuse_fixed(line: LineUp) -> None:
    """Refuse attacks that stay at one radius for a run that seeks the nearest success.

    Raises:
        UsageError: naming the attack, and those that would do.
    """
    for spec, search in zip(line.specs, line.searches, strict=True):
        if not minimizes(search):
            able = [entry.name for entry in attacks.entries() if minimizes(entry.target)]
            raise UsageError(
                f"{spec.name} searches at a fixed eps and cannot seek the nearest adversarial "
                f"input. Use the suite minimum_norm, or attacks of these: {', '.join(able)}."
            )
