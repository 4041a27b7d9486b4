"""The evidence: the ledger that a run writes as it goes, and the record it ends in.

Enters: verdicts, as they are reached.
Leaves: ledger.sqlite and record.json; adversarial inputs to read back.
Read first: record.py, then ledger.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkit.core.lazy import exports

if TYPE_CHECKING:
    from robustkit.record.adversarial import adversarial_inputs
    from robustkit.record.ledger import Ledger
    from robustkit.record.points import Points, Status
    from robustkit.record.record import Record, load, save
    from robustkit.record.schema import DataInfo, Stage, ThreatInfo, WeightsInfo

__all__ = [
    "DataInfo",
    "Ledger",
    "Points",
    "Record",
    "Stage",
    "Status",
    "ThreatInfo",
    "WeightsInfo",
    "adversarial_inputs",
    "load",
    "save",
]
__getattr__, __dir__ = exports(
    __name__,
    {
        "DataInfo": "schema",
        "Ledger": "ledger",
        "Points": "points",
        "Record": "record",
        "Stage": "schema",
        "Status": "points",
        "ThreatInfo": "schema",
        "WeightsInfo": "schema",
        "adversarial_inputs": "adversarial",
        "load": "record",
        "save": "record",
    },
)
