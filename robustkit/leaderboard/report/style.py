"""How figures look on paper: small, in vector form, told apart without color, reproducible."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustkit.core import files
from robustkit.leaderboard.report.optional import need

FORMATS = ("png", "svg", "pdf")
COLUMN = 3.25  # inches: one column of a two-column paper
_RC: dict[str, Any] = {
    **{"font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7},
    **{"xtick.labelsize": 7, "ytick.labelsize": 7, "font.family": "serif"},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6},
    **{"xtick.major.width": 0.6, "ytick.major.width": 0.6, "lines.linewidth": 1.0},
    **{"legend.frameon": False, "hatch.linewidth": 0.5, "axes.grid": False},
    **{"pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "robustkit"},
    **{"text.parse_math": False, "text.usetex": False},  # a name is a name, dollars and all
}
_DATELESS: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw inside with the style of this module, whatever the user's own settings are."""
    matplotlib = need("matplotlib")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


def canvas(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """Return an empty figure (inches) and its axes; no window and no global state is involved."""
    figure = need("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Any, path: Path, kind: str) -> None:
    """Write `figure` as `kind`; the same figure gives the same bytes.

    Raises:
        RobustkitError: when the file cannot be written.
    """
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands for it
        figure.savefig(file, format=kind, dpi=300, bbox_inches="tight", metadata=_DATELESS[kind])
    files.write(file.getvalue(), path)
