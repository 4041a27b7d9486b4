"""torch.export programs: `export:model.pt2`."""

from __future__ import annotations

from typing import Any

import torch

from robustkit.errors import UsageError
from robustkit.models import checkpoints
from robustkit.models.readiness import DYNAMIC_BATCH, Program, evaluation_mode, refuse_training_mode
from robustkit.models.trust import refuse_untrusted
from robustkit.models.zoo.base import Ask, Found, building, prepare


def load(ask: Ask) -> Found:
    """Load a program saved by `torch.export.save`. Its format holds code, so it must be trusted.

    It must take one batch of inputs of any size and return logits. Option: `resize=224`.
    Normalization is left to --mean and --std.

    Raises:
        UsageError: when the file does not exist, is not trusted (see `robustkit.models.trust`),
            cannot be read, or fixes the size of the batch.
    """
    ask.refuse_weights()
    resize, ask = ask.option("resize", int)
    ask.refuse_options()
    path = ask.file()
    refuse_untrusted(ask.text, path)
    checkpoints.refuse_compressed(path)
    with building(ask, "Save the program with `torch.export.save` of this PyTorch."):
        exported = torch.export.load(path)
        inner: Any = exported.module()
    refuse_training_mode(evaluation_mode(inner), ask.text)
    notes = [f"program: {path}"]
    model = prepare(Program(inner), notes, resize=resize)
    try:
        with torch.no_grad():
            for size in (1, 3):
                model(torch.zeros(size, *ask.shape))
    except Exception as error:
        raise UsageError(
            f"{ask.text} does not take batches of 1 and of 3 inputs {list(ask.shape)}: "
            f"{str(error).splitlines()[0]}. {DYNAMIC_BATCH}"
        ) from error
    return Found(model, tuple(notes))
