"""What made the adversarial inputs of a threat model with parameters, for the record."""

from __future__ import annotations

from collections.abc import Sequence

from robustkit.core.parametric import ParametricThreat
from robustkit.evaluation.settings import Settings
from robustkit.evaluation.stages.stage import PointSource
from robustkit.record.ledger_reader import LedgerReader


def found_parameters(
    settings: Settings, data: PointSource, ledger: LedgerReader, index: Sequence[int]
) -> list[list[int] | None] | None:
    """Return the parameters of the stored input of each point in `index`, in thousandths.

    None for a point without one, and for all other threat models.
    """
    threat = settings.threat
    if not isinstance(threat, ParametricThreat):
        return None
    told = {
        point: threat.positions(z[None], data.fetch([point])[0])[0][0].tolist()
        for point, z in ledger.examples(settings.data.shape, index).items()
    }
    return [told.get(point) for point in index]
