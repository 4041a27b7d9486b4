"""Memory that a pass has freed stays with the process, for the next pass.

glibc returns the end of its heap to the system as soon as a few megabytes of it are free, so that
every pass of a network faults its activations in anew, page by page: a third to a half of the time
of a forward pass on the CPU was the kernel's, clearing pages.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
# What is larger, such as a data set, still goes back to the system at once.
_LARGEST = 32 * 2**20  # bytes; the most that older versions of glibc take
_KEPT = 256 * 2**20
_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


@cache
def keep_freed_memory() -> bool:
    """Let the process keep up to 256 MiB of freed memory; say whether the allocator took it.

    For the whole process, since glibc knows no other way. Nothing happens where the allocator is
    another one, or where the environment sets it up (MALLOC_TRIM_THRESHOLD_ and the like).
    """
    if sys.platform != "linux" or any(name in os.environ for name in _OWN):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all(
        library.mallopt(option, size) == 1
        for option, size in ((_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, _KEPT))
    )
