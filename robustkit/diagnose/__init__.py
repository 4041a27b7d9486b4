"""Reasons to distrust an evaluation, as structured flags (`robustkit.flags` is their catalog).

`examine` looks at a few points before the attacks run. State lives in the return values only, so
nothing leaks from one model to the next.
"""

from robustkit.diagnose.examination import Health, examine, look, look_again

__all__ = ["Health", "examine", "look", "look_again"]
