"""The certificate that applies to a model, and its result by point: proved robust, or not."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Protocol

import torch
from scipy.special import ndtr
from torch import Tensor, nn

from robustkit.certify.agreement import refuse_less_precision
from robustkit.certify.complete.verifier import SECONDS, Effort, obstacle, reads
from robustkit.certify.crown import crown_margins
from robustkit.certify.declared import METHODS, declared, formula
from robustkit.certify.graph import Graph, trace
from robustkit.certify.ibp import input_box, intervals, margins_of
from robustkit.certify.parametric import parameter_bounds
from robustkit.certify.smoothing import TIE_BREAK, Smoothed, certify_point, reach
from robustkit.core.finite import FiniteThreat
from robustkit.core.parametric import ParametricThreat
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels, Mask
from robustkit.errors import UsageError
from robustkit.models.guard import duplicate
from robustkit.models.legible import legible
from robustkit.models.mixture import Mixed, proved_by_margins, smoothing_radius
from robustkit.models.readiness import frozen

_ITERATIONS = 20  # of alpha-CROWN
_SHARE = re.compile(r"auto\(share=(\d*\.?\d+)\)")


class Certifier(Protocol):
    """A certificate for one model and threat model."""

    @property
    def name(self) -> str:
        """Its name in the record."""
        ...

    @property
    def method(self) -> str:
        """One of `METHODS`, with its options, or one that the model declares."""
        ...

    @property
    def batch(self) -> int:
        """How many points to pass to `prove` at once."""
        ...

    def at(self, threat: Threat) -> Certifier:
        """Return the same certificate for another eps."""
        ...

    def prove(self, x: Images, y: Labels) -> Mask:
        """Return for which points the model provably predicts `y` in all of the threat model [b].

        False says nothing: the bound may be loose.
        """
        ...


def share_of(method: str) -> float | None:
    """Return the share of a run's own time that `auto(share=0.15)` may take; None of others."""
    found = _SHARE.fullmatch(method.replace(" ", ""))
    return float(found[1]) if found and float(found[1]) > 0 else None


def build_certifier(
    model: Any,
    shape: tuple[int, ...],
    threat: Threat,
    method: str,
    seed: int = 0,
    *,
    randomized: bool = False,
) -> Certifier | None:
    """Return the certificate of a model; None if `method` is "auto" or "quick" and none is known.

    "ibp", "crown" and "alpha-crown" bound a network, or the robust part of a mixture, whose margin
    bounds that of the mixture; "smoothing" samples a smoothed classifier, or one that is the robust
    part of a mixture; "auto" uses what the model declares (`declared`), smoothing for smoothed
    classifiers and bounds for networks, the cheapest first; "quick" is what it declares, or "ibp",
    the price of two passes a point, where that applies.

    "complete" is the bounds of "auto"; both name a budget, `complete(seconds=60)`, for the branch
    and bound that a run goes on to once it has attacked (`Bounds.effort`). `auto(share=0.15)` is
    "quick", and once it has attacked CROWN and branch and bound on what is robust so far, for 15%
    of the time that the run has taken: the first look of `robustkit evaluate`.

    Args:
        randomized: two passes of the model differ, so that bounds on one pass prove nothing.

    Raises:
        UsageError: when the method does not apply to the model.
    """
    share = share_of(method)
    if isinstance(threat, ParametricThreat):
        method = method if share is None else "quick"
        return parameter_bounds(model, shape, threat, method, randomized=randomized)
    effort = Effort.parse(method) if share is None else Effort("auto", SECONDS)
    method = effort.method if share is None else "quick"
    own = declared(model)
    if method not in (known := (*METHODS, *own)):
        raise UsageError(f"expected a certificate of {', '.join(known)}, got {method!r}.")
    optional = method in ("auto", "quick")
    if isinstance(threat, FiniteThreat):
        _refuse_unless_optional(threat, method)
        return None
    mixture = model if isinstance(model, Mixed) else None
    base = mixture.certificate_parts()[0] if mixture else model
    if isinstance(base, Smoothed) and method in ("auto", "smoothing"):
        return Sampling(base, threat, seed, mixture=mixture)
    if isinstance(base, Smoothed) and method == "quick":  # a thousand passes a point
        return None
    if own and not randomized and (optional or method in own):
        return formula(own, method, threat)
    if method == "smoothing":
        raise UsageError("--certify smoothing certifies a smoothed classifier, not the base model: "
                         'evaluate "smoothed(base=..., sigma=0.25)".')  # fmt: skip
    if not isinstance(model, nn.Module):
        if optional:
            return None
        raise UsageError(f"--certify {method} needs an nn.Module, got a {type(model).__name__}.")
    if randomized and mixture is None:
        if optional:
            return None
        raise UsageError(
            f"--certify {method} bounds a deterministic network, and two passes of this one "
            "differ: remove its randomness, or smooth it and use --certify smoothing."
        )
    try:
        # In float64, where rounding is far below what `rounding=True` adds for float32.
        refuse_less_precision(base, shape)
        graph = trace(frozen(legible(duplicate(base)).double()), shape)
    except UsageError:
        if optional:
            return None
        raise
    if method == "complete" and (found := obstacle(graph)):
        raise UsageError(
            "--certify complete branches on ReLUs between affine operations, and "
            f"{type(base).__name__} has {found}: use --certify auto, or alpha-crown."
        )
    bound = "ibp" if method == "quick" else method
    branching = effort if effort.complete and reads(graph) else None
    return Bounds(graph, _slack(threat, shape), bound, mixture, branching,
                  share if branching else None)  # fmt: skip


def _refuse_unless_optional(threat: FiniteThreat, method: str) -> None:
    """Refuse a certificate of variants that are tried one by one, unless nobody insists on it."""
    if method != "quick":
        raise threat.refusal(f"a certificate (--certify {method})")


@dataclass(frozen=True)
class Bounds:
    """Bounds on the logits in float64, widened by the rounding error of a float32 evaluation."""

    graph: Graph
    threat: Threat
    method: str
    mixture: Mixed | None = None
    effort: Effort | None = None
    """Of the branch and bound on what bounds and attacks leave; None: there is none."""
    share: float | None = None
    """What that may take of the time of the run so far, all points together; None: no limit."""

    batch = 16

    @property
    def name(self) -> str:
        """The method, with the budget of branch and bound."""
        if self.share is not None:
            return f"auto(share={self.share:g})"
        return self.effort.text if self.effort else self.method

    def at(self, threat: Threat) -> Bounds:
        """Return the same bounds for another eps; the network is not traced again."""
        return replace(self, threat=_slack(threat, self.graph.nodes[0].shape))

    def prove(self, x: Images, y: Labels) -> Mask:
        """Return for which points a bound proves robustness [b]."""
        # Each method on the points that the cheaper ones left open.
        holds = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        cascade = ("ibp", "crown-ibp", "alpha-crown")
        for method in cascade if self.method in ("auto", "complete") else (self.method,):
            rows = (~holds).nonzero().flatten()
            if not len(rows):
                break
            lower = self._lower(x[rows].double(), y[rows], method)
            holds[rows] = proved_by_margins(lower, y[rows], self.mixture)
        return holds

    def crown(self, x: Images, y: Labels) -> tuple[Mask, Tensor]:
        """Return for which points CROWN proves robustness, and the least bound of a margin [b]."""
        lower = self._lower(x.double(), y, "crown-ibp")
        return proved_by_margins(lower, y, self.mixture), lower.scatter(
            1, y[:, None], torch.inf
        ).amin(1)

    def _lower(self, x: Images, y: Labels, method: str) -> Tensor:
        """Return lower bounds of z_y − z_j [b, k]."""
        if method == "ibp":
            boxes = intervals(
                self.graph, input_box(x, self.threat), rounding=True, ball=(x, self.threat)
            )
            return margins_of(self.graph, boxes, y, rounding=True)
        return crown_margins(
            self.graph,
            x,
            y,
            self.threat,
            intermediate="ibp" if method == "crown-ibp" else "crown",
            rounding=True,
            iterations=_ITERATIONS if method == "alpha-crown" else 0,
        )


@dataclass(frozen=True)
class Sampling:
    """Randomized smoothing: right with probability at least 1 − alpha for each point, or abstains.

    A mixture is certified by the vote shares of its smoothed part (`smoothing_radius`).
    """

    model: Smoothed
    threat: Threat
    seed: int = 0
    select: int = 100
    draws: int = 1000
    alpha: float = 0.001
    mixture: Mixed | None = None

    batch = 8
    method = "smoothing"

    @property
    def name(self) -> str:
        """The method with the options that decide its strength."""
        return f"smoothing(alpha={self.alpha}, draws={self.draws}, sigma={self.model.sigma})"

    def at(self, threat: Threat) -> Sampling:
        """Return the same certificate for another eps."""
        return replace(self, threat=threat)

    def prove(self, x: Images, y: Labels) -> Mask:
        """Certify one point after the other."""
        # The l2 ball that contains the threat model: sound, and loose by √d for linf.
        needed = reach(self.threat, x[0].numel())
        proofs = [
            certify_point(
                self.model.base,
                point,
                self.model.sigma,
                select=self.select,
                draws=self.draws,
                seed=self.seed,
                alpha=self.alpha,
            )
            for point in x
        ]
        verdicts = [
            proof.label == label and self._radius(proof.radius) > needed
            for proof, label in zip(proofs, y.tolist(), strict=True)
        ]
        return torch.tensor(verdicts, device=x.device)

    def _radius(self, radius: float) -> float:
        """Turn the radius of the smoothed part into that of the whole model."""
        if self.mixture is None:
            return radius
        _, alpha, scale = self.mixture.certificate_parts()
        if scale != 1:  # softmax(scale · log share) is not the share: the lemma does not apply
            return 0.0
        least = float(ndtr(radius / self.model.sigma))
        # `Smoothed` adds a thousandth of the mean probabilities to the shares: the worst case is
        # all of it on the runner-up.
        blended = torch.tensor([[least, 1 - least + TIE_BREAK]]) / (1 + TIE_BREAK)
        first = torch.zeros(1, dtype=torch.long)
        return float(smoothing_radius(blended, first, alpha, self.model.sigma))


def _slack(threat: Threat, shape: tuple[int, ...]) -> Threat:
    """Return the threat model enlarged by the tolerance of `Threat.contains` for float32 points.

    l0 is bounded by the l1 ball around it: k features that move by the width of the box at most.
    """
    if threat.norm == "l0":
        threat = replace(threat, norm="l1", eps=threat.eps * (threat.upper - threat.lower))
    return replace(threat, eps=threat.limit(prod(shape)))
