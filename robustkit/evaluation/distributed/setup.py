"""Who evaluates: this process, several of this machine, or a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from robustkit.core.device import pick_device, pick_devices
from robustkit.core.optional import library
from robustkit.core.types import Model
from robustkit.errors import UsageError
from robustkit.evaluation.distributed.local_pool import LocalPool, Pool
from robustkit.evaluation.distributed.messages import Facts, ModelSetup
from robustkit.evaluation.distributed.ray_pool import RayPool
from robustkit.evaluation.distributed.scheduler import Scheduler
from robustkit.evaluation.prepare import Prepared
from robustkit.evaluation.settings import Settings
from robustkit.evaluation.watcher import Watcher
from robustkit.models.guard import duplicate
from robustkit.models.surrogates.resolve import added_surrogates
from robustkit.record import provenance


class Setup(NamedTuple):
    """Who is to work.

    Attributes:
        devices: of this machine, one for each process; empty with Ray.
        ray: on a Ray cluster, at `address` (None: the one that Ray finds or starts).
        workers: how many Ray actors; None: as many as the cluster has devices.
        device: what each actor is to run on.
    """

    devices: tuple[str, ...] = ()
    ray: bool = False
    address: str | None = None
    workers: int | None = None
    device: str = "auto"

    @property
    def note(self) -> str:
        """What the record says of it."""
        if self.ray:
            return f"distributed: on a Ray cluster, {self.workers or 'as many'} workers" + (
                "" if self.workers else " as devices"
            )
        return f"distributed: {len(self.devices)} processes on {', '.join(self.devices)}"


def set_up(device: str, distributed: str | None, workers: int | None) -> Setup | None:
    """Read what was asked for; None: this process does it alone.

    Args:
        device: one device, or several of this machine: "cuda:0,cuda:1".
        distributed: None, "ray", or "ray:ADDRESS".
        workers: so many; several may share a device.

    Raises:
        UsageError: for a device that is not there, another way to distribute, or Ray that is not
            installed.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"expected at least 1 worker, got {workers}.")
    devices = [str(found) for found in pick_devices(device)]
    if distributed is None:
        count = workers or len(devices)
        if count < len(devices):
            raise UsageError(
                f"{len(devices)} devices for {count} workers ({device}): name fewer devices."
            )
        spread = tuple(devices[place % len(devices)] for place in range(count))
        return Setup(spread) if count > 1 else None
    kind, _, address = distributed.partition(":")
    if kind != "ray":
        raise UsageError(
            f"expected --distributed ray or ray:ADDRESS (such as ray:10.0.0.5:6379), got "
            f"{distributed!r}."
        )
    if len(devices) > 1:
        raise UsageError(
            f"Ray gives each worker a device of its own: leave --device {device} out, and say "
            "--workers N for fewer than the cluster has."
        )
    library("ray", "ray")
    return Setup((), True, address or None, workers, device)


@contextmanager
def start_workers(
    setup: Setup | None, settings: Settings, prepared: Prepared, watcher: Watcher
) -> Iterator[Scheduler | None]:
    """Yield the workers for one model, which end with the block; None where there are none.

    Raises:
        UsageError: when they cannot be had, or cannot be sent the model.
    """
    if setup is None:
        yield None
        return
    diagnosis, data, added = (
        prepared.diagnosis,
        settings.data,
        added_surrogates(prepared.tuned.model),
    )
    model = ModelSetup(
        name=settings.name,
        model=settings.named or _portable(prepared.model),
        digest=prepared.weights.digest,
        data=Facts(data.name, data.family, data.shape, data.classes, getattr(data, "ranges", None)),
        diagnosis=diagnosis.to("cpu"),
        seed=settings.seed,
        batch_size=settings.batch_size,
        tuning=settings.tuning,
        version=provenance.versions()["robustkit"],
        surrogates={name: _portable(model) for name, model in added.items()},
    )
    with Scheduler(settings.name, setup.note, _starter(setup, model), watcher) as scheduler:
        yield scheduler


def _portable(model: Model) -> Model:
    """Return a copy on the CPU: the GPU of this process may not be there for another."""
    return duplicate(model).cpu() if isinstance(model, nn.Module) else model


def _starter(setup: Setup, model: ModelSetup) -> Callable[[], Pool]:
    def start() -> Pool:
        if setup.ray:
            return RayPool(model, setup.address, setup.workers, setup.device, None)
        on_cpu = sum(pick_device(device).type == "cpu" for device in setup.devices)
        threads = max(1, torch.get_num_threads() // max(1, on_cpu))
        return LocalPool(model, setup.devices, threads)

    return start
