"""The formats that have kernels: sizes, and the functions of each by name."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from apr_backend_cpu.constants import DECLARED, DENSE, PACKED
from apr_backend_cpu.native import address

SUPERBLOCK_BYTES = {"q4_k": 144, "q5_k": 176, "q6_k": 210, "q8_0": 272}  # of 256 weights
FLOATS = ("f32", "f16", "bf16")
LAYOUT, LAYOUT_WITH_MINIMA = "layout", "layout_with_minima"
AFFINE = ("q4_k", "q5_k")


@cache
def methods(name: str) -> NDArray[np.uint64]:
    """A format's methods, a row as `constants` says: what kind it is, addresses of functions."""
    none, many = ("",) * 6, (f"many_8_{name}", f"many_1_{name}")
    if name in FLOATS:
        kind, names = DENSE, (f"dense_11_{name}", *none[:5], f"dense_44_{name}", f"dense_41_{name}")
    elif name in (LAYOUT, LAYOUT_WITH_MINIMA):
        kind, names = DECLARED, (*none, *many)
    else:
        few = (f"few_{size}_{name}" for size in (2, 4, 6, 8))
        kind, names = PACKED, (f"one_row_{name}", *few, f"unpack_{name}", *many)
    found = [address(name) if name else 0 for name in names]
    return np.array([kind, *found, 0], np.uint64)
