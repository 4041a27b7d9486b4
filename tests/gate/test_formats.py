"""What CI systems read: JUnit XML, SARIF 2.1.0 and Markdown, whatever the names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

from robustkit.gate.criteria import METRICS
from robustkit.gate.formats.junit import to_junit
from robustkit.gate.formats.markdown import MARKER, to_markdown
from robustkit.gate.formats.sarif import to_sarif
from robustkit.gate.verdict import ChangedPoint, GateVerdict, MetricFinding

GOOD = MetricFinding("robust", "pass", 0.01, 0.8, 0.8, -0.009, 0.009, 0, 0, 300, 1000)
BAD = MetricFinding("robust", "regressed", 0.01, 0.8, 0.7, 0.02, 0.2, 11, 1, 100, 1000)
OPEN = MetricFinding("clean", "undecided", 0.01, 0.9, 0.89, -0.1, 0.1, 1, 0, 100, 1000, more=900)
FLAG = MetricFinding("flags", "regressed", 0.0, n=100, total=1000, detail="chance, which is new")
NASTY = 'a<b> & "c" | `d` \x00\x1b[31m\n:e'


def verdict(answer: Any, *findings: MetricFinding, **more: Any) -> GateVerdict:
    facts = {
        "candidate": "net.py:make",
        "baseline": "pgd_at",
        "data": "bundled",
        "threat": "linf:0.1",
        "suite": "quick",
        "confidence": 0.95,
        "claim": "points",
        "n": 100,
        "total": 1000,
        "ended": "the answer was certain",
        "seconds": 3.5,
        "forwards": 1234,
        "replayed": 7,
        "weakest": (("shirt", 0.1),),
        "baseline_record": "kept/record.json",
        "model_file": "net.py",
        **more,
    }
    return GateVerdict(answer=answer, findings=findings, **facts)


VERDICTS = [
    verdict("pass", GOOD),
    verdict("regressed", BAD, FLAG, candidate=NASTY),
    verdict("undecided", GOOD, OPEN, model_file=""),
]


@pytest.mark.parametrize(
    ("undecided", "kind", "counts"),
    [
        ("error", "error", {"tests": "5", "failures": "2", "errors": "1"}),
        ("fail", "failure", {"tests": "5", "failures": "3", "errors": "0"}),
        ("pass", "skipped", {"tests": "5", "failures": "2", "errors": "0"}),
    ],
)
def test_junit(undecided: str, kind: str, counts: dict[str, str]) -> None:
    root = ElementTree.fromstring(to_junit(VERDICTS, undecided).encode())
    assert root.tag == "testsuites"
    assert {key: root.attrib[key] for key in counts} == counts
    assert len(root.findall("testsuite")) == 3
    for suite in root:
        cases = suite.findall("testcase")
        assert suite.attrib["tests"] == str(len(cases))
        found = [child.tag for case in cases for child in case]
        assert suite.attrib["failures"] == str(found.count("failure"))
        assert suite.attrib["errors"] == str(found.count("error"))
        assert suite.attrib["skipped"] == str(found.count("skipped"))
        assert all({"name", "classname", "time"} <= set(case.attrib) for case in cases)
    (last,) = root[2].findall("testcase")[1]
    assert last.tag == kind
    assert "clean 0.900 → 0.890" in last.attrib["message"]


def sarif_schema() -> dict[str, Any]:
    """What SARIF 2.1.0 demands of the parts that are used here (OASIS, sections 3.13 to 3.27)."""
    text = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}}
    rule = {
        "type": "object",
        "required": ["id"],
        "properties": {
            "id": {"type": "string"},
            "name": {"type": "string"},
            "shortDescription": text,
            "fullDescription": text,
        },
        "additionalProperties": False,
    }
    place = {
        "type": "object",
        "required": ["physicalLocation"],
        "properties": {
            "physicalLocation": {
                "type": "object",
                "required": ["artifactLocation"],
                "properties": {
                    "artifactLocation": {
                        "type": "object",
                        "required": ["uri"],
                        "properties": {"uri": {"type": "string", "pattern": '^[^\\s<>"]+$'}},
                    },
                    "region": {
                        "type": "object",
                        "properties": {"startLine": {"type": "integer", "minimum": 1}},
                    },
                },
            }
        },
    }
    result = {
        "type": "object",
        "required": ["message", "ruleId"],
        "properties": {
            "ruleId": {"enum": list(METRICS)},
            "ruleIndex": {"type": "integer", "minimum": 0},
            "level": {"enum": ["none", "note", "warning", "error"]},
            "message": text,
            "locations": {"type": "array", "items": place},
            "partialFingerprints": {
                "type": "object",
                "additionalProperties": {"type": "string"},
            },
            "properties": {"type": "object"},
        },
        "additionalProperties": False,
    }
    driver = {
        "type": "object",
        "required": ["name"],
        "properties": {"rules": {"type": "array", "items": rule, "uniqueItems": True}},
    }
    run = {
        "type": "object",
        "required": ["tool", "results"],
        "properties": {
            "tool": {"type": "object", "required": ["driver"], "properties": {"driver": driver}},
            "results": {"type": "array", "items": result},
            "columnKind": {"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
        },
    }
    return {
        "type": "object",
        "required": ["version", "runs"],
        "properties": {
            "$schema": {"type": "string"},
            "version": {"const": "2.1.0"},
            "runs": {"type": "array", "items": run},
        },
        "additionalProperties": False,
    }


def test_sarif() -> None:
    log = json.loads(to_sarif(VERDICTS))
    jsonschema.validate(log, sarif_schema())
    (run,) = log["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    found = [(result["ruleId"], result["level"]) for result in run["results"]]
    assert found == [("robust", "error"), ("flags", "error"), ("clean", "warning")]
    assert all(rules[result["ruleIndex"]] == result["ruleId"] for result in run["results"])
    uris = [
        result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        for result in run["results"]
    ]
    assert uris == ["net.py", "net.py", "kept/record.json"]


def test_sarif_paths_are_relative_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file, uri in (
        (tmp_path / "my models" / "net.py", "my%20models/net.py"),
        (tmp_path.parent / "else.py", (tmp_path.parent / "else.py").as_uri()),
    ):
        log = json.loads(to_sarif([verdict("regressed", BAD, model_file=str(file))]))
        place = log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
        assert place["artifactLocation"]["uri"] == uri


def test_markdown() -> None:
    text = to_markdown(VERDICTS)
    lines = text.splitlines()
    assert lines[0] == MARKER
    assert lines[1] == "### Robustness: 1 regressed, 1 undecided, 1 passed"
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 2 + 5
    head = "| net.py:make | robust | ✅ pass | 0.8000 | 0.8000 | 0.0000 | -0.0090 to 0.0090 |"
    assert rows[2] == f"{head} 300 of 1000 |"
    assert "Weakest classes: shirt (0.10)." in text
    assert "95% confidence" in text


def test_no_name_is_markup() -> None:
    text = to_markdown([VERDICTS[1]])
    assert "<b>" not in text and "\x1b" not in text and "\x00" not in text
    assert r"\`d\`" in text and r"\|" in text
    ElementTree.fromstring(to_junit([VERDICTS[1]]).encode())


def test_all_pass_is_one_line_and_one_row() -> None:
    text = to_markdown([replace(VERDICTS[0], claim="population")])
    assert "### Robustness: 1 passed" in text
    assert "their population" in text
    assert json.loads(to_sarif(VERDICTS[:1]))["runs"][0]["results"] == []


def test_markdown_lists_the_points_that_changed() -> None:
    """Lost ones first, and no more than a comment has room for."""
    gained = ChangedPoint(3, NASTY, "misclassified", "robust")
    lost = [ChangedPoint(p, "shirt", "robust", "broken", "fgsm(x=1)") for p in range(40)]
    text = to_markdown([verdict("regressed", BAD, changed=(*lost, gained))])
    assert "<summary>net.py:make: 40 points lost, 1 gained</summary>" in text
    assert "| 0 | shirt | robust | broken by fgsm |" in text
    assert "11 more: compare the two records." in text
    short = to_markdown([verdict("improved", GOOD, changed=(gained,))])
    (line,) = (line for line in short.splitlines() if line.startswith("| 3 |"))
    assert "<b>" not in line and line.endswith("| misclassified | robust |")
    assert "<details>" not in to_markdown([verdict("pass", GOOD)])
