"""Reasons to distrust a model as a subject of attacks, found on a few points before they run.

Enters: the model and some clean inputs.
Leaves: a diagnosis: flags (robustkit.verify.flags is their catalog), logits, and what it cost.
Read first: probe.py. State lives in the return values only: nothing leaks to the next model.
"""

from __future__ import annotations

from robustkit.verify.diagnostics.probe import Diagnosis, examine, look, recheck

__all__ = ["Diagnosis", "examine", "look", "recheck"]
