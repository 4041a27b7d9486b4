"""Records side by side: rows, tables, curves, history, published results, the report page.

Enters: records.
Leaves: rows with intervals and ranks, as CSV, Markdown, LaTeX, JSON, HTML and figures.
Read first: rows.py, then formats.py and report/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkit.core.lazy import exports

if TYPE_CHECKING:
    from robustkit.leaderboard.formats import to_csv, to_json, to_latex, to_markdown
    from robustkit.leaderboard.rows import Row, robust_interval, row

__all__ = ["Row", "robust_interval", "row", "to_csv", "to_json", "to_latex", "to_markdown"]
__getattr__, __dir__ = exports(
    __name__,
    {
        "Row": "rows",
        "robust_interval": "rows",
        "row": "rows",
        "to_csv": "formats",
        "to_json": "formats",
        "to_latex": "formats",
        "to_markdown": "formats",
    },
)
