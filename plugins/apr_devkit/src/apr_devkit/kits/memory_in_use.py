"""How many bytes a process holds for its own data, as far as the system tells."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

STATUS = Path("/proc/self/status")
OWN = ("RssAnon:", "RssShmem:", "VmSwap:")  # a file's pages come and go by themselves: not RssFile


def known() -> bool:
    """Whether this system says it."""
    return STATUS.exists() and OWN[0] in STATUS.read_text()


def own_bytes() -> int:
    """Bytes of memory that belong to no file, without what the allocator keeps for later.

    An allocator that keeps freed pages fills those first: a leak of less than it keeps would not
    be seen. So it gives them back before they are counted, where it has a call for that.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    fields = [line.split() for line in STATUS.read_text().splitlines()]
    return sum(int(field[1]) * 1024 for field in fields if field and field[0] in OWN)
