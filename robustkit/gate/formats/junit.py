"""JUnit XML: one suite for each model, one test case for each metric."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from robustkit.core.text import clean_lines
from robustkit.gate.verdict import Failure, GateVerdict, MetricFinding

_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(
    verdicts: Sequence[GateVerdict], undecided: str = "error", failures: Sequence[Failure] = ()
) -> str:
    """Write the verdicts as JUnit XML.

    A regression is a failure. An undecided metric is an error, a failure or a skipped test, as
    `undecided` says ("error", "fail", "pass"). A model that could not be evaluated is an error.
    """
    root = ElementTree.Element("testsuites", name="robustkit check")
    totals = {"tests": 0, "failures": 0, "errors": 0}
    for verdict in verdicts:
        suite = ElementTree.SubElement(
            root, "testsuite", name=_clean(verdict.candidate), time=f"{verdict.seconds:.3f}"
        )
        properties = ElementTree.SubElement(suite, "properties")
        for name in ("baseline", "data", "threat", "suite", "n", "total", "ended"):
            value = _clean(str(getattr(verdict, name)))
            ElementTree.SubElement(properties, "property", name=name, value=value)
        counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
        for finding in verdict.findings:
            counts["tests"] += 1
            kind = _case(suite, verdict, finding, undecided)
            if kind is not None:
                counts[{"failure": "failures", "error": "errors"}.get(kind, "skipped")] += 1
        suite.attrib.update({name: str(count) for name, count in counts.items()})
        totals = {name: count + counts[name] for name, count in totals.items()}
    for failure in failures:
        _error(root, failure)
        totals = {**totals, "tests": totals["tests"] + 1, "errors": totals["errors"] + 1}
    root.attrib.update({name: str(count) for name, count in totals.items()})
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, "unicode")}\n'


def _case(
    suite: ElementTree.Element, verdict: GateVerdict, finding: MetricFinding, undecided: str
) -> str | None:
    seconds = verdict.seconds / len(verdict.findings)
    case = ElementTree.SubElement(
        suite,
        "testcase",
        name=finding.metric,
        classname=_clean(f"robustkit.{verdict.candidate}"),
        time=f"{seconds:.3f}",
    )
    kind = {
        "regressed": "failure",
        "undecided": {"error": "error", "fail": "failure", "pass": "skipped"}[undecided],
    }.get(finding.answer)
    if kind is None:
        return None
    told = ElementTree.SubElement(case, kind, message=_clean(finding.sentence()))
    if kind != "skipped":
        told.set("type", finding.answer)
    told.text = _clean(verdict.sentence())
    return kind


def _error(root: ElementTree.Element, failure: Failure) -> None:
    name = _clean(failure.candidate)
    counts = {"tests": "1", "failures": "0", "errors": "1", "skipped": "0"}
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, "time": "0.000", **counts})
    told = {"name": "evaluation", "classname": f"robustkit.{name}", "time": "0.000"}
    case = ElementTree.SubElement(suite, "testcase", told)
    message = _clean(failure.message)
    ElementTree.SubElement(case, "error", message=message, type="unfinished").text = message


def _clean(text: str) -> str:
    """Leave out what XML cannot hold, and what would act on whoever prints it."""
    return _ILLEGAL.sub("", clean_lines(text))
