"""Attacks: the protocol they follow, the engine that runs them, the suites that choose them.

Enters: a model, tasks (a point and a job each), a threat model.
Leaves: candidates; whether one counts is decided in robustkit.verify.
Read first: protocol.py, then engine.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkit.core.lazy import exports

if TYPE_CHECKING:
    from robustkit.search.engine import Engine
    from robustkit.search.functional import attack
    from robustkit.search.protocol import Job, Reply, Search, Tasks
    from robustkit.search.suites import LineUp, line_up

__all__ = ["Engine", "Job", "LineUp", "Reply", "Search", "Tasks", "attack", "line_up"]
__getattr__, __dir__ = exports(
    __name__,
    {
        "Engine": "engine",
        "Job": "protocol",
        "LineUp": "suites",
        "Reply": "protocol",
        "Search": "protocol",
        "Tasks": "protocol",
        "attack": "functional",
        "line_up": "suites",
    },
)
