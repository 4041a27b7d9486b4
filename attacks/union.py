"""Unions of threat models: the adversary takes whichever it likes, and the worst counts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any, Self

import torch

from robustkit.core.finite import FiniteThreat
from robustkit.core.named import NamedThreat
from robustkit.core.spec import Spec
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Logits, Scalars
from robustkit.errors import UsageError
from robustkit.registry import attacks, read_threat, suites, threats
from robustkit.search.audit import Audit
from robustkit.search.external import ExternalAttack
from robustkit.search.protocol import Job, Reply, Tasks, enumerates, suits


@threats.register(
    "union", cites="arXiv:1904.13000", examples=("linf:0.03+l2:0.5", "l2:1+patch:3x3+l0px:5")
)
@dataclass(frozen=True)
class Union(NamedThreat):
    """Every x' that lies in at least one of several threat models: `linf:0.03+l2:0.5`.

    Tramèr & Boneh 2019, section 2; Maini et al. 2020. A point is robust if no member breaks it: the
    worst case per point, not the worst of the members' accuracies. Members are norms, `patch:`,
    `l0px:` and `style:`; what lists its inputs is evaluated in a run of its own. The distance is
    the least share of its eps at which a member holds the input; eps is 1. A certificate holds for
    all members.
    """

    suite, searched_by = "union", "unites"

    @classmethod
    def read(cls, text: str) -> Self:
        """Read members that are joined by +."""
        name = re.sub(r"\s", "", text).lower()
        _named(name)
        return cls(name, 1.0)  # type: ignore[arg-type]

    @property
    def named(self) -> Mapping[str, Threat]:
        """The members, by what they were called, each with the criterion of the union."""
        found = _named(self.norm)
        return {text: replace(one, criterion=self.criterion) for text, one in found.items()}

    @property
    def members(self) -> Sequence[Threat]:
        """In the order in which they were named."""
        return tuple(self.named.values())

    def check(self, shape: Sequence[int], labels: Any) -> None:
        """Refuse data that a member does not apply to."""
        for member in self.members:
            if isinstance(member, NamedThreat):
                member.check(shape, labels)
            member.refuse_beyond_box(shape)

    @property
    def instead(self) -> str:
        """Several threat models, each with its attacks."""
        first = next(iter(self.named))
        return (
            'unites several: leave out --attack and --suite, name --suite "union(suite=fast)", or '
            f"--attack \"within(attack=apgd, member='{first}')\"."
        )

    def distance(self, z: Images, x: Images, points: Sequence[int] | None = None) -> Scalars:
        """Least share of a member's limit; infinite where no member has a distance."""
        features = prod(x.shape[1:])
        shares = [member.distance(z, x, points) / member.limit(features) for member in self.members]
        boxed = ((z >= self.lower) & (z <= self.upper)).flatten(1).all(1)
        least: Scalars = torch.stack(shares).amin(0)
        return least.masked_fill(~boxed, torch.inf)


@lru_cache
def _named(name: str) -> Mapping[str, Threat]:
    texts = name.split("+")
    found = {text: read_threat(text) for text in texts}
    if len(texts) < 2 or len(set(found.values())) < len(texts):
        raise UsageError(
            f"expected two or more different threat models joined by +, such as linf:0.03+l2:0.5, "
            f"got {name!r}"
        )
    for text, member in found.items():
        if isinstance(member, FiniteThreat | Union):
            what = "is a union" if isinstance(member, Union) else "lists its inputs"
            raise UsageError(
                f"{name}: expected norms, patches, pixels or parameters to unite, and {text} "
                f"{what}: evaluate it in a run of its own."
            )
    return found


@attacks.register("within", white_box=True, cites="")
@dataclass(frozen=True)
class Within:
    """Another attack, within one member of a union of threat models.

    `within(attack=apgd, member='linf:0.03')` runs APGD in the linf ball of `linf:0.03+l2:0.5`; its
    record says by that name which member broke a point. Costs, options and draws are the attack's.

    Attributes:
        attack: its spec.
        member: as the union names it; "" for the first.
    """

    attack: str = "relay"
    member: str = ""

    unites = True

    def __getattr__(self, name: str) -> Any:
        # Whatever the engine asks of an attack (surrogate, eot, aims, ...) is for that attack to
        # say. Special names are not: copying and pickling ask for them before there are fields.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_built(self.attack), name)

    @property
    def white_box(self) -> bool:
        """Whether the attack uses gradients by its registration."""
        return bool(attacks.entry(Spec.parse(self.attack).name).facts.get("white_box", True))

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """Those of the attack in the member.

        Raises:
            UsageError: for another threat model, or an attack that the member is not for.
        """
        built, member = _built(self.attack), self._member(threat)
        if isinstance(built, ExternalAttack) or enumerates(built):
            raise UsageError(f"within runs searches of robustkit, got {self.attack}.")
        if isinstance(member, NamedThreat) and not suits(built, member):
            raise member.refusal(self.attack)
        listed: Sequence[Job] = built.jobs(member, classes)
        return listed

    def _member(self, threat: Threat) -> Threat:
        if not isinstance(threat, Union):
            raise UsageError(f"within supports unions (linf:0.03+l2:0.5), got {threat.norm}.")
        if self.member and self.member not in threat.named:
            raise UsageError(
                f"within: expected member as one of {', '.join(threat.named)}, got {self.member!r}."
            )
        return threat.named[self.member] if self.member else threat.members[0]

    def start(self, tasks: Tasks, threat: Threat) -> Any:
        """Begin in the member."""
        return _built(self.attack).start(tasks, self._member(threat))

    def objective(self, logits: Logits, state: Any) -> Scalars:
        """Return that of the attack."""
        value: Scalars = _built(self.attack).objective(logits, state)
        return value

    def step(self, state: Any, reply: Reply, threat: Threat) -> Any:
        """Take a step in the member."""
        return _built(self.attack).step(state, reply, self._member(threat))


@lru_cache
def _built(attack: str) -> Any:
    return attacks.build(attack)


@suites.register("union", cites="arXiv:1904.13000")
@dataclass(frozen=True)
class Members:
    """The suites of all members, one after the other, each on the points that are left.

    Attributes:
        suite: of the members that are norms; others have one of their own.
    """

    suite: str = "quick"

    unites = True

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """Each attack within its member.

        Raises:
            UsageError: for a single threat model, and a suite that acts on what it finds.
        """
        return [
            _spec(spec, text)
            for text, suite, member in self._suites(threat)
            for spec in suite.attacks(member, surrogates)
        ]

    def audit(self, threat: Threat) -> Audit | None:
        """The audits of the members as one: on one sample, as large as that of the first."""
        found = [
            (text, suite.audit(member))
            for text, suite, member in self._suites(threat)
            if hasattr(suite, "audit")
        ]
        if not found:
            return None
        listed = [_spec(spec, text) for text, audit in found for spec in audit.attacks]
        whole: Audit = replace(found[0][1], attacks=listed)
        return whole

    def _suites(self, threat: Threat) -> Sequence[tuple[str, Any, Threat]]:
        if not isinstance(threat, Union):
            raise UsageError(f"the suite union supports linf:0.03+l2:0.5, got {threat.norm}.")
        found = []
        for text, member in threat.named.items():
            name = member.suite if isinstance(member, NamedThreat) else self.suite
            built = suites.build(name)
            if hasattr(built, "remedies") or isinstance(built, Members):
                raise UsageError(
                    f"union: expected a suite that does not act on what it finds, such as quick, "
                    f"fast or parity, got {name}."
                )
            found.append((text, built, member))
        return found


def _spec(attack: str | Spec, member: str) -> str:
    return str(Spec("within", (("attack", str(Spec.parse(str(attack)))), ("member", member))))
