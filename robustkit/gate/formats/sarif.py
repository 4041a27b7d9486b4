"""SARIF 2.1.0: one result for each metric that has regressed or is undecided."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from robustkit.core.packages import own_version
from robustkit.core.text import cleaned, shown_json
from robustkit.gate.criteria import METRICS
from robustkit.gate.verdict import Failure, GateVerdict, MetricFinding

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def to_sarif(verdicts: Sequence[GateVerdict], failures: Sequence[Failure] = ()) -> str:
    """Write the verdicts as a SARIF 2.1.0 log.

    A result points to the file of the model, or to the baseline's record for a model that has no
    file of its own. A model that could not be evaluated is a notification of the run.
    """
    rules = [
        {
            "id": metric,
            "name": metric.title().replace("-", ""),
            "shortDescription": {"text": f"{metric} must not regress"},
            "fullDescription": {"text": f"{metric}: {meaning}."},
        }
        for metric, meaning in METRICS.items()
    ]
    results = [
        _result(verdict, finding)
        for verdict in verdicts
        for finding in verdict.findings
        if finding.answer in ("regressed", "undecided")
    ]
    driver = {"name": "robustkit", "version": own_version(), "rules": rules}
    run = {"tool": {"driver": driver}, "results": results, "columnKind": "unicodeCodePoints",
           "invocations": [_invocation(failures)]}  # fmt: skip
    log = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}
    return shown_json(cleaned(log))


def _result(verdict: GateVerdict, finding: MetricFinding) -> dict[str, Any]:
    place = verdict.model_file or verdict.baseline_record
    return {
        "ruleId": finding.metric,
        "ruleIndex": list(METRICS).index(finding.metric),
        "level": "error" if finding.answer == "regressed" else "warning",
        "message": {"text": f"{verdict.candidate}: {finding.answer}. {finding.sentence()}."},
        "locations": [_location(place)],
        "partialFingerprints": {"robustkit/v1": f"{verdict.candidate}/{finding.metric}"},
        "properties": {"n": finding.n, "total": finding.total, "drop": finding.drop},
    }


def _invocation(failures: Sequence[Failure]) -> dict[str, Any]:
    told = [
        {
            "level": "error",
            "message": {"text": f"{failure.candidate}: {failure.message}"},
            **({"locations": [_location(failure.model_file)]} if failure.model_file else {}),
        }
        for failure in failures
    ]
    return {"executionSuccessful": not failures, "toolExecutionNotifications": told}


def _location(place: str) -> dict[str, Any]:
    location = {"artifactLocation": {"uri": _uri(place)}, "region": {"startLine": 1}}
    return {"physicalLocation": location}


def _uri(place: str) -> str:
    """Return a path as a reference, relative to the working folder where it lies in it."""
    path = Path(place)
    if path.is_absolute():
        try:
            path = path.relative_to(Path.cwd())
        except ValueError:
            return path.as_uri()
    return quote(path.as_posix())
