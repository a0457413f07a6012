"""How many threads kernels run on, and what they ask of the allocator."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from apr_core.plugin import UsageError


def physical_cores() -> int:
    """Cores this process may use, not counting hyper-threads."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    cores = set()
    for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology"):
        if allowed is None or int(path.parent.name[3:]) in allowed:
            ids = [(path / name).read_text().strip() for name in ("physical_package_id", "core_id")]
            cores.add(tuple(ids))
    return len(cores) or (len(allowed) if allowed else os.cpu_count() or 1)


MOST_THREADS = 64  # or as many as there are processors
_in_use = 0  # threads


def use_threads(threads: int | None) -> int:
    """Set the thread count of all kernels; returns what is in force. Raises UsageError."""
    global _in_use
    most = max(MOST_THREADS, os.cpu_count() or 1)
    if threads is not None and not 0 < threads <= most:
        raise UsageError(f"threads must be between 1 and {most}, found {threads}")
    _in_use = threads or physical_cores()
    return _in_use


def threads_in_use() -> int:
    """The thread count of all kernels."""
    return _in_use or use_threads(None)


def keep_freed_memory() -> None:
    """Have glibc reuse large blocks instead of giving each back to the system when it is freed.

    A forward allocates the same activations again and again; mapping them anew, page by page,
    took a fifth of a prefill's time. Elsewhere than on glibc this does nothing.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(mmap_threshold, 32 << 20)  # the largest that glibc takes
    mallopt(trim_threshold, 512 << 20)
