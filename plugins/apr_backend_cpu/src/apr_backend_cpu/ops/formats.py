"""The formats that have kernels: sizes, and the functions of each by name."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from apr_backend_cpu.constants import (
    DECLARED,
    DENSE,
    GROUP,
    LANES,
    PACKED,
    SUPERBLOCK,
    TILE_GROUP,
    TILE_SUPERBLOCK,
)
from apr_backend_cpu.native import address

# values and bytes of a block
PACKED_BLOCKS = {
    "q4_k": (SUPERBLOCK, 144), "q5_k": (SUPERBLOCK, 176), "q6_k": (SUPERBLOCK, 210),
    "q8_0": (GROUP, 34),
}  # fmt: skip
FLOATS = ("f32", "f16", "bf16")
LAYOUT, LAYOUT_WITH_MINIMA = "layout", "layout_with_minima"


@cache
def methods(name: str) -> NDArray[np.uint64]:
    """A format's methods, a row as `constants` says: kind, blocks, addresses of functions."""
    none, many = ("",) * 6, tuple(f"many_{size}_{name}" for size in (8, 4, 1))
    if name in FLOATS:
        kind, block, tile, unpack = DENSE, LANES, 0, f"dense_unpack_{name}"
        one, two, four, eight = (f"dense_{size}_{name}" for size in (1, 2, 4, 8))
        names = (one, two, four, "", eight, unpack, "", "", "")
    elif name in (LAYOUT, LAYOUT_WITH_MINIMA):
        kind, block, tile, names = DECLARED, GROUP, TILE_GROUP, (*none, *many)
    else:
        kind, block = PACKED, PACKED_BLOCKS[name][0]
        tile = TILE_GROUP if block == GROUP else TILE_SUPERBLOCK
        few = (f"few_{size}_{name}" for size in (2, 4, 6, 8))
        names = (f"one_row_{name}", *few, f"unpack_{name}", *many)
    return np.array([kind, block, tile, *(address(n) if n else 0 for n in names)], np.uint64)
