"""Memory that nobody has written yet, made to show: it holds NaN while this is on.

Covers arrays made by `empty` and `empty_like` of the array libraries in use, and, by luck, what an
allocator hands out again. A kernel that reads such memory, or leaves part of its result unwritten,
then returns NaN where a reference does not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

MAKERS = ("empty", "empty_like")
ALL_ONES = 255  # a byte; four of them are a NaN


@contextmanager
def poisoned(*arrays: Any, xp: Any = np) -> Iterator[None]:
    """Within, fresh memory of NumPy, of `xp` and of the libraries of `arrays` is NaN."""
    libraries = {type(a).__module__.partition(".")[0] for a in arrays} | {"numpy"}
    owners = [sys.modules[name] for name in libraries if name in sys.modules]
    if not any(xp is owner for owner in owners):
        owners.append(xp)
    undo = [_replace(owner, name) for owner in owners for name in MAKERS if hasattr(owner, name)]
    try:
        yield
    finally:
        for restore in undo:
            restore()


def _replace(owner: Any, name: str) -> Callable[[], None]:
    make, own = getattr(owner, name), name in getattr(owner, "__dict__", {})

    def filled(*args: Any, **options: Any) -> Any:
        array = make(*args, **options)
        with suppress(TypeError, ValueError, RuntimeError):
            array[...] = np.nan if "float" in str(array.dtype) else _worst(str(array.dtype))
        return array

    try:
        setattr(owner, name, filled)
    except (AttributeError, TypeError):  # a namespace that does not let itself be changed
        return lambda: None
    return lambda: setattr(owner, name, make) if own else delattr(owner, name)


def _worst(dtype: str) -> int:
    return ALL_ONES if dtype.endswith("uint8") else 1 << 20 if "64" in dtype or "32" in dtype else 1


def spoil_free_memory(*nbytes: int) -> None:
    """Fill blocks of these sizes with NaN and give them back to the allocator."""
    blocks = [np.full(max(1, size // 4), np.nan, np.float32) for size in nbytes for _ in range(3)]
    del blocks
