"""What a run over several eps knows of every point: a radius proved, and a distance that breaks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic

from robustkit.core import files
from robustkit.record.schema import Count, Part

NAME = "radii.json"  # in the folder of the grid


class Radii(Part):
    """One entry per point, as parallel columns; see `robustkit.evaluation.radii.bisect`.

    Attributes:
        run: digest of the evidence that the brackets come from.
        index: position in the data set.
        certified: the point is proved robust within this radius; 0: nothing is proved.
        adversarial: distance of the nearest verified adversarial input; 0: the clean point is
            misclassified; None: none was found up to the largest eps.
        open: the smallest radius at which the certificate was tried and proved nothing; None: it
            holds at the largest eps.
        rounds: bisections done.
    """

    schema_id: Literal["robustkit/radii/1"] = pydantic.Field(
        default="robustkit/radii/1", alias="schema"
    )
    run: str
    certificate: str
    index: list[Count]
    label: list[Count]
    certified: list[float]
    adversarial: list[float | None]
    open: list[float | None]
    rounds: int = 0

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> Radii:
        lengths = {len(c) for c in (self.index, self.label, self.certified, self.adversarial)}
        if len(lengths | {len(self.open)}) > 1:
            raise ValueError("columns of equal length expected")
        for index, low, high in zip(self.index, self.certified, self.adversarial, strict=True):
            if high is not None and low > high:
                raise ValueError(f"point {index} is proved within {low} and broken at {high}")
        return self


def read(folder: Path) -> Radii | None:
    """Return the radii that lie in the folder of a grid; None where none do, or no whole ones."""
    try:
        return Radii.model_validate_json((folder / NAME).read_bytes())
    except (OSError, pydantic.ValidationError):
        return None


def write(radii: Radii, folder: Path) -> None:
    """Write radii into the folder of a grid.

    Raises:
        RobustkitError: when the file cannot be written.
    """
    files.write(radii.model_dump_json(by_alias=True).encode(), folder / NAME)
