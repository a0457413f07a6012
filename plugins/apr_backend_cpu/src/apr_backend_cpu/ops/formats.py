"""The formats that have kernels: block sizes, and each format's functions by name."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from apr_backend_cpu.constants import (
    ARRANGED,
    DECLARED,
    DENSE,
    GROUP,
    LANES,
    PACKED,
    SUPERBLOCK,
    TILE_GROUP,
    TILE_GROUP_WIDE,
    TILE_GROUP_ZERO,
    TILE_SUPERBLOCK,
)
from apr_backend_cpu.native import address, library

# values and bytes of a block
PACKED_BLOCKS = {
    "q4_k": (SUPERBLOCK, 144), "q5_k": (SUPERBLOCK, 176), "q6_k": (SUPERBLOCK, 210),
    "q8_0": (GROUP, 34),
}  # fmt: skip
FLOATS = {"f32": (LANES, 4 * LANES), "f16": (LANES, 2 * LANES), "bf16": (LANES, 2 * LANES)}
BLOCKS = PACKED_BLOCKS | FLOATS
NO_DIGITS = str.maketrans("", "", "48")  # functions on unpacked levels do not depend on code width


@cache
def methods(name: str, arranged: bool = False) -> NDArray[np.uint64]:
    """Return a format's methods: its kind, its blocks, addresses of functions (`constants`).

    Those of declared layouts are named after their codes: `codes4`, `levels8_minima`, ...;
    `arranged` means that activations are taken in another order.
    """
    group = TILE_GROUP_WIDE if library().level.sums_pairs else TILE_GROUP
    few = tuple(f"few_{size}_{name}" for size in (2, 4, 6, 8))
    names: tuple[str, ...]
    if name in FLOATS:
        kind, block, tile = DENSE, LANES, 0
        one, two, four, eight = (f"dense_{size}_{name}" for size in (1, 2, 4, 8))
        names = (one, two, four, "", eight, f"dense_unpack_{name}", "")
    elif name in PACKED_BLOCKS:
        kind, block = PACKED, PACKED_BLOCKS[name][0]
        tile = group if block == GROUP else TILE_SUPERBLOCK
        names = (f"one_row_{name}", *few, f"unpack_{name}", f"many_{name}")
    else:
        kind, block, tile = ARRANGED if arranged else DECLARED, GROUP, group
        many = name
        if name.startswith("codes"):
            tile = TILE_GROUP_ZERO
        else:
            many = name.translate(NO_DIGITS)
        names = (f"one_row_{name}", *few, f"unpack_{name}", f"many_{many}")
    return np.array([kind, block, tile, *(address(n) if n else 0 for n in names)], np.uint64)
