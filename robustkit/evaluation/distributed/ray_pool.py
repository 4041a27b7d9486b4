"""Workers on a Ray cluster: one actor per GPU, or per CPU where there are none."""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
from typing import Any

from robustkit.core.imports import failure
from robustkit.core.optional import library, quiet
from robustkit.errors import UsageError
from robustkit.evaluation.distributed.local_pool import unsendable
from robustkit.evaluation.distributed.messages import Failed, Lost, Message, ModelSetup, Note, Task
from robustkit.evaluation.distributed.worker import serve


class Actor:
    """A worker: orders are worked on in a thread of their own.

    Ray runs two methods at once: one waits for notes while the other takes an order.
    """

    def __init__(self, device: str, threads: int | None) -> None:
        sys.stdout = sys.stderr
        self._orders = queue.SimpleQueue[Message]()
        self._notes = queue.SimpleQueue[Note]()
        arguments = (self._orders.get, self._notes.put, device, threads)
        threading.Thread(target=serve, args=arguments, daemon=True).start()

    def give(self, message: Message) -> list[Note]:
        """Take an order; nothing is said yet."""
        self._orders.put(message)
        return []

    def collect(self) -> list[Note]:
        """Wait until there is something to say, and say all of it."""
        notes = [self._notes.get()]
        while not self._notes.empty():
            notes.append(self._notes.get())
        return notes


class RayPool:
    """Actors of a cluster. Ray pickles the model, from this process to workers of its own.

    Args:
        address: of the cluster; None: the one that Ray finds, or a new one on this machine.
        workers: how many actors; None: one per GPU of the cluster, or per CPU.
        device: "cpu" leaves GPUs alone, "auto" takes them.
        threads: CPU threads of each worker; None: as Ray sets them.

    Raises:
        UsageError: when Ray is not installed, there is no cluster at the address, it has too few
            devices, or the model cannot be pickled.
    """

    def __init__(
        self,
        setup: ModelSetup,
        address: str | None,
        workers: int | None,
        device: str,
        threads: int | None,
    ) -> None:
        self._ray: Any = library("ray", "ray")
        self._ours = _connect(self._ray, address)
        try:
            self._device, self.size = _devices(self._ray, workers, device)
            try:
                self._setup = self._ray.put(setup)
            except Exception as error:  # whatever a model's own __reduce__ may raise
                raise unsendable(setup, error) from error
            kind = {"num_cpus": 1, "max_restarts": 0, "max_concurrency": 2}
            kind |= {"num_gpus": 1} if self._device == "cuda" else {}
            make = self._ray.remote(**kind)(Actor).remote
            self._make: Any = lambda: make(self._device, threads)
            self._pending: dict[Any, int] = {}
            self._actors = [self._start(place) for place in range(self.size)]
        except BaseException:
            self._leave()
            raise

    def submit(self, place: int, order: Task) -> None:
        """Send an order; if the actor has just died, `wait` will tell."""
        self._pending[self._actors[place].give.remote(order)] = place

    def wait(self, seconds: float) -> list[tuple[int, Note]]:
        """Return what has come, and replace the dead."""
        ready, _ = self._ray.wait(list(self._pending), num_returns=1, timeout=seconds)
        return [note for ref in ready for note in self._receive(ref)]

    def close(self) -> None:
        """End all actors, and the cluster if it was started here."""
        with quiet():
            for actor in self._actors:
                self._ray.kill(actor)
        self._leave()

    def _receive(self, ref: Any) -> list[tuple[int, Note]]:
        place = self._pending.pop(ref)
        try:
            notes: list[Note] = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            return [(place, Failed(UsageError.exit_code, _unread(error), str(error)))]
        except self._ray.exceptions.RayError as error:
            # The actor has died. Its other calls end with the same error: they are forgotten, and
            # an actor is restarted in its place (Ray's own restarts would come back unprepared).
            self._pending = {ref: at for ref, at in self._pending.items() if at != place}
            self._actors[place] = self._start(place)
            return [(place, Lost(type(error).__name__))]
        if notes:
            self._pending[self._actors[place].collect.remote()] = place
        return [(place, note) for note in notes]

    def _start(self, place: int) -> Any:
        actor = self._make()
        self._pending[actor.give.remote(self._setup)] = place
        self._pending[actor.collect.remote()] = place
        return actor

    def _leave(self) -> None:
        if self._ours:
            self._ray.shutdown()


def _connect(ray: Any, address: str | None) -> bool:
    """Connect to a cluster; return whether to leave it afterwards."""
    if ray.is_initialized():
        return False
    _refuse_silence(address)
    # 0: CUDA_VISIBLE_DEVICES stays as it is for what asks for no GPU, and Ray does not warn of it.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        with quiet():
            ray.init(address=address, **settings)
    except Exception as error:  # of many kinds, by what is wrong with the address
        raise UsageError(
            f"there is no Ray cluster at {address or 'the usual places'} ({failure(error)}). Start "
            "one with `ray start --head`, and name its address: --distributed ray:HOST:6379. Of a "
            "cluster that was killed, `ray stop` clears the traces."
        ) from error
    return True


def _refuse_silence(address: str | None) -> None:
    """Refuse an address at which nobody answers, before Ray waits for it."""
    place = (address or "").removeprefix("ray://")
    host, colon, port = place.rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"there is no Ray cluster at {address} ({failure(error)}). Start one with "
            "`ray start --head`, and name its address: --distributed ray:HOST:6379."
        ) from error


def _devices(ray: Any, workers: int | None, device: str) -> tuple[str, int]:
    """Return the kind of device of each worker, and how many there are to be."""
    found = ray.cluster_resources()
    gpus, cpus = int(found.get("GPU", 0)), int(found.get("CPU", 0))
    kind = "cuda" if device != "cpu" and gpus else "cpu"
    there = gpus if kind == "cuda" else cpus
    if (workers or 1) > there or (device.startswith("cuda") and kind == "cpu"):
        raise UsageError(
            f"the Ray cluster has {gpus} GPUs and {cpus} CPUs: too few for {workers or 1} workers "
            f"on {device}. Ask for fewer --workers, or add nodes with `ray start --address=...`."
        )
    return kind, workers or there


def _unread(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    return (
        f"a worker cannot read what it was sent ({failure(cause)}). Install the same robustkit, "
        "and the code of the model, on every node."
    )
