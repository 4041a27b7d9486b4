"""What a candidate is worth, and what a model is worth as a subject of attacks.

Enters: candidates from a search; the original model.
Leaves: verdicts by a fresh float32 forward pass; flags: reasons to distrust an evaluation.
Read first: candidates.py, then flags.py and diagnostics/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkit.core.lazy import exports

if TYPE_CHECKING:
    from robustkit.verify.candidates import verify
    from robustkit.verify.flags import FLAGS, Flag, reliability

__all__ = ["FLAGS", "Flag", "reliability", "verify"]
__getattr__, __dir__ = exports(
    __name__,
    {"FLAGS": "flags", "Flag": "flags", "reliability": "flags", "verify": "candidates"},
)
