"""Arrays as compiled code sees them: addresses and bits."""

from __future__ import annotations

from ctypes import addressof, c_char
from typing import Any

import numpy as np
from numpy.typing import NDArray


def address(array: NDArray[Any]) -> int:
    """Where an array's values begin."""
    buffer: Any = array  # which NumPy's types do not say of arrays
    try:
        return addressof(c_char.from_buffer(buffer))  # a fifth of the time of what always works
    except (TypeError, ValueError):  # read-only, empty, or not contiguous
        found: int = array.__array_interface__["data"][0]
        return found


def bits(value: float) -> int:
    """A float32 as an argument of an instruction."""
    return int(np.float32(value).view(np.uint32))
