"""The verdicts of a gate as files that CI systems read: JUnit XML, SARIF, Markdown."""

from __future__ import annotations

from robustkit.gate.formats.junit import to_junit
from robustkit.gate.formats.markdown import to_markdown
from robustkit.gate.formats.sarif import to_sarif

__all__ = ["to_junit", "to_markdown", "to_sarif"]
