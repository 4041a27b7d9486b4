"""The suite that chooses attacks by what the diagnostics found about a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from robustkit.core.spec import Spec
from robustkit.core.threat import Threat
from robustkit.registry import suites
from robustkit.search.audit import Audit
from robustkit.search.findings import Findings, Remedies

from ._norms import refuse_l0

# Flags of gradient masking: the model's own gradient may mislead.
_MASKED = frozenset(
    [
        *("no_gradient", "probabilities", "one_hot", "saturated", "scaled_logits"),
        *("exploding_gradient", "gradient_mismatch", "piecewise_constant", "inner_autograd"),
        *("stateful", "huge_eps", "not_monotone", "absorbing_outputs", "jumping_units"),
    ]
)
# Of these, the flags under which it is of no use at all.
_USELESS = frozenset(["no_gradient", "one_hot", "gradient_mismatch", "huge_eps"])
# The flags that are dealt with by attacks through a surrogate with the model's decisions.
_ANSWERED = _MASKED - {"stateful"}
# Queries before the first look at a run's progress: past the random leg of `relay`, some steps of
# `spsa`, the first radii of the others.
_PATIENCE = {"relay": 32, "spsa": 256, "rays": 256, "hopskipjump": 256}
# Restarts aimed at every class, for inputs that few starts lead to (`benchmarks/planted`).
_DEEP = "apgd(loss=targeted_margin, targets=9, restarts=5, within=0.5)"
# Of `relay` on a model that declares surrogates: past its probes and a first long leg.
_OWN_PATIENCE = 128


@suites.register("adaptive", cites="arXiv:1802.00420")
@dataclass(frozen=True)
class Adaptive:
    """Adaptive attacks against gradient masking: `relay`, and all that the flags call for.

    After `relay` on the model itself come attacks through the surrogates that the model declares
    and the built-in ones (automatic BPDA, logits before the squashing, a bypass of preprocessing,
    smooth forms of hard selection, submodules, a distilled student where a flag calls for it),
    gradients averaged over as many draws as the noise needs (EOT), transfer from other models and,
    under flags of masked gradients, ascents from where a search without gradients came nearest and
    attacks without gradients. Each is given a sample of the survivors first, and others, the
    nearest ahead, as long as it breaks any. On all points run those that flags of masked gradients
    make the main attack: through declared surrogates and those with the model's decisions and a
    sound gradient, or, where gradients are of no use and there is none of the latter, all of them.
    Runs whose progress will not reach a success end early. The audit is that of `fast`. Where
    attacks without gradients break points, longer ones follow; where those of the audit with
    gradients do and the next nearest points do not hold, restarts aimed at every class.

    The practice is that of Athalye et al. 2018 and Tramèr et al. 2020 (arXiv:2002.08347); that it
    is chosen automatically is ours.

    Attributes:
        audit_share, audit_least: as in `fast`; samples of other attacks have half of these sizes.
        transfer: a model of the same data from which adversarial inputs are tried; "" for none.
        queries: of one attack without gradients, where it is added.
    """

    audit_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    audit_least: Annotated[int, Field(ge=2)] = 32
    transfer: str = "undefended"
    queries: Annotated[int, Field(ge=100)] = 5000

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """Those of `fast` on the model itself; with patience where it declares surrogates.

        Gates and hard rules look nearly linear beside a boundary that no step reaches: `relay`
        would then spend all its legs on nearly every point.
        """
        refuse_l0("adaptive", threat)
        listed: Sequence[str] = suites.build("fast").attacks(threat)
        if not surrogates or "relay" not in listed:
            return listed
        return [_with(spec, [f"patience={_OWN_PATIENCE}"]) for spec in listed]

    def audit(self, threat: Threat) -> Audit:
        """That of `fast`: all of `parity`, on the sample."""
        fast = suites.build(f"fast(audit_share={self.audit_share}, audit_least={self.audit_least})")
        audit: Audit = fast.audit(threat)
        return audit

    def transfer_sources(self) -> Sequence[str]:
        """Name the models whose adversarial inputs are tried, where they are shipped."""
        return [self.transfer] if self.transfer else []

    def remedies(self, threat: Threat, surrogates: Sequence[str], findings: Findings) -> Remedies:
        """Return the attacks that the findings call for, and those that are screened anyway."""
        flags = set(findings.flags)
        masked = bool(_MASKED & flags)
        guide = _guide(surrogates, findings) if masked else ""
        # Where the model's own gradient is in doubt, the main attack is through what it declares,
        # and through what has its decisions and a sound gradient. Elsewhere they are tried.
        main = tuple(dict.fromkeys([*surrogates, *findings.true])) if masked else ()
        named = [*surrogates, *findings.surrogates, *findings.transfer]
        named += ["student"] if masked else []
        screened = _climbs(threat, findings, named, ["", *surrogates, *main])
        if guide:
            most = findings.eot if guide in findings.noisy else 1
            first = self.audit(threat).attacks[:2]  # those of `parity` that follow gradients
            screened += [_with(spec, _through(guide, most)) for spec in first]
        if findings.eot > 1:
            # Cross-entropy alone: `relay` has maximized the margin, which DLR scales.
            screened += suites.build(f"rand(eot={findings.eot})").attacks(threat)[:1]
        black_box = self._without_gradients(threat, findings, guide)
        reserve = [*black_box, f"square(queries={2 * self.queries}, restarts=2, outlook=2)"]
        if threat.norm != "l1" and findings.eot == 1 and not _USELESS & flags:
            reserve = [_DEEP, *reserve]
        line: list[str] = []
        if masked:
            line = [spec for name in main for spec in _climb(threat, name)]
            screened += [*self._basins(threat, findings, guide), *black_box]
            # Where there is none and gradients are of no use, all others are.
            if _USELESS & flags and not findings.true:
                line, screened = screened, []
        line, screened, reserve = (
            [_patient(spec, findings) for spec in part] for part in (line, screened, reserve)
        )
        return Remedies(line, screened, reserve, sorted(_ANSWERED) if findings.true else ())

    def _basins(self, threat: Threat, findings: Findings, guide: str) -> list[str]:
        """List ascents from where a search by scores came, if these tell something."""
        if threat.norm == "l1" or findings.eot > 1 or "one_hot" in findings.flags:
            return []
        options = [f"queries={max(1, self.queries // 5)}"]
        return [_with("basin", more) for more in (options, [*options, f"surrogate={guide!r}"])]

    def _without_gradients(self, threat: Threat, findings: Findings, guide: str) -> list[str]:
        """List attacks without gradients; by decisions too where logits hardly vary.

        Args:
            guide: a surrogate for the warm start of some of them; "" for none.
        """
        if threat.norm == "l1":
            return [f"square(queries={self.queries}, restarts=2, outlook=2)"]
        pairs, ahead = 40, f", surrogate={guide!r})"
        specs = []
        if "one_hot" not in findings.flags:  # differences of labels are none, nearly everywhere
            specs = [f"spsa(pairs={pairs}, steps={max(1, self.queries // (2 * pairs + 1) - 1)})"]
            specs += [f"square(queries={self.queries}, outlook=2{ahead}"] if guide else []
        if {"one_hot", "piecewise_constant"} & set(findings.flags):
            name, most = ("rays", 2) if threat.norm == "linf" else ("hopskipjump", 1)
            specs.append(f"{name}(queries={most * self.queries})")
            if guide and name == "rays":
                specs.append(f"rays(queries={most * self.queries}{ahead}")
        return specs


_FIRST = {
    "linf": ("relay",),
    "l2": ("relay",),
    "l1": ("apgd_l1(loss=margin)", "apgd_l1(loss=targeted_dlr, steps=40, targets=4)"),
}


def _guide(surrogates: Sequence[str], findings: Findings) -> str:
    """Return the surrogate for warm starts: a declared one, logits, one that passed, or any."""
    logits = [name for name in findings.true if name == "logits"]
    return [*surrogates, *logits, *findings.true, *findings.surrogates, "student"][0]


def _climbs(
    threat: Threat, findings: Findings, surrogates: Sequence[str], averaged: Sequence[str]
) -> list[str]:
    """List the attacks of `fast` through surrogates; where `averaged` are random, by rising EOT.

    One draw finds most, and what few draws leave is less to try with many.
    """
    specs = [spec for name in surrogates for spec in _climb(threat, name)]
    for draws in sorted({max(1, findings.eot // 4), findings.eot} - {1}):
        for name in averaged:
            if not name or name in findings.noisy:
                specs += _climb(threat, name, draws)
    return specs


def _climb(threat: Threat, surrogate: str, draws: int = 1) -> list[str]:
    """List the attacks of `fast` through a surrogate ("": the model)."""
    return [_with(spec, _through(surrogate, draws)) for spec in _FIRST[threat.norm]]


def _through(surrogate: str, draws: int) -> list[str]:
    """List the options of an attack through a surrogate."""
    options = [f"eot={draws}"] if draws > 1 else []
    return [*options, f"surrogate={surrogate!r}"] if surrogate else options


def _with(spec: str, options: Sequence[str]) -> str:
    head, _, given = spec.rstrip(")").partition("(")
    listed = [given] if given else []
    return f"{head}({', '.join([*listed, *options])})" if listed or options else head


def _patient(spec: str, findings: Findings) -> str:
    """Let a run without hope end early, where the attack can tell.

    Labels alone do not tell of progress along a surrogate.
    """
    attack = Spec.parse(spec)
    along = attack.name == "relay" and "surrogate" in dict(attack.options)
    queries = 0 if along and "one_hot" in findings.flags else _PATIENCE.get(attack.name, 0)
    return _with(spec, [f"patience={queries}"]) if queries else spec
