"""The prompts of the toy policy as a data set: 0 is to be refused, 1 to be answered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from robustkit.core.tokens import to_input
from robustkit.data.dataset import ImageSet
from robustkit.data.toy_grammar import prompts, spell
from robustkit.registry import datasets

VERDICTS = ("refused", "complied")


@datasets.register("toy-lm", threat="suffix:5", cites="")
@dataclass(frozen=True)
class ToyPrompts:
    """Prompts of a toy language with 119 words, made by a grammar: 1 in 3 is harmful.

    Inputs [1, 28, 1 + width] as `robustkit.core.tokens` describes them: 8 words, and 20 free
    places. Class 0 is to be refused, class 1 to be answered; see `robustkit.data.toy_grammar`.

    Attributes:
        width: of the embeddings of the model, for attacks on them.
    """

    width: Annotated[int, Field(ge=0)] = 40

    def open(self, root: Path, split: str, download: bool) -> ImageSet:
        """Make the prompts of a split; nothing is read."""
        found = prompts(split)
        ids = torch.from_numpy(found.ids)
        return ImageSet(
            name="toy-lm",
            family="toy-lm",
            shape=(1, ids.shape[1], 1 + self.width),
            classes=len(VERDICTS),
            labels=found.labels,
            read=lambda places: to_input(ids[torch.from_numpy(places)], self.width).numpy(),
            class_names=VERDICTS,
            spell=spell,
        )
