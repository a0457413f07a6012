"""How much memory sequences and cached prefixes may take, and who holds how much."""

from __future__ import annotations

import os
from pathlib import Path

SHARE = 0.5  # of what is available, unless somebody says otherwise
LEAST = 256 << 20


def default_limit(weights: int) -> int:
    """Bytes for state: a share of the memory that is available beside `weights` bytes of weights.

    Weights are mapped: pages of a file count as available, and are not.
    """
    return max(LEAST, int(SHARE * (available() - weights)))


def available() -> int:
    """Bytes this process may still take, by the machine and by its control group."""
    found = [_machine(), *_group()]
    return max(0, min(found))


def _machine() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:  # not Linux
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _group() -> list[int]:
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text() for name in ("memory.max", "memory.current"))
        return [int(limit) - int(used)]
    except (OSError, ValueError):  # no control group, or no limit
        return []


class Ledger:
    """What sequences reserved and what the cache holds, within one limit. The cache gives way."""

    def __init__(self, limit: int, cache_limit: int | None = None) -> None:
        self.limit = limit
        self.cache_limit = limit if cache_limit is None else min(limit, cache_limit)
        self.reserved = 0

    def fits(self, needed: int) -> bool:
        """Whether so many bytes could be reserved, were the cache empty."""
        return self.reserved + needed <= self.limit

    @property
    def for_cache(self) -> int:
        """Bytes the cache may hold now."""
        return max(0, min(self.cache_limit, self.limit - self.reserved))
