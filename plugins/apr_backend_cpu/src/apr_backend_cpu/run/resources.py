"""What kernels run on: the threads of one backend object, and memory for large results."""

from __future__ import annotations

import math
import os
import threading
from bisect import bisect
from collections import deque
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_backend_cpu.constants import CACHE_LINE
from apr_backend_cpu.run.arrays import address
from apr_core.plugin import UsageError

MOST_THREADS = 64  # or as many as there are processors
LEAST = 64 << 10  # bytes; for smaller results the allocator keeps memory itself
MOST = 256 << 20  # bytes kept at most
GAP = 5 * CACHE_LINE  # results a multiple of 4096 bytes apart would share few cache lines


def physical_cores() -> int:
    """Return the number of cores this process may use, not counting hyper-threads."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    cores = set()
    for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology"):
        if allowed is None or int(path.parent.name[3:]) in allowed:
            ids = [(path / name).read_text().strip() for name in ("physical_package_id", "core_id")]
            cores.add(tuple(ids))
    return len(cores) or (len(allowed) if allowed else os.cpu_count() or 1)


class Memory:
    """Memory of large results, reused once nothing refers to them.

    A forward needs the same activations again and again. Mapping them anew, page by page, takes a
    sixth of a prefill's time. The lowest free addresses are used first, so that caches hold more of
    them and no more pages are touched than needed at a time.
    """

    def __init__(self) -> None:
        self._block = np.empty(0, np.uint8)
        self._free: list[tuple[int, int]] = []  # (start, stop) in the block, in order
        self._returned: deque[tuple[int, int]] = deque()
        self._lock = threading.Lock()

    def new(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Return an uninitialized array."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        part = self._take(-(-nbytes // CACHE_LINE) * CACHE_LINE + GAP) if nbytes >= LEAST else None
        return np.asarray(_Lent(self, part, shape, dtype)) if part else np.empty(shape, dtype)

    def _take(self, nbytes: int) -> tuple[int, int] | None:
        with self._lock:
            if not self._block.size:
                self._block = np.empty(MOST, np.uint8)  # pages are mapped when first used
                self._free = [(-address(self._block) % CACHE_LINE, MOST)]
            while self._returned:
                self._put_back(*self._returned.popleft())
            for i, (start, stop) in enumerate(self._free):
                if stop - start >= nbytes:
                    self._free[i] = start + nbytes, stop
                    return start, start + nbytes
        return None

    def _put_back(self, start: int, stop: int) -> None:
        """Free a part, merging it with free parts before and after it."""
        i = bisect(self._free, (start, stop))
        if i < len(self._free) and self._free[i][0] == stop:
            stop = self._free.pop(i)[1]
        if i and self._free[i - 1][1] == start:
            i -= 1
            start = self._free.pop(i)[0]
        self._free.insert(i, (start, stop))


class _Lent:
    """What an array and its views refer to: when the last is gone, the memory is free again."""

    def __init__(
        self, memory: Memory, part: tuple[int, int], shape: tuple[int, ...], dtype: Any
    ) -> None:
        self._block, self._part, self._returned = memory._block, part, memory._returned
        self.__array_interface__ = {
            "shape": shape, "typestr": np.dtype(dtype).str, "version": 3,
            "data": (address(self._block) + part[0], False),
        }  # fmt: skip

    def __del__(self) -> None:
        self._returned.append(self._part)  # nothing else: any thread may run this, at any time


class Resources:
    """Threads and memory of a backend object. `threads` None: one per physical core.

    Raises UsageError.
    """

    def __init__(self, threads: int | None = None) -> None:
        most = max(MOST_THREADS, os.cpu_count() or 1)
        if threads is not None and not 0 < threads <= most:
            raise UsageError(f"threads must be between 1 and {most}, found {threads}")
        self.threads, self.memory = threads or physical_cores(), Memory()

    def bound(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, with all its ops running on these resources."""

        @wraps(function, updated=())
        def on_these(*args: Any, **options: Any) -> Any:
            before, _local.resources = _local.resources, self
            try:
                return function(*args, **options)
            finally:
                _local.resources = before

        return on_these


class _Local(threading.local):
    resources: Resources | None = None


_local = _Local()
_usual = cache(Resources)


def resources() -> Resources:
    """Return those of the backend whose kernel this thread runs; else the default ones."""
    return _local.resources or _usual()
