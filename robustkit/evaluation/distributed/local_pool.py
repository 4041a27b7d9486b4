"""Workers as the driver sees them, and those that are processes of this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from robustkit.core.imports import failure
from robustkit.core.lifeline import end_with_parent
from robustkit.errors import UsageError
from robustkit.evaluation.distributed.messages import Briefing, Lost, Note, Task
from robustkit.evaluation.distributed.worker import serve


class Pool(Protocol):
    """A fixed number of places, each with a worker; one that dies is replaced at once."""

    @property
    def size(self) -> int:
        """Number of places."""
        ...

    def submit(self, place: int, order: Task) -> None:
        """Give work to the worker at a place; it has said hello, and is done with what it had."""
        ...

    def wait(self, seconds: float) -> list[tuple[int, Note]]:
        """Return what some workers have to say, each with its place; nothing if the time is up.

        Notes of one worker come in order. After `Lost` nothing comes of the dead one any more;
        what it had sent before has come.
        """
        ...

    def close(self) -> None:
        """End all workers, whatever they are doing."""
        ...


def unsendable(setup: Briefing, error: Exception) -> UsageError:
    """Say that a model cannot reach the workers."""
    return UsageError(
        f"{setup.name} cannot be sent to workers ({failure(error)}). A worker is another "
        "process: hand over an nn.Module or a function that is defined at the top of a module and "
        "can be pickled, or evaluate it by its name on the command line "
        "(path/to/file.py:attr), or use one device."
    )


class LocalPool:
    """One process per device. A model is pickled from this process to its own children.

    Args:
        devices: one for each worker; the same may be listed several times.
        threads: CPU threads of each worker.

    Raises:
        UsageError: when the model cannot be pickled.
    """

    def __init__(self, setup: Briefing, devices: Sequence[str], threads: int) -> None:
        self._devices, self._threads = list(devices), threads
        try:
            self._payload = pickle.dumps(setup)
        except Exception as error:  # whatever a model's own __reduce__ may raise
            raise unsendable(setup, error) from error
        # A forked process inherits the locks of the threads of PyTorch, and cannot use CUDA.
        self._context = multiprocessing.get_context("spawn")
        self._workers = [self._start(device) for device in self._devices]
        for _, line in self._workers:
            self._brief(line)

    @property
    def size(self) -> int:
        """Number of places."""
        return len(self._devices)

    def submit(self, place: int, order: Task) -> None:
        """Send an order; if the worker has just died, `wait` will tell."""
        with contextlib.suppress(OSError):
            self._workers[place][1].send(order)

    def wait(self, seconds: float) -> list[tuple[int, Note]]:
        """Return what has come, and replace the dead."""
        places = {id(line): place for place, (_, line) in enumerate(self._workers)}
        notes: list[tuple[int, Note]] = []
        for line in wait([line for _, line in self._workers], seconds):
            assert isinstance(line, Connection)
            place = places[id(line)]
            try:
                notes.append((place, line.recv()))
            except (EOFError, OSError):
                notes.append((place, Lost(self._reap(place))))
                self._workers[place] = self._start(self._devices[place])
                self._brief(self._workers[place][1])
        return notes

    def close(self) -> None:
        """End all workers, whatever they are doing."""
        for process, line in self._workers:
            line.close()
            process.terminate()
        for process, _ in self._workers:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self._workers = []

    def _start(self, device: str) -> tuple[Any, Connection]:
        ours, theirs = self._context.Pipe()
        arguments = (theirs, device, self._threads)
        process = self._context.Process(target=_main, args=arguments, daemon=True)
        process.start()
        theirs.close()  # the only open end is the worker's: it closes when the worker dies
        return process, ours

    def _brief(self, line: Connection) -> None:
        with contextlib.suppress(OSError):
            line.send_bytes(self._payload)

    def _reap(self, place: int) -> str:
        """Return how a worker ended."""
        process, line = self._workers[place]
        line.close()
        process.join()
        code = process.exitcode
        process.close()
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"


def _main(line: Connection, device: str, threads: int) -> None:
    driver = multiprocessing.parent_process()
    assert driver is not None and driver.pid is not None, "started by `_start`"
    end_with_parent(driver.pid, driver.join)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides when to stop
    sys.stdout = sys.stderr  # a user's code may print; results stay alone
    serve(line.recv, line.send, device, threads)
    os._exit(0)  # the driver is gone or done: nothing is left to say
