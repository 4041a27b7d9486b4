"""Markdown for the summary of a CI step, or for a comment on a pull request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from robustkit.gate.verdict import Failure, GateVerdict, MetricFinding
from robustkit.leaderboard.formats import markdown_text, piped

_MARKS = {"pass": "✅ pass", "improved": "✅ improved", "regressed": "❌ regressed",
          "undecided": "⚠️ undecided"}  # fmt: skip
_UNFINISHED = "⚠️ could not finish"
_HEADS = ("model", "metric", "verdict", "baseline", "candidate", "drop", "bounds", "points")
MARKER = "<!-- robustkit check -->"
_MOST = 30  # points of a model that are listed: a comment holds 65,536 characters


def to_markdown(verdicts: Sequence[GateVerdict], failures: Sequence[Failure] = ()) -> str:
    """Write a heading, a table with a row for each metric, and a sentence for each that fails.

    A model that could not be evaluated has a row and a sentence too. The points that a model has
    lost or gained follow, folded.

    The first line is an invisible marker: by it a bot finds the comment that it has to replace.
    """
    lines = [MARKER, f"### Robustness: {_headline(verdicts, len(failures))}", ""]
    lines += [piped(_HEADS), piped(["---"] * 3 + ["---:"] * 5)]
    lines += [piped(_cells(v, finding)) for v in verdicts for finding in v.findings]
    lines += [piped([markdown_text(f.candidate), "", _UNFINISHED, *[""] * 5]) for f in failures]
    lines += [line for f in failures for line in ("", markdown_text(f"{f.candidate}: {f.message}"))]
    for verdict in verdicts:
        if verdict.answer in ("regressed", "undecided"):
            lines += ["", markdown_text(verdict.sentence())]
    for verdict in verdicts:
        lines += _changed(verdict)
    for confidence, claim in sorted({(v.confidence, v.claim) for v in verdicts}):
        about = "the baseline's own points" if claim == "points" else "their population"
        lines += [
            "",
            f"<sub>Bounds of the drop on {about}; each holds with {confidence:.0%} confidence, "
            "whenever the run stopped.</sub>",
        ]
    return "\n".join(lines) + "\n"


def _headline(verdicts: Sequence[GateVerdict], unfinished: int) -> str:
    answers = [verdict.answer for verdict in verdicts]
    told = [
        f"{answers.count(answer)} {answer}"
        for answer in ("regressed", "undecided", "improved", "pass")
        if answer in answers
    ]
    told += [f"{unfinished} could not finish"] if unfinished else []
    return ", ".join(told).replace("pass", "passed")


def _changed(verdict: GateVerdict) -> Iterator[str]:
    """Write the points that only one of baseline and candidate is robust on, lost ones first."""
    changed = verdict.changed
    if not changed:
        return
    lost = sum(change.lost for change in changed)
    told = f"{lost} points lost, {len(changed) - lost} gained"
    yield from ("", "<details>", f"<summary>{markdown_text(verdict.candidate)}: {told}</summary>")
    yield from (
        "",
        piped(("point", "class", "baseline", "candidate")),
        piped(["---:"] + ["---"] * 3),
    )
    for change in changed[:_MOST]:
        attack = change.attack.partition("(")[0]
        now = f"{change.now} by {attack}" if attack else change.now
        cells = (str(change.point), change.label, change.before, now)
        yield piped(map(markdown_text, cells))
    if len(changed) > _MOST:
        yield from ("", f"{len(changed) - _MOST} more: compare the two records.")
    yield from ("", "</details>")


def _cells(verdict: GateVerdict, finding: MetricFinding) -> list[str]:
    cells = [markdown_text(verdict.candidate), finding.metric, _MARKS[finding.answer]]
    if finding.drop is None or finding.low is None or finding.high is None:
        return [*cells, "", "", "", markdown_text(finding.detail), f"{finding.n}"]
    return [
        *cells,
        f"{finding.baseline:.4f}",
        f"{finding.candidate:.4f}",
        f"{finding.drop:.4f}",
        f"{finding.low:.4f} to {finding.high:.4f}",
        f"{finding.n} of {finding.total}",
    ]
