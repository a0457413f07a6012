"""How kernels are compiled: options, threads, and where compiled code is kept.

Import this before anything that is decorated: the cache folder is named after the processor's dot
product and the package's own sources, because Numba looks only at the file a function stands in.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import njit

from apr_backend_cpu.vector_ir import DOT_MODE


def _cache_dir() -> str:
    root = os.environ.get("APR_CACHE") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "apr"
    )
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return str(Path(root) / "numba" / f"cpu-{DOT_MODE}-{digest.hexdigest()[:12]}")


CACHE_DIR = os.environ.get("NUMBA_CACHE_DIR") or _cache_dir()


def _compiler(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """njit with options, its disk cache in this package's folder whoever imported what first.

    No fastmath by default: a result may not depend on how a loop was unrolled for a tile.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, CACHE_DIR
        try:
            return njit(nogil=True, cache=True, error_model="numpy", **options)(function)
        finally:
            numba.config.CACHE_DIR = before

    return decorate


serial = _compiler()
threaded = _compiler(parallel=True)


def physical_cores() -> int:
    """Cores this process may use, not counting hyper-threads."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    cores = set()
    for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology"):
        if allowed is None or int(path.parent.name[3:]) in allowed:
            ids = [(path / name).read_text().strip() for name in ("physical_package_id", "core_id")]
            cores.add(tuple(ids))
    return len(cores) or (len(allowed) if allowed else os.cpu_count() or 1)


def use_threads(threads: int | None) -> int:
    """Set the thread count of all kernels; returns what is in force."""
    count = threads or physical_cores()
    count = max(1, min(count, numba.config.NUMBA_NUM_THREADS))
    numba.set_num_threads(count)
    return count
