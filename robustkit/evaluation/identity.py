"""What a run is known by: the facts its verdicts depend on, and the folder named after them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from robustkit.certify.certifier import Certifier
from robustkit.core.named import NamedThreat
from robustkit.core.packages import own_version
from robustkit.core.text import slug
from robustkit.core.threat import Threat
from robustkit.evaluation.carry_over import Carried
from robustkit.evaluation.prepare import Prepared
from robustkit.evaluation.settings import Settings
from robustkit.evaluation.stages.replay import Examples
from robustkit.search.suites import LineUp

RUNS = Path("robustkit-runs")


def default_folder(
    data: str, threat: str, suite: str | None, n: int, seed: int, identity: Mapping[str, Any]
) -> Path:
    """Return the folder of a run that was given none; the same run comes back to it.

    Args:
        threat: such as "linf:0.1"; of several eps "linf:0.1-0.3".
        identity: all that the verdicts depend on; its digest ends the name.
    """
    norm, _, eps = threat.partition(":")
    code = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
    return RUNS / slug(f"{data}-{norm}-{eps}-{suite or 'attacks'}-{n}-s{seed}-{code[:8]}")


def folder_before_line_up(
    settings: Settings, prepared: Prepared, radii: Sequence[Threat], line: LineUp
) -> Path:
    """Return the default folder of a run whose line-up is still to be settled.

    Args:
        radii: of a run over several eps all of them, the largest first.
    """
    facts: dict[str, Any] = {
        "defense": settings.name,
        "source": source_of(settings),
        "weights": prepared.weights.digest,
        "data": prepared.content,
        "radii": [radius.facts() for radius in radii],
        "attacks": [str(spec) for spec in line.specs],
        "certify": settings.certify,
        "attack_certified": settings.attack_certified,
    }
    if prepared.sources:
        facts["sources"] = dict(prepared.sources)
    first, last = radii[0], radii[-1]
    threat = str(first) if first == last else f"{first.norm}:{last.eps:.6g}-{first.eps:.6g}"
    return folder_of(settings, prepared, threat, facts)


def folder_of(
    settings: Settings, prepared: Prepared, threat: str, identity: Mapping[str, Any]
) -> Path:
    """Return the default folder of one model's run."""
    n = len(prepared.points)
    place = default_folder(settings.data.name, threat, settings.suite, n, settings.seed, identity)
    return place / slug(settings.name)


def identity(
    settings: Settings,
    prepared: Prepared,
    line: LineUp,
    prover: Certifier | None,
    examples: Examples | None,
    carried: Carried | None,
) -> dict[str, Any]:
    """Return what every verdict depends on: a ledger goes on only where all of it is the same."""
    source = source_of(settings)
    facts: dict[str, Any] = {"source": source} if source else {}
    facts |= {
        "robustkit": own_version(),
        "defense": settings.name,
        "weights": prepared.weights.digest,
        "data": prepared.content,
        "n": len(prepared.points),
        "threat": settings.threat.facts(),
        "seed": settings.seed,
        "attacks": [str(spec) for spec in line.specs],
    }
    if isinstance(settings.threat, NamedThreat) and (content := settings.threat.digest()):
        facts["variants"] = content
    if prepared.sources:
        facts["sources"] = dict(prepared.sources)
    if line.audit:
        facts["audit"] = asdict(line.audit)
    if line.findings is not None:
        facts["findings"] = line.findings.stored()
    if prover:
        facts |= {"certify": prover.name, "attack_certified": settings.attack_certified}
    if examples:
        facts["replay"] = examples.digest()
    if settings.minimum_norm:
        facts["minimum_norm"] = True
    if carried:
        facts["eps_grid"] = list(carried.grid)
    return facts


def source_of(settings: Settings) -> str | None:
    """SHA-256 of the file that the model was loaded from, if its name or the request names one."""
    return source_digest(str(settings.arguments.get("model") or settings.name))


def source_digest(name: str) -> str | None:
    """SHA-256 of the file in a model's name such as `path/to/file.py:attr`; None: no file there."""
    file = name.rpartition(":")[0]
    path = Path(file).expanduser()
    if not file.endswith(".py") or not path.is_file():
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest()
