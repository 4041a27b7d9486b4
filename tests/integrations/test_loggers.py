"""A record in the loggers of others: the real packages, where they are installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from robustkit import Record, log_record
from robustkit.errors import UsageError
from robustkit.integrations.loggers import scalars
from robustkit.verify.flags import Flag


@pytest.fixture
def records(make_record: Callable[..., Record]) -> list[Record]:
    """Two epochs; the second is better and flagged."""
    masked = Flag(name="black_box", message="Gradients are masked.")
    return [make_record("net", "crbbbm"), make_record("net", "crrrbm", flags=[masked])]


def test_scalars_are_the_accuracies_with_their_interval(records: list[Record]) -> None:
    values = scalars(records[0], prefix="test")
    assert values["test/robust"] == records[0].robust == 2 / 6
    assert values["test/clean"] == 5 / 6
    assert values["test/certified"] == 1 / 6
    assert values["test/robust_low"] < 2 / 6 < values["test/robust_high"]
    assert values["test/forwards_per_point"] == 10
    assert (values["test/flags"], scalars(records[1])["robustness/flags"]) == (0, 1)


def test_an_accuracy_that_was_not_asked_for_is_no_zero(
    make_record: Callable[..., Record],
) -> None:
    assert "robustness/certified" not in scalars(make_record("net", "rrb"))


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_what_was_logged(records: list[Record], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        for epoch, record in enumerate(records):
            log_record(record, writer, epoch)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    told = [(event.step, event.value) for event in events.Scalars("robustness/robust")]
    assert told == [(0, pytest.approx(2 / 6)), (1, pytest.approx(4 / 6))]
    texts = [
        event.tensor_proto.string_val[0]
        for event in events.Tensors("robustness/flags_raised/text_summary")
    ]
    assert texts == [b"none", b"black_box"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_an_offline_run(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb: Any = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(mode="offline", dir=tmp_path, project="robustkit") as run:
        for epoch, record in enumerate(records):
            log_record(record, run, epoch)
        run.log({}, step=2)  # a step is complete when the next begins
        assert run.summary["robustness/robust"] == pytest.approx(4 / 6)
        assert run.summary["robustness/flags_raised"] == "black_box"
    assert list(tmp_path.rglob("*.wandb"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_keeps_metrics_and_the_flags(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow: Any = importlib.import_module("mlflow")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(tmp_path.as_uri())
    try:
        mlflow.set_experiment("robustkit")
        with mlflow.start_run() as run:
            for epoch, record in enumerate(records):
                log_record(record, mlflow, epoch)
        client = mlflow.MlflowClient()
        history = client.get_metric_history(run.info.run_id, "robustness/robust")
        assert [(m.step, m.value) for m in history] == [
            (0, pytest.approx(2 / 6)),
            (1, pytest.approx(4 / 6)),
        ]
        assert client.get_run(run.info.run_id).data.tags["robustness/flags_raised"] == "black_box"
    finally:
        mlflow.set_tracking_uri(before)


def test_another_writer_is_refused_with_a_way_out(records: list[Record]) -> None:
    with pytest.raises(
        UsageError, match=r"got SimpleNamespace.*robustkit\.integrations\.loggers\.scalars"
    ):
        log_record(records[0], SimpleNamespace())
