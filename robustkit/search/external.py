"""Attacks of other libraries, asked for as `library:Name(option=value)`.

They are no searches: they own their loop and answer for a whole batch. A library is one file in
the pack of attacks: a frozen dataclass registered in `robustkit.registry.libraries`, derived from
`ExternalAttack`. What it returns are candidates, which are judged like those of any search.
"""

from __future__ import annotations

import contextlib
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import nn

from robustkit.core import process_state
from robustkit.core.imports import failure
from robustkit.core.optional import library, quiet
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels
from robustkit.errors import RobustkitError, UsageError
from robustkit.search.protocol import Job, enumerates

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1", "l0": "L0"}


class Batch(NamedTuple):
    """Points that are still robust, with what an attack on them may depend on.

    Attributes:
        x, y: inputs and labels, which the model gets right.
        seed: depends on the run's seed, the attack and the first of the points.
        classes: number of logits.
    """

    x: Images
    y: Labels
    seed: int
    classes: int


@dataclass(frozen=True)
class ExternalAttack(ABC):
    """An attack of another library.

    Attributes:
        name: what the library calls it.
        options: those given, for the library.
        batch_size: points that are attacked at once. Their results may depend on each other: the
            size is part of the spec.
    """

    name: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    batch_size: int = 100

    package: ClassVar[str] = ""
    extra: ClassVar[str] = ""

    @property
    def given(self) -> dict[str, Any]:
        """The options by name."""
        return dict(self.options)

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """Check the request; a batch is one job per point.

        Raises:
            UsageError: when the library is absent, does not know the attack or an option, or the
                attack does not support the threat model or so few classes.
        """
        if (threat.lower, threat.upper) != (0.0, 1.0):
            raise UsageError(f"{self.package} expects inputs in [0, 1], got {threat}.")
        self.check(threat, classes)
        return [Job()]

    @abstractmethod
    def check(self, threat: Threat, classes: int) -> None:
        """Raise a UsageError for whatever the library cannot do."""

    def bounded(self, threat: Threat) -> bool:
        """Whether it was told the radius, so that what it returns should lie inside."""
        return True

    @abstractmethod
    def perturb(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        """Return one candidate [b, *f] per point; those outside the threat model are none."""

    @abstractmethod
    def strength(self, threat: Threat, classes: int) -> dict[str, Any]:
        """Return what the attack's power depends on, as the library will use it."""

    def library(self) -> ModuleType:
        """Import the library (a UsageError with the cure where that fails)."""
        return library(self.package, self.extra)


def candidates(
    attack: ExternalAttack, model: nn.Module, batch: Batch, threat: Threat, spec: str
) -> Images:
    """Run `attack`, with every generator of random numbers seeded and put back afterwards.

    Raises:
        RobustkitError: when the library fails, or returns something else than a batch of inputs.
    """
    try:
        with quiet(), seeded(batch.seed):
            found: object = attack.perturb(model, batch, threat)
    except RobustkitError:
        raise
    except torch.cuda.OutOfMemoryError:
        raise RobustkitError(
            f"{spec}: out of memory with {len(batch.x)} points at once; ask for fewer: "
            f"batch_size={max(1, attack.batch_size // 2)} in the spec."
        ) from None
    except (Exception, SystemExit) as error:
        raise RobustkitError(f"{spec} fails inside {attack.package}: {failure(error)}.") from error
    if not isinstance(found, torch.Tensor) or found.shape != batch.x.shape:
        got = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise RobustkitError(f"{spec}: expected candidates {list(batch.x.shape)}, got {got}.")
    return found.detach().to(batch.x)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python, and put their states back."""
    kept = process_state.generators()
    try:
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield
    finally:
        process_state.set_generators(kept)


_POWER = {
    **{"steps": "steps", "n_iter": "steps", "max_iter": "steps", "iters": "steps"},
    **{"least_steps": "least_steps"},  # of every run, where the others depend on them
    **{"queries": "queries", "n_queries": "queries", "max_queries": "queries"},
    **{"restarts": "restarts", "n_restarts": "restarts", "times": "restarts"},
    **{"targets": "targets", "n_target_classes": "targets"},
    **{"eot": "eot", "eot_iter": "eot", "binary_search_steps": "binary_search_steps"},
    **{"alpha": "step_size", "stepsize": "step_size", "step_size": "step_size"},
    **{"abs_stepsize": "step_size", "rel_stepsize": "relative_step_size"},
    **{"loss": "loss", "surrogate": "surrogate"},
}


# What ends runs of ours before their budget; where it is 0, nothing does.
EARLY = ("within", "outlook", "patience")


def power(thing: object) -> dict[str, Any]:
    """Read the attributes of an attack, ours or another's, that its power depends on."""
    found: dict[str, Any] = {name: end for name in EARLY if (end := getattr(thing, name, 0))}
    for attribute, name in _POWER.items():
        value = getattr(thing, attribute, None)
        if isinstance(value, int | float | str) and value != "":
            found[name] = value
    return found


def strength(attack: Any, threat: Threat, classes: int) -> dict[str, Any]:
    """Return the fingerprint of an attack, ours or another's: what its power depends on."""
    if isinstance(attack, ExternalAttack):
        return attack.strength(threat, classes)
    jobs = attack.jobs(threat, classes)
    if enumerates(attack):
        return {"variants": len(jobs)}
    targets = len({job.rank for job in jobs if job.rank})
    restarts = len({job.restart for job in jobs})
    return {**power(attack), "targets": targets, "restarts": restarts}
