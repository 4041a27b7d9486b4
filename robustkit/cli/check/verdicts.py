"""How the verdicts of a gate look in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from robustkit.core.terminal_table import TerminalTable
from robustkit.core.text import with_interval
from robustkit.gate.verdict import GateVerdict, MetricFinding

_STYLES = {"pass": "green", "improved": "green", "regressed": "bold red", "undecided": "yellow"}
_HEADS = ("model", "metric", "verdict", "baseline", "candidate", "drop", "points")


def show(verdicts: Sequence[GateVerdict], console: Console) -> None:
    """Print a table with a row for each metric, and a sentence for each model."""
    table = TerminalTable(*_HEADS, least=("points", "baseline"), whole=_HEADS[1:], lined=True)
    for verdict in verdicts:
        for number, finding in enumerate(verdict.findings):
            cells = _cells(finding)
            table.add_row(
                "" if number else verdict.candidate,
                finding.metric,
                Text(finding.answer, _STYLES[finding.answer]),
                *cells,
            )
    console.print(table)
    for verdict in verdicts:
        line = Text.assemble((f"{verdict.answer}: ", _STYLES[verdict.answer]), verdict.sentence())
        console.print(line, soft_wrap=True, highlight=False)
        console.print(Text(_cost(verdict)), soft_wrap=True, highlight=False)


def _cells(finding: MetricFinding) -> list[str]:
    points = f"{finding.n} of {finding.total}"
    if finding.drop is None or finding.low is None or finding.high is None:
        return ["", "", finding.detail, points]
    bounds = with_interval(finding.drop, finding.low, finding.high, digits=4)
    return [f"{finding.baseline:.4f}", f"{finding.candidate:.4f}", bounds, points]


def _cost(verdict: GateVerdict) -> str:
    told = f"{verdict.ended}; {verdict.seconds:.1f} s, {verdict.forwards:,} forward passes"
    replayed = f", {verdict.replayed} points broken by stored inputs" if verdict.replayed else ""
    return f"{told}{replayed}. Record: {verdict.record}"
