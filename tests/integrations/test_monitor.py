"""Robust accuracy during training: on fixed points, without disturbing the training."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import robustkit
from robustkit import RobustnessMonitor
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError
from robustkit.record.record import Record


def network() -> nn.Sequential:
    """Answers otherwise in training mode, and draws random numbers there."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.BatchNorm1d(4), nn.Dropout(0.1))


def training(
    model: nn.Module, data: Dataset, look: Callable[[int], object], epochs: int = 4
) -> list[float]:
    """Train for some epochs, calling `look` after each; return the losses."""
    x, y = data.fetch(np.arange(len(data)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    model.train()
    for epoch in range(1, epochs + 1):
        loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        optimizer.step()
        losses.append(loss.item())
        look(epoch)
    return losses


@pytest.fixture
def monitor(blobs: Dataset, tmp_path: Path) -> RobustnessMonitor:
    return RobustnessMonitor(
        data=blobs, threat="linf:0.05", every=2, n=40, attacks=["fgsm"], folder=tmp_path
    )


class TestMonitor:
    def test_every_second_epoch_the_same_points(
        self, monitor: RobustnessMonitor, blobs: Dataset, tmp_path: Path
    ) -> None:
        model, returned = network(), list[Record | None]()
        training(model, blobs, lambda epoch: returned.append(monitor(model, epoch)))
        assert [record is None for record in returned] == [True, False, True, False]
        two, four = monitor.records[2], monitor.records[4]
        assert [two, four] == [record for record in returned if record]
        assert two.data.digest == four.data.digest
        assert two.points.index == four.points.index
        assert two.weights.digest != four.weights.digest
        assert four.arguments["epoch"] == 4
        assert len(list(tmp_path.rglob("epoch-*/record.json"))) == 2
        frame = monitor.to_pandas()
        assert frame.index.tolist() == [2, 4]
        assert frame["robust"].tolist() == [two.robust, four.robust]

    def test_what_it_finds_is_what_an_evaluation_finds(
        self, monitor: RobustnessMonitor, blobs: Dataset, tmp_path: Path
    ) -> None:
        model = network()
        training(model, blobs, lambda epoch: None)
        seen = monitor(model, 2)
        alone = robustkit.evaluate(
            model.eval(), data=blobs, threat="linf:0.05", attacks=["fgsm"], n=40,
            folder=tmp_path / "alone", device="cpu",
        )  # fmt: skip
        assert seen is not None
        assert seen.points == alone.points
        assert 0 < alone.robust < alone.clean

    def test_training_goes_on_as_if_nobody_had_looked(
        self, monitor: RobustnessMonitor, blobs: Dataset
    ) -> None:
        watched, alone = network(), network()
        for model in (watched, alone):
            model[2].eval()  # as with a frozen batch normalization
        seen: list[list[bool]] = []

        def look(epoch: int) -> None:
            monitor(watched, epoch)
            seen.append([module.training for module in watched])

        torch.manual_seed(11)
        losses = training(watched, blobs, look)
        torch.manual_seed(11)
        assert losses == training(alone, blobs, lambda epoch: None)
        assert set(map(tuple, seen)) == {(True, True, True, True)}
        for mine, other in zip(watched.parameters(), alone.parameters(), strict=True):
            assert torch.equal(mine, other)
            assert mine.requires_grad

    def test_modes_come_back_one_by_one_also_after_an_error(
        self, monitor: RobustnessMonitor
    ) -> None:
        model = network().train()
        model[2].eval()
        with torch.no_grad():
            model[1].weight.fill_(float("nan"))  # type: ignore[operator]
        with pytest.raises(robustkit.errors.RobustkitError):
            monitor(model, 2)
        assert [module.training for module in model] == [True, True, False, True]

    def test_it_works_where_gradients_are_off(
        self, monitor: RobustnessMonitor, blobs: Dataset
    ) -> None:
        model = network()
        training(model, blobs, lambda epoch: None)
        expected = monitor(model, 2)
        with torch.inference_mode():
            found = monitor(model, 4)
        assert expected is not None
        assert found is not None
        assert found.points == expected.points

    def test_a_request_that_makes_no_sense_is_refused_before_training(self, blobs: Dataset) -> None:
        with pytest.raises(UsageError, match="every: expected epochs, 1 or more, got 0"):
            RobustnessMonitor(data=blobs, threat="linf:0.05", every=0)
        with pytest.raises(UsageError, match="Unknown dataset 'bundle'"):
            RobustnessMonitor(data="bundle", threat="linf:0.05")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Lightning's own
class TestLightning:
    def test_the_callback_logs_what_checkpoints_can_follow(
        self, blobs: Dataset, tmp_path: Path
    ) -> None:
        pytest.importorskip("lightning", reason="lightning is not installed")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from lightning.pytorch import LightningModule, Trainer
            from lightning.pytorch.callbacks import ModelCheckpoint
            from lightning.pytorch.loggers import CSVLogger
        from robustkit.integrations.lightning import RobustnessCallback

        class Module(LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.network = network()

            def training_step(self, batch: Any, _: int) -> torch.Tensor:
                return functional.cross_entropy(self.network(batch[0]), batch[1])

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), lr=0.1)

        x, y = blobs.fetch(np.arange(len(blobs)))
        points = torch.utils.data.TensorDataset(x, y)
        callback = RobustnessCallback(
            model=lambda module: module.get_submodule("network"), data=(x, y), every=2, n=40,
            threat="linf:0.05", attacks=["fgsm"], folder=tmp_path / "looks",
        )  # fmt: skip
        best = ModelCheckpoint(tmp_path, monitor="robustness/robust", mode="max", every_n_epochs=2)
        module, logger = Module(), CSVLogger(tmp_path)
        trainer = Trainer(
            max_epochs=4, accelerator="cpu", callbacks=[callback, best], logger=logger,
            enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
        )  # fmt: skip
        trainer.fit(module, torch.utils.data.DataLoader(points, batch_size=40))
        records = callback.monitor.records
        assert list(records) == [2, 4]
        assert module.network.training
        assert best.best_model_score == pytest.approx(max(r.robust for r in records.values()))
        logged = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
        column = logged[0].split(",").index("robustness/robust")
        values = [float(line.split(",")[column]) for line in logged[1:] if line.split(",")[column]]
        assert values == pytest.approx([record.robust for record in records.values()])
