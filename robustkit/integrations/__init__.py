"""Where robustkit meets other tools: pytest, Lightning, experiment loggers, packs of third parties.

Enters: a model in training or under test, or somebody's pack.
Leaves: assertions, logged numbers, a verdict on the pack.
Read first: monitor.py, then testing.py and conformance/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkit.core.lazy import exports

if TYPE_CHECKING:
    from robustkit.integrations.loggers import log_record, scalars
    from robustkit.integrations.monitor import RobustnessMonitor
    from robustkit.integrations.testing import assert_robust

__all__ = ["RobustnessMonitor", "assert_robust", "log_record", "scalars"]
__getattr__, __dir__ = exports(
    __name__,
    {
        "RobustnessMonitor": "monitor",
        "assert_robust": "testing",
        "log_record": "loggers",
        "scalars": "loggers",
    },
)
