"""The certificate of a union of threat models: one for each member, and all must hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from robustkit.certify.declared import METHODS
from robustkit.core.named import NamedThreat
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels, Mask
from robustkit.errors import UsageError

if TYPE_CHECKING:
    from robustkit.certify.certifier import Certifier

_METHODS = tuple(method for method in METHODS if method != "complete")  # that takes one ball


@dataclass(frozen=True)
class JointCertifier:
    """Certificates of one model for all members of a union; a point is proved if all prove it."""

    parts: tuple[Certifier, ...]
    name: str

    @property
    def method(self) -> str:
        """The same for all members."""
        return self.name

    @property
    def batch(self) -> int:
        """The least of theirs."""
        return min(part.batch for part in self.parts)

    def at(self, threat: Threat) -> JointCertifier:
        """Return the same certificates for another union of as many."""
        assert isinstance(threat, NamedThreat)
        pairs = zip(self.parts, threat.members, strict=True)
        return replace(self, parts=tuple(part.at(member) for part, member in pairs))

    def prove(self, x: Images, y: Labels) -> Mask:
        """Return for which points every certificate holds [b]."""
        holds = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for part in self.parts:
            rows = holds.nonzero().flatten()
            if not len(rows):
                break
            holds[rows] = part.prove(x[rows], y[rows])
        return holds


def joint_certifier(
    threat: NamedThreat, method: str, build: Callable[[Threat, str], Certifier | None]
) -> JointCertifier | None:
    """Return a certificate for all members; None where one has none and nobody insists ("quick").

    Other threat models without a ball have no members, and none.

    Args:
        build: returns the certificate of one member.

    Raises:
        UsageError: where a certificate is asked for that a member has not, or branch and bound.
    """
    if not threat.members:
        if method == "quick":
            return None
        raise threat.refusal(f"a certificate (--certify {method})")
    if method not in _METHODS:
        raise UsageError(
            f"--certify {method}: {threat} unites several threat models, all of which must be "
            f"proved: expected one of {', '.join(_METHODS)}."
        )
    parts = [build(member, method) for member in threat.members]
    known = tuple(part for part in parts if part is not None)
    return JointCertifier(known, method) if len(known) == len(parts) else None
