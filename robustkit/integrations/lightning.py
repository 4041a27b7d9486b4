"""Robust accuracy in a training with PyTorch Lightning; importing this needs the package.

from robustkit.integrations.lightning import RobustnessCallback

watch = RobustnessCallback(data="bundled", threat="linf:0.1", every=5)
Trainer(callbacks=[watch, ModelCheckpoint(monitor="robustness/robust", mode="max")])
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from robustkit.core.optional import library
from robustkit.integrations.loggers import scalars
from robustkit.integrations.monitor import RobustnessMonitor

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    Callback = library("lightning.pytorch", "lightning").Callback


class RobustnessCallback(Callback):
    """Evaluates at the end of training epochs, and logs to whatever logger the trainer has.

    Names are those of `robustkit.integrations.scalars`, such as `robustness/robust`: checkpoints
    and early stopping can follow them. Of several processes the first evaluates, the others wait.
    """

    def __init__(
        self, *, model: Callable[[LightningModule], nn.Module] | None = None, **options: Any
    ) -> None:
        """Take the options of `robustkit.integrations.monitor.RobustnessMonitor`.

        Args:
            model: picks the classifier out of the module (inputs in [0, 1] to logits); by default
                the module itself.

        Raises:
            UsageError: as `RobustnessMonitor`.
        """
        super().__init__()
        self.monitor = RobustnessMonitor(**options)
        self._model = model

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate if the epoch is due; epochs are counted from 1."""
        epoch = trainer.current_epoch + 1
        if not self.monitor.due(epoch):
            return
        values: dict[str, float] = {}
        if trainer.is_global_zero:
            record = self.monitor(self._model(pl_module) if self._model else pl_module, epoch)
            values = scalars(record) if record is not None else {}
        pl_module.log_dict(trainer.strategy.broadcast(values))
