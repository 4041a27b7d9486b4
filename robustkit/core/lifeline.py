"""A process that ends with the one that started it, however that one ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_ORPHANED = 3  # exit code; nobody is left to read it


def end_with_parent(
    parent: int, gone: Callable[[], object], *, ask_kernel: bool = sys.platform == "linux"
) -> None:
    """Let this process end within a moment of its parent's end, SIGKILL included.

    On Linux the kernel sees to it, even while an extension keeps Python's lock; elsewhere a thread
    does. To the kernel the parent is the thread that started this process: it must stay for as long
    as this process is wanted.

    Args:
        parent: its process id.
        gone: returns once the parent has ended; called in a thread.
        ask_kernel: whether the kernel has such a service.
    """
    if ask_kernel:
        with contextlib.suppress(OSError, AttributeError):
            kernel = ctypes.CDLL(None, use_errno=True)
            if kernel.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0:
                if os.getppid() != parent:  # it ended before the kernel was asked
                    os._exit(_ORPHANED)
                return

    def watch() -> None:
        gone()
        os._exit(_ORPHANED)

    threading.Thread(target=watch, name="robustkit-lifeline", daemon=True).start()
