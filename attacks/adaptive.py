"""The suite that chooses attacks by what the diagnostics found about a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

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
_ANSWERED = (_MASKED | {"transfer"}) - {"stateful"}
# Surrogates with the model's logits and another gradient: one that passes is a finding in itself.
_FAITHFUL = ("bypass", "bpda", "pooled")


@suites.register("adaptive", cites="arXiv:1802.00420")
@dataclass(frozen=True)
class Adaptive:
    """Adaptive attacks against gradient masking: `fast`, and what the flags and the audit call for.

    On a model without flags it is `fast` and its audit. Flags raised before the attacks add, on all
    points: attacks through the built-in surrogates (automatic BPDA, logits before the squashing, a
    bypass of preprocessing, smooth forms of hard selection, submodules, a distilled student),
    gradients averaged over as many draws as the noise needs (EOT), transfer from other models,
    ascents from where a search without gradients came nearest, and attacks without gradients where
    gradients are of no use. Those that no flag calls for are in the
    audit, and run on every survivor if they break a point of its sample; where attacks without
    gradients break points, longer ones run on every survivor.

    The practice is that of Athalye et al. 2018 and Tramèr et al. 2020 (arXiv:2002.08347); that it
    is chosen automatically is ours.

    Attributes:
        audit_share, audit_least: as in `fast`.
        transfer: a model of the same data from which adversarial inputs are tried; "" for none.
        queries: of one attack without gradients, where it is added.
    """

    audit_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    audit_least: Annotated[int, Field(ge=2)] = 32
    transfer: str = "undefended"
    queries: Annotated[int, Field(ge=100)] = 5000

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """Those of `fast`."""
        refuse_l0("adaptive", threat)
        listed: Sequence[str] = suites.build("fast").attacks(threat, surrogates)
        return listed

    def audit(self, threat: Threat) -> Audit:
        """That of `fast`: all of `parity`, on the sample."""
        fast = suites.build(f"fast(audit_share={self.audit_share}, audit_least={self.audit_least})")
        audit: Audit = fast.audit(threat)
        return audit

    def transfer_sources(self) -> Sequence[str]:
        """Name the models whose adversarial inputs are tried, where they are shipped."""
        return [self.transfer] if self.transfer else []

    def remedies(self, threat: Threat, surrogates: Sequence[str], findings: Findings) -> Remedies:
        """Return the attacks that the findings call for, and those that the audit tries anyway."""
        flags = set(findings.flags)
        masked = bool(_MASKED & flags)
        line: list[str] = []
        audit: list[str] = []
        for name in ["", *surrogates] if findings.eot > 1 else []:
            line += _gradient_attacks(threat, findings, name)
        # `bpda` and `bypass` are accepted only if their gradient differs at equal logits, `pooled`
        # if classes have several outputs: something in the model hides its gradient, with or
        # without a flag.
        for name in findings.surrogates:
            called = masked or name in _FAITHFUL
            (line if called else audit).extend(_gradient_attacks(threat, findings, name))
        for name in findings.transfer:
            (line if masked else audit).extend(_gradient_attacks(threat, findings, name))
        line += _gradient_attacks(threat, findings, "student") if masked else []
        guide = _guide(surrogates, findings) if masked else ""
        black_box = self._without_gradients(threat, findings, guide)
        # Where gradients are of no use and no surrogate passed the probes, attacks without
        # gradients are the main attack; else they belong to the audit.
        if _USELESS & flags and not findings.true:
            line += black_box
        elif masked:
            audit += black_box
        line += self._basins(threat, findings, guide) if masked else []
        if guide:
            audit += [_with(s, _through(findings, guide)) for s in _first_of("parity", threat)]
        if findings.eot > 1:
            audit += _first_of(f"rand(eot={findings.eot})", threat)
        reserve = [*black_box, f"square(queries={2 * self.queries}, restarts=2)"]
        reserve = [spec for spec in reserve if spec not in [*line, *audit]]
        return Remedies(line, audit, reserve, sorted(_ANSWERED) if findings.true else ())

    def _basins(self, threat: Threat, findings: Findings, guide: str) -> list[str]:
        """List ascents from where a search without gradients came, by scores that tell something.

        Of 15 points of a model with flattened features (`benchmarks/masks`) `basin` leaves none,
        `relay` four and a search without gradients of the same length two.
        """
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
            return [f"square(queries={self.queries}, restarts=2)"]
        pairs, ahead = 40, f", surrogate={guide!r})"
        specs = [f"spsa(pairs={pairs}, steps={max(1, self.queries // (2 * pairs + 1) - 1)})"]
        if guide and "one_hot" not in findings.flags:
            specs.append(f"square(queries={self.queries}{ahead}")
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


def _first_of(suite: str, threat: Threat) -> list[str]:
    """List the first two attacks of a suite: those of AutoAttack that follow gradients."""
    listed: Sequence[str] = suites.build(suite).attacks(threat)
    return list(listed[:2])


def _gradient_attacks(threat: Threat, findings: Findings, surrogate: str) -> list[str]:
    """List the attacks of `fast` through a surrogate ("": the model); EOT where it is random."""
    return [_with(spec, _through(findings, surrogate)) for spec in _FIRST[threat.norm]]


def _through(findings: Findings, surrogate: str) -> list[str]:
    """List the options of an attack through a surrogate."""
    random = not surrogate or surrogate in findings.noisy
    options = [f"eot={findings.eot}"] if findings.eot > 1 and random else []
    return [*options, f"surrogate={surrogate!r}"] if surrogate else options


def _with(spec: str, options: Sequence[str]) -> str:
    head, _, given = spec.rstrip(")").partition("(")
    listed = [given] if given else []
    return f"{head}({', '.join([*listed, *options])})" if listed or options else head
