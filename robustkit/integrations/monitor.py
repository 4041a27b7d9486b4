"""Robust accuracy during training: the same points every few epochs, attacked in a few seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from robustkit.core.text import slug
from robustkit.core.threat import Threat
from robustkit.errors import UsageError
from robustkit.evaluation.evaluate import evaluate_settings
from robustkit.evaluation.identity import RUNS
from robustkit.evaluation.settings import GivenData, ask
from robustkit.integrations.loggers import log_record, scalars
from robustkit.record.provenance import weights_digest
from robustkit.record.record import Record
from robustkit.registry import read_threat
from robustkit.search.suites import default_suite

if TYPE_CHECKING:
    import pandas as pd


class RobustnessMonitor:
    """Call it at the end of every epoch: `monitor(model, epoch)` returns a record when one is due.

        monitor = RobustnessMonitor(data="bundled", threat="linf:0.1", every=5)
        for epoch in range(1, 101):
            train(model)
            record = monitor(model, epoch)

    The points are chosen once, by `n` and `seed`, so that epochs can be compared. Training is not
    disturbed: modes, gradients and the global random state are afterwards what they were before.
    """

    def __init__(
        self,
        *,
        data: GivenData,
        threat: Threat | str,
        every: int = 1,
        n: int | None = 100,
        writer: Any = None,
        name: str | None = None,
        folder: Path | str = RUNS / "monitor",
        **others: Any,
    ) -> None:
        """Choose what is looked at, and how often.

        Args:
            every: epochs between two looks; those that it divides are due.
            n: a fixed sample of the data; None: all points.
            writer: where records are logged as they come; see `robustkit.log_record`.
            folder: of the evidence; every look has its own in it, named by epoch and weights.
            others: keywords of `robustkit.evaluate`; the suite is `quick` unless it or attacks are
                given, the device the GPU of the model's first parameter, else the CPU.

        Raises:
            UsageError: for data or a threat model that is not known, or `every` below 1.
        """
        if every < 1:
            raise UsageError(f"every: expected epochs, 1 or more, got {every}.")
        if not (others.get("attacks") or others.get("suite")):
            others["suite"] = default_suite(read_threat(threat))
        settings = ask(None, data, threat, save_adversarial=False, **others)
        self.data, self.threat = settings.data, settings.threat
        self.every, self.writer, self.folder = every, writer, Path(folder)
        self.records: dict[int, Record] = {}
        """By epoch, what was found so far."""
        self._name, self._device = name, others.get("device")
        self._settings = replace(settings, n=None if n is None else min(n, len(settings.data)))

    def due(self, epoch: int) -> bool:
        """Whether `monitor(model, epoch)` would evaluate."""
        return epoch % self.every == 0

    def __call__(self, model: nn.Module, epoch: int) -> Record | None:
        """Evaluate the model if the epoch is due.

        Raises:
            UsageError, RobustkitError: as `robustkit.evaluate`; also for a model whose logits are
                not finite any more.
        """
        if not self.due(epoch):
            return None
        name = self._name or type(model).__name__
        settings = replace(
            self._settings,
            model=model,
            name=name,
            folder=self._place(model, name, epoch),
            device=self._device or _device(model),
            arguments={"data": self.data.name, "epoch": epoch},
        )
        with _undisturbed(model):
            record = evaluate_settings(settings, progress=False)
        self.records[epoch] = record
        if self.writer is not None:
            log_record(record, self.writer, epoch)
        return record

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per evaluated epoch, columns as in `robustkit.integrations.scalars`."""
        import pandas as pd

        rows = [scalars(record) for record in self.records.values()]
        frame = pd.DataFrame(rows, index=pd.Index(list(self.records), name="epoch"))
        return frame.rename(columns=lambda column: column.rpartition("/")[2])

    def _place(self, model: nn.Module, name: str, epoch: int) -> Path:
        content = weights_digest(model)[0].rpartition(":")[2]
        return self.folder / slug(name) / f"epoch-{epoch:04d}-{content[:8]}"


def _device(model: nn.Module) -> str:
    first = next(model.parameters(), None)
    return str(first.device) if first is not None and first.device.type == "cuda" else "cpu"


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode for a while; bring back modes and random state."""
    modes = [(module, module.training) for module in model.modules()]
    first = next(model.parameters(), None)
    cuda = [first.device] if first is not None and first.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cuda), torch.inference_mode(False), torch.enable_grad():
            model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
