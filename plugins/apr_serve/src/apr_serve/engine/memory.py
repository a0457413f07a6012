"""Memory for sequences and cached prefixes: the limit, and what each of the two holds."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from apr_core.plugin import BackendPlugin

SHARE = 0.5  # of the available memory, by default
DEVICE_SHARE = 0.9  # of what a device has left, if the rest is enough for a step
LEAST = 256 << 20


def default_limit(backend: BackendPlugin, weights: int, step: int) -> int:
    """Return the bytes for state, over all models that are loaded onto the backend.

    Of a device with its own memory, a share of what is left now, and never the `step` bytes that
    forwards need: prefixes would fill these too, in time. Elsewhere a share of what is available
    beside `weights` bytes of mapped weights: the system counts pages of a file as available, but
    they are needed.
    """
    free = backend.capacity()
    if free is not None:
        return max(0, min(int(DEVICE_SHARE * free), free - step))
    return max(LEAST, int(SHARE * (available() - weights)))


def available() -> int:
    """Return the bytes this process may still take, by the machine and by its control groups."""
    return max(0, min(_machine(), *_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))))


def _machine() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:  # not Linux
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _groups(own: Path, root: Path) -> Iterator[int]:
    """Yield the bytes left to each control group of this process, such as a container's.

    The file `own` lists its groups (version 1 and 2), `root` is the folder of all groups.
    """
    yield sys.maxsize
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, kinds, name = line.split(":", 2)
        base, limit, used = root, "memory.max", "memory.current"
        if kinds:
            base, limit, used = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        if not kinds or "memory" in kinds.split(","):
            folder = base / name.lstrip("/")
            for group in (folder, *folder.parents):  # each of them has its own limit
                if group.is_relative_to(base):
                    yield from _left(group, limit, used)


def _left(group: Path, limit: str, used: str) -> list[int]:
    """Return [the bytes left to a group], or [] without a limit. File cache counts as free."""
    try:
        left = int((group / limit).read_text()) - int((group / used).read_text())
        lines = (group / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return []
    stat = dict(line.split(maxsplit=1) for line in lines)
    files = (stat.get(f"total_{n}", stat.get(n, "0")) for n in ("active_file", "inactive_file"))
    return [left + sum(map(int, files))]


class MemoryBudget:
    """Memory that sequences reserved and the cache holds, within one limit. The cache gives way."""

    def __init__(self, limit: int, cache_limit: int | None = None) -> None:
        self.limit = limit
        self.cache_limit = limit if cache_limit is None else min(limit, cache_limit)
        self.reserved = 0

    def fits(self, needed: int) -> bool:
        """Return True if `needed` bytes could be reserved with an empty cache."""
        return self.reserved + needed <= self.limit

    @property
    def for_cache(self) -> int:
        """Bytes the cache may hold now."""
        return max(0, min(self.cache_limit, self.limit - self.reserved))
