"""How kernels are compiled: options, threads, and where compiled code is kept.

Import this before anything that is decorated: the cache folder is named after the processor's dot
product and the package's own sources, because Numba looks only at the file a function stands in.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import njit
from numba.core import event
from numba.core.caching import UserProvidedCacheLocator

from apr_backend_cpu.vector_ir import DOT_MODE
from apr_core.cache_folder import code_folder
from apr_core.errors import UsageError
from apr_core.notices import working

# named after this package's sources, because Numba looks only at the file a function stands in;
# empty: nothing is kept
CACHE_DIR = str(
    code_folder(Path(__file__).parent, f"cpu-{DOT_MODE}", "numba", "NUMBA_CACHE_DIR") or ""
)


class ByContent(UserProvidedCacheLocator):
    """Where Numba keeps a function's code: named by the sources, wherever the package lies.

    So a package that was installed anew, or into another venv, is not compiled again.
    """

    @classmethod
    def get_suitable_cache_subpath(cls, py_file: str) -> str:
        """One folder for all modules; their names are part of the files'."""
        return "functions"


class _Compilations(event.Listener):
    """Tells the user of the core's notices what is compiled, when nothing is cached yet."""

    known = 0  # functions of this package; some are compiled for several types of arrays
    text = "compiling kernels for this processor"
    if CACHE_DIR:
        text += " (once, then they are kept on disk)"

    def __init__(self) -> None:
        self._done = self._depth = 0

    def on_start(self, event: event.Event) -> None:
        """One more, perhaps inside another."""
        self._depth += 1
        working(self.text, self._done, max(self.known, self._done + self._depth))

    def on_end(self, event: event.Event) -> None:
        """It is compiled."""
        self._depth -= 1
        self._done += 1
        total = max(self.known, self._done + self._depth) if self._depth else self._done
        working(self.text, self._done, total)


event.register("numba:compile", _Compilations())


def serial(function: Callable[..., Any]) -> Any:
    """njit with a disk cache in this package's folder, whoever imported what first.

    No fastmath: a result may not depend on how a loop was unrolled for a tile. No parallel loops:
    threads are those of `team.py`.
    """
    _Compilations.known += 1
    config = numba.config
    before = config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES
    config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES = CACHE_DIR, f"{__name__}.{ByContent.__name__}"
    try:
        return njit(nogil=True, cache=bool(CACHE_DIR), error_model="numpy")(function)
    finally:
        config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES = before


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
