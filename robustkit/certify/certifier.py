"""The certificate that applies to a model, and its result by point: proved robust, or not."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from robustkit.certify.agreement import refuse_less_precision
from robustkit.certify.boxes import box_bounds
from robustkit.certify.complete.verifier import SECONDS, Effort, obstacle
from robustkit.certify.crown import crown_margins
from robustkit.certify.declared import METHODS, declared, formula
from robustkit.certify.graph import Graph, trace
from robustkit.certify.ibp import input_box, intervals, margins_of
from robustkit.certify.parametric import parameter_bounds
from robustkit.certify.sampling import Sampling
from robustkit.certify.smoothing import Smoothed
from robustkit.certify.tabular import table_bounds
from robustkit.certify.union import joint_certifier
from robustkit.core.boxed import BoxedThreat
from robustkit.core.named import NamedThreat
from robustkit.core.parametric import ParametricThreat
from robustkit.core.tabular import TabularThreat
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels, Mask
from robustkit.errors import UsageError
from robustkit.models.guard import duplicate
from robustkit.models.legible import legible
from robustkit.models.mixture import Mixed, proved_by_margins
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
    if not threat.criterion.provable:
        _refuse_criterion(threat, "quick" if share else method)
        return None
    if isinstance(threat, NamedThreat):
        named = method if share is None else "quick"
        return _of_named(model, shape, threat, named, seed, randomized)
    effort = Effort.parse(method) if share is None else Effort("auto", SECONDS)
    method = effort.method if share is None else "quick"
    own = declared(model)
    if method not in (known := (*METHODS, *own)):
        raise UsageError(f"expected a certificate of {', '.join(known)}, got {method!r}.")
    optional = method in ("auto", "quick")
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
    branching = _branching(effort, graph, base, threat)
    bound = "ibp" if method == "quick" else method
    return Bounds(graph, _slack(threat, shape), bound, mixture, branching,
                  share if branching else None)  # fmt: skip


def _of_named(
    model: Any,
    shape: tuple[int, ...],
    threat: NamedThreat,
    method: str,
    seed: int,
    randomized: bool,
) -> Certifier | None:
    """Return the certificate for a threat model without a ball, each kind of which has its own."""
    own = {name: how for name, how in declared(model).items() if name in threat.proved_by}
    if own and not randomized and method in (*own, "auto", "quick"):
        return formula(own, method, threat)
    if isinstance(threat, TabularThreat):
        return table_bounds(model, shape, threat, method, randomized=randomized)
    if isinstance(threat, ParametricThreat):
        return parameter_bounds(model, shape, threat, method, randomized=randomized)
    if isinstance(threat, BoxedThreat):
        return box_bounds(model, shape, threat, method, randomized=randomized)
    build = partial(build_certifier, model, shape, seed=seed, randomized=randomized)
    return joint_certifier(threat, method, build)


def _branching(effort: Effort, graph: Graph, base: nn.Module, threat: Threat) -> Effort | None:
    """Return the effort of branch and bound; None where it does not apply.

    Raises:
        UsageError: where it does not, and was asked for by its name.
    """
    found = obstacle(graph)
    if effort.method == "complete" and found:
        raise UsageError(
            "--certify complete branches on ReLUs between affine operations, and "
            f"{type(base).__name__} has {found}: use --certify auto, or alpha-crown."
        )
    if effort.method == "complete" and not threat.criterion.branches:
        raise UsageError(
            "--certify complete proves one class after the other, and the criterion "
            f"{threat.criterion} counts classes: use --certify auto, or alpha-crown."
        )
    return effort if effort.complete and threat.criterion.branches and not found else None


def _refuse_criterion(threat: Threat, method: str) -> None:
    """Refuse a certificate where none can be, unless nobody insists on it."""
    if method not in ("auto", "quick"):
        raise UsageError(
            f"--certify {method} bounds differences of logits, which prove nothing about the "
            f"criterion {threat.criterion}: leave --certify out."
        )


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
        against = self._against(x, y)
        holds = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        cascade = ("ibp", "crown-ibp", "alpha-crown")
        for method in cascade if self.method in ("auto", "complete") else (self.method,):
            rows = (~holds).nonzero().flatten()
            if not len(rows):
                break
            holds[rows] = self._proved(x[rows], y[rows], against[rows], method)[0]
        return holds

    def crown(self, x: Images, y: Labels) -> tuple[Mask, Tensor]:
        """Return for which points CROWN proves robustness, and the least bound of a margin [b]."""
        return self._proved(x, y, self._against(x, y), "crown-ibp")

    def _against(self, x: Images, y: Labels) -> Labels:
        """Return the class whose margins are bounded [b]: the label, or what does as well."""
        criterion = self.threat.criterion
        if not criterion.suffix or self.mixture is not None:
            return y
        return criterion.reference(self.graph.values(x.double())[-1], y)

    def _proved(self, x: Images, y: Labels, against: Labels, method: str) -> tuple[Mask, Tensor]:
        """Return which points a method proves, and the least bound that counts [b]."""
        lower = self._lower(x.double(), against, method)
        if self.mixture is None:
            lower = self.threat.criterion.bounds(lower, y)
        least = lower.scatter(1, against[:, None], torch.inf).amin(1)
        return proved_by_margins(lower, against, self.mixture), least

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


def _slack(threat: Threat, shape: tuple[int, ...]) -> Threat:
    """Return the threat model enlarged by the tolerance of `Threat.contains` for float32 points.

    l0 is bounded by the l1 ball around it: k features that move by the width of the box at most.
    """
    if threat.norm == "l0":
        threat = replace(threat, norm="l1", eps=threat.eps * (threat.upper - threat.lower))
    return replace(threat, eps=threat.limit(prod(shape)))
