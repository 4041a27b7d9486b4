"""A record as scalars in TensorBoard, Weights & Biases, MLflow, or any logger of Lightning."""

from __future__ import annotations

from typing import Any

from robustkit.core.text import clean
from robustkit.errors import UsageError
from robustkit.record.interval import robust_interval
from robustkit.record.record import Record

PREFIX = "robustness"


def scalars(record: Record, prefix: str = PREFIX) -> dict[str, float]:
    """Return what is worth a curve: accuracies as fractions of all n points, cost, flags.

    `robust` is an upper bound on the true robust accuracy, `robust_low` and `robust_high` its 95%
    interval. `certified`, a lower bound, is there if a certificate was asked for. `flags` counts
    the reasons to distrust the rest.
    """
    low, high = robust_interval(record)
    values = {
        "clean": record.clean,
        "robust": record.robust,
        "robust_low": low,
        "robust_high": high,
        "worst_class": record.worst_class.accuracy,
        "tail_30": record.tail_30,
        "forwards_per_point": record.forwards_per_point,
        "flags": float(len(record.flags)),
    }
    if record.certified is not None:
        values["certified"] = record.certified
    return {f"{prefix}/{name}": float(value) for name, value in values.items()}


def log_record(
    record: Record, writer: Any, step: int | None = None, *, prefix: str = PREFIX
) -> None:
    """Log the scalars of a record, and which flags were raised.

    Args:
        writer: a `SummaryWriter` of TensorBoard, a run of Weights & Biases or the module `wandb`,
            the module `mlflow`, or a logger of Lightning. It is told apart by its methods; none of
            these packages is imported here.
        step: such as the epoch.

    Raises:
        UsageError: for a writer of another kind.
    """
    values, flags = scalars(record, prefix), ", ".join(clean(flag.name) for flag in record.flags)
    if hasattr(writer, "add_scalar"):
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.add_text(f"{prefix}/flags_raised", flags or "none", step)
    elif hasattr(writer, "log_metrics"):
        writer.log_metrics(values, step=step)
        if hasattr(writer, "set_tag"):
            writer.set_tag(f"{prefix}/flags_raised", flags or "none")
    elif hasattr(writer, "log"):
        writer.log({**values, f"{prefix}/flags_raised": flags or "none"}, step=step)
    else:
        raise UsageError(
            "expected a SummaryWriter of TensorBoard, a run of wandb, the module mlflow or a "
            f"logger of Lightning, got {type(writer).__name__}. Of another tool, log what "
            "robustkit.integrations.loggers.scalars(record) returns."
        )
