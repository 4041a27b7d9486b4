"""The suites that come with robustkit: attacks in order, and what is audited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from robustkit.core.threat import Threat
from robustkit.errors import UsageError
from robustkit.registry import suites
from robustkit.search.audit import Audit

from ._norms import refuse_l0


@suites.register("parity", cites="arXiv:2003.01690")
@dataclass(frozen=True)
class Parity:
    """AutoAttack-standard: the same attacks, order, budgets and decision rule.

    Up to 7,811 forward passes and, as a rule, about 1,920 backward passes for a point that survives
    everything (linf, l2; ten classes).
    """

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """APGD-CE, targeted APGD-DLR, targeted FAB, Square."""
        refuse_l0(type(self).__name__.lower(), threat)
        if threat.norm == "l1":
            first = ["apgd_l1(restarts=5)", "apgd_l1(loss=targeted_dlr, targets=5)"]
        else:
            first = ["apgd", "apgd(loss=targeted_dlr, targets=9)"]
        return [*first, "fab(targets=9)", "square(queries=5000)"]


@suites.register("standard", cites="arXiv:2003.01690")
@dataclass(frozen=True)
class Standard(Parity):
    """`parity` by the name that AutoAttack gives it."""


@suites.register("plus", cites="arXiv:2003.01690")
@dataclass(frozen=True)
class Plus:
    """AutoAttack-plus: `parity` with five restarts of APGD, and APGD-DLR untargeted.

    Differs from AutoAttack's: FAB is targeted and has no restarts.
    """

    restarts: Annotated[int, Field(ge=1)] = 5

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """APGD-CE, APGD-DLR, FAB, Square, targeted APGD-DLR."""
        refuse_l0("plus", threat)
        name = "apgd_l1" if threat.norm == "l1" else "apgd"
        targets = 5 if threat.norm == "l1" else 9
        return [
            f"{name}(restarts={self.restarts})",
            f"{name}(loss=dlr, restarts={self.restarts})",
            "fab(targets=9)",
            "square(queries=5000)",
            f"{name}(loss=targeted_dlr, targets={targets})",
        ]


@suites.register("quick", cites="")
@dataclass(frozen=True)
class Quick:
    """For CI: at most 118 forward and backward passes per survivor, and no audit.

    A model that declares surrogates is attacked by at most 59 passes, then through them: at most 46
    through the first and 16 through each other (in l1 and l0 the same budget for each), since what
    a gate or a hard rule hides mostly falls to the first steps through a surrogate. An upper bound,
    not a claim.
    """

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """`relay` with a small budget; `apgd_l1` in l1, sigma-zero and FMN in l0."""
        if threat.norm == "l0":
            return _through(surrogates, ["sigma_zero(steps=70)", "fmn(steps=40)"])
        if threat.norm == "l1":
            line = [
                "apgd_l1(loss=margin, steps=54)",
                "apgd_l1(loss=targeted_dlr, steps=30, targets=2)",
            ]
            return _through(surrogates, line)
        if not surrogates:
            return ["relay(first=15, legs=3, probe=8, probes=3, steps=24)"]
        # The model itself comes first: what surrogates break after it raises the flag `transfer`.
        return [
            "relay(first=15, legs=1, probe=8, probes=2, steps=24)",
            *_through(surrogates[:1], ["relay(first=20, legs=1, probes=0, steps=24)"])[1:],
            *_through(surrogates[1:], ["relay(first=15, legs=0, probes=0)"])[1:],
        ]

    def without_gradients(self, threat: Threat) -> Sequence[str]:
        """Those of `scores` with 500 queries each."""
        return Scores(queries=500).attacks(threat)


@suites.register("scores", cites="arXiv:1912.00049")
@dataclass(frozen=True)
class Scores:
    """Attacks without gradients, for models that have scores alone, such as `sklearn:FILE`.

    Square by scores, then one by decisions: RayS in linf, HopSkipJump in l2. Suites that follow
    gradients have these for such models. An upper bound that is weaker than one by gradients.

    Attributes:
        queries: of each attack.
    """

    queries: Annotated[int, Field(ge=20)] = 5000

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """Square; RayS in linf, HopSkipJump in l2."""
        if threat.norm == "l0":
            raise UsageError(
                "the suite scores is not defined for l0: sigma_zero and fmn follow gradients. Of "
                "decision trees --attack trees:nearest tells."
            )
        decisions = {"linf": "rays", "l2": "hopskipjump"}.get(threat.norm)
        return [f"{name}(queries={self.queries})" for name in ("square", decisions) if name]


@suites.register("fast", cites="")
@dataclass(frozen=True)
class Fast:
    """The verdict of `parity` at a few percent of its cost, with a bound on what it may miss.

    `relay`, through every surrogate that the model declares too; then an audit: all attacks of
    `parity` on the survivors that came closest to a misclassification and on a random part of the
    rest. Their runs end early where they will not come through, by a linear model (APGD), by the
    distance reached (FAB) or by the progress so far (Square). When more than 0.2% of the points are
    broken in the sample, the same runs on every survivor, or, if only near points fell, what broke
    them on the survivors that come next, until a block of them holds.

    Attributes:
        audit_share: survivors that are audited, as a share of all, half of them the nearest.
        audit_least: the least number of them.
    """

    audit_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    audit_least: Annotated[int, Field(ge=2)] = 32

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """`relay`; in l1 `apgd_l1`, on the margin and on targets."""
        refuse_l0("fast", threat)
        return _through(
            surrogates,
            ["apgd_l1(loss=margin)", "apgd_l1(loss=targeted_dlr, steps=40, targets=4)"]
            if threat.norm == "l1"
            else ["relay"],
        )

    def audit(self, threat: Threat) -> Audit:
        """All of `parity`, with early ends, on the sample."""
        half, least = self.audit_share / 2, self.audit_least // 2
        first = Parity().attacks(threat)[0], "apgd(loss=targeted_dlr, targets=9, within=0.5)"
        if threat.norm == "l1":
            first = first[0], Parity().attacks(threat)[1]
        line = [*first, "fab(targets=9, within=0.5)", "square(queries=5000, outlook=2)"]
        return Audit(line, near=half, random=half, least=least)


@suites.register("rand", cites="arXiv:2003.01690")
@dataclass(frozen=True)
class Rand:
    """AutoAttack-rand, for randomized models: APGD on CE and DLR, gradients averaged over draws.

    Not enough against defenses whose randomness hides hard decisions: see `surrogates`.
    """

    eot: Annotated[int, Field(ge=1)] = 20

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """APGD-CE and APGD-DLR."""
        refuse_l0("rand", threat)
        name = "apgd_l1" if threat.norm == "l1" else "apgd"
        return [f"{name}(eot={self.eot})", f"{name}(eot={self.eot}, loss=dlr)"]


@suites.register("surrogates", cites="arXiv:2411.14834")
@dataclass(frozen=True)
class Surrogates:
    """Attacks through every surrogate that the model declares, verified on the model itself.

    Zhang et al. 2024: what breaks ensembles with hard aggregation, gates and randomness. For a
    model that declares none it is APGD on the margin and on CE.
    """

    steps: Annotated[int, Field(ge=1)] = 100
    eot: Annotated[int, Field(ge=1)] = 1

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """The margin and CE, first of the model, then of each surrogate; in l0 sigma-zero."""
        name = {"l1": "apgd_l1", "l0": "sigma_zero"}.get(threat.norm, "apgd")
        losses = [""] if threat.norm == "l0" else ["loss=margin, ", "loss=ce, "]
        return [
            f"{name}(eot={self.eot}, {loss}steps={self.steps}{through})"
            for through in ["", *(f", surrogate={surrogate}" for surrogate in surrogates)]
            for loss in losses
        ]


@suites.register("transfer", cites="arXiv:2311.01323")
@dataclass(frozen=True)
class Transfer:
    """Attacks made for transfer along the gradients of other models alone, judged on the model.

    What an adversary without the model has: the robust accuracy is that under transfer, no bound
    for one who knows the model. NI-FGSM, input diversity, translation invariance with it, variance
    tuning, SIA and BSR from every source; in l1 `apgd_l1`, in l0 `sigma_zero`. Every query of an
    attack is judged, so that the model is asked too: whether its answer counts, it never tells.

    Attributes:
        source: name or names of models, as `robustkit evaluate` takes them.
        gamma: weight of residual branches in the gradients of the sources; see the attack mi.
    """

    source: str | tuple[str, ...] = "undefended"
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """The cheap ones first; in l1 and l0 attacks that are not made for transfer."""
        names = (self.source,) if isinstance(self.source, str) else self.source
        line = {"l1": ["apgd_l1(loss=margin)"], "l0": ["sigma_zero"]}.get(threat.norm) or [
            f"{name}({options}gamma={self.gamma})"
            for name, options in (
                ("mi", "nesterov=true, "), ("di", ""), ("ti", "probability=0.5, "),
                ("vmi", ""), ("sia", ""), ("bsr", ""),
            )
        ]  # fmt: skip
        return _through([f"'source:{name}'" for name in names], line)[len(line) :]


def _through(surrogates: Sequence[str], specs: Sequence[str]) -> list[str]:
    """List the attacks on the model itself, then the same through each surrogate."""
    found = list(specs)
    for surrogate in surrogates:
        for spec in specs:
            head, given = (spec.rstrip(")") + ", ").split("(", 1) if "(" in spec else (spec, "")
            found.append(f"{head}({given}surrogate={surrogate})")
    return found


@suites.register("minimum_norm", cites="arXiv:2102.12827")
@dataclass(frozen=True)
class MinimumNorm:
    """Searches for the nearest adversarial input, for `--minimum-norm`.

    Up to 500 passes per point in linf, 710 in l0, 1,170 in l2 and l1 (ten classes).
    """

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """FMN, untargeted and targeted, with FAB; in l2 DDN as well; in l0 sigma-zero with FMN."""
        fmn = ["fmn(steps=100)", *(f"fmn(steps=100, surrogate={s})" for s in surrogates)]
        return {
            "linf": [*fmn, "fmn(steps=30, targets=5)", "fab(steps=40, targets=3)"],
            "l2": [*fmn, "ddn(steps=100)", "fab(steps=50, targets=9)"],
            "l1": [*fmn, "fmn(steps=30, targets=5)", "fab(steps=50, targets=9)"],
            "l0": ["sigma_zero(steps=300)", "sigma_zero(steps=100, targets=3)", *fmn],
        }[threat.norm]


@suites.register("scout", cites="arXiv:2102.12827")
@dataclass(frozen=True)
class Scout:
    """One short search for the nearest adversarial input; `--eps-grid` runs it first."""

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """FMN; in l0 sigma-zero."""
        return {
            "linf": ["fmn(steps=30)"],
            "l2": ["fmn(steps=30)"],
            "l1": ["fmn(steps=50)"],
            "l0": ["sigma_zero(steps=60)"],
        }[threat.norm]
