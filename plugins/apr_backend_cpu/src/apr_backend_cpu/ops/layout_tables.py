"""Tables of one weight for the kernels of declared layouts.

Codes stay in the mapped file, and so do the float16 scales of blocks of 32. Other numbers are
copied once, at first use, into the order that tiles of 16 rows need: those of groups in the
narrowest exact type (a byte, float16 or float32), those of whole blocks multiplied in float32. A
byte for each 64 weights is an eighth of a bit per weight.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_backend_cpu.constants import LANES, SUPERBLOCK, VECTOR
from apr_backend_cpu.layout_constants import (
    COLUMNS_OF_NUMBERS,
    HALF,
    IN_PLACE,
    SIGNED,
    SINGLE,
    UNSIGNED,
)
from apr_backend_cpu.run.arrays import address, bits
from apr_core.plugin import Layout, Numbers, layouts

STORED = {UNSIGNED: np.uint8, SIGNED: np.int8, HALF: np.float16, SINGLE: np.float32}
NARROW = {"u8": UNSIGNED, "i8": SIGNED, "f16": HALF}
LARGEST = 127
MINIMUM_UNIT = -1 / 128  # the kernels have sums of activations times -128


class LayoutTables:
    """The parameters of one weight, uint64 [PARAMETERS], and the tables they point to."""

    def __init__(self, w: Any) -> None:
        spec = w.layout
        layout, block, nbytes = spec.layout, spec.block, spec.nbytes
        raw = w.data.reshape(w.rows, -1, nbytes)
        blocks, per_block = raw.shape[1], block // layout.group
        self.runs: int = blocks * block // layouts.RUN  # in a row
        superblocks = -(-w.cols // SUPERBLOCK)
        runs = superblocks * SUPERBLOCK // layouts.RUN
        self._offsets, self._high = _offsets(layout, block, nbytes, runs)
        self._levels, zero, unit, added = _levels(layout)
        tables: list[TileNumbers] | list[InPlace]
        if _in_place(layout, block, added):
            tables = [InPlace(layout, float(unit))]
            tables += [InPlace(layout, MINIMUM_UNIT)] * bool(layout.minimum)
        else:
            tables = [TileNumbers(layout.scale, layout, raw, block, float(unit))]
            if added or layout.minimum:
                tables.append(_minima(layout, raw, block, np.float32(unit * added)))
        self._tables = tables
        self.arranged = layout.bits == 4 and layout.order == "pairs"
        width = layout.bits + (layout.high is not None)
        codes = "codes" if layout.bits == 4 and not layout.codebook else "levels"
        self.codes = f"{codes}{width}{'_minima' if len(tables) > 1 else ''}"
        none = [0] * (COLUMNS_OF_NUMBERS * (2 - len(tables)))
        self.params = np.array(
            [
                address(self._offsets),
                address(self._high),
                address(self._levels),
                bits(zero / 128),
                _is_dense(layout, block, nbytes, added),
                layout.group // layouts.RUN,
                per_block,
                blocks,
                *(n for table in tables for n in table.columns),
                *none,
            ],
            np.uint64,
        )

    @property
    def workspace_bytes(self) -> int:
        """Bytes that a thread needs for a tile's numbers: scales and minima of every run."""
        return 2 * VECTOR * self.runs


def _in_place(layout: Layout, block: int, added: int) -> bool:
    """Return whether blocks of 32 have a float16 scale, and any minimum right after it."""
    (scale, *more), minimum = layout.scale, layout.minimum
    if more or added or scale.dtype != "f16" or block != layouts.RUN:
        return False
    return not minimum or minimum == (Numbers(scale.offset + 2, "f16", scale.per_block),)


def _is_dense(layout: Layout, block: int, nbytes: int, added: int) -> bool:
    """Return whether nothing else is in the blocks, in the order of GGML's."""
    numbers, fifths = 2 + 2 * bool(layout.minimum), 4 * (layout.high is not None)
    return (
        _in_place(layout, block, added)
        and layout.scale[0].offset == 0
        and layout.high in (None, numbers)
        and layout.codes == numbers + fifths
        and nbytes == layout.codes + block * layout.bits // 8
    )


class InPlace:
    """Numbers that kernels read in the blocks."""

    def __init__(self, layout: Layout, factor: float) -> None:
        distance = (layout.scale[0].offset - layout.codes) % 2**64
        self.columns = [distance, IN_PLACE, bits(factor), 0, 0, 0]


class TileNumbers:
    """A product of numbers per group: [tiles, groups, 16 rows], times factors [tiles, .., 16]."""

    def __init__(
        self,
        parts: tuple[Numbers, ...],
        layout: Layout,
        raw: NDArray[np.uint8],
        block: int,
        unit: float = 1.0,
    ) -> None:
        inner = tuple(n for n in parts if not n.per_block)
        outer = tuple(n for n in parts if n.per_block)
        kind = NARROW.get(inner[0].dtype, SINGLE) if len(inner) == 1 else SINGLE
        groups = raw.shape[1] * (block // layout.group)
        numbers = (
            layouts.products(inner, layout, raw, block) if inner else _ones(raw.shape[0], groups)
        )
        factors = _ones(raw.shape[0], 1)
        if outer:
            factors = layouts.products(outer, layout, raw, block)[:, :: block // layout.group]
        self._fill(numbers, kind, factors * np.float32(unit))

    @classmethod
    def of(cls, numbers: NDArray[np.float32], unit: float) -> TileNumbers:
        """Make numbers from float32 [rows, groups] and one factor for all."""
        tiles = cls.__new__(cls)
        tiles._fill(numbers, SINGLE, _ones(numbers.shape[0], 1) * np.float32(unit))
        return tiles

    def _fill(self, numbers: NDArray[np.float32], kind: int, factors: NDArray[np.float32]) -> None:
        self._numbers = _by_tile(numbers.astype(STORED[kind]))
        self._factors = _by_tile(factors)
        per_block = VECTOR if factors.shape[1] > 1 else 0
        self.columns = [
            address(self._numbers), kind, self._numbers.strides[0], address(self._factors),
            self._factors.strides[0], per_block,
        ]  # fmt: skip


def _minima(layout: Layout, raw: NDArray[np.uint8], block: int, added: np.float32) -> TileNumbers:
    """Return what is added to each value, including `added` steps of the scale."""
    if not added:
        return TileNumbers(layout.minimum, layout, raw, block, MINIMUM_UNIT)
    lows = layouts.products(layout.scale, layout, raw, block) * added
    if layout.minimum:
        lows = lows + layouts.products(layout.minimum, layout, raw, block)
    return TileNumbers.of(lows, MINIMUM_UNIT)


def _ones(rows: int, columns: int) -> NDArray[np.float32]:
    return np.ones((rows, columns), np.float32)


def _offsets(
    layout: Layout, block: int, nbytes: int, runs: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return, for each 32 values, the bytes from a row's start to codes, and on to fifth bits."""
    number, inside = np.divmod(layouts.RUN * np.arange(runs, dtype=np.int64), block)
    codes = layout.codes + inside * layout.bits // 8
    return number * nbytes + codes, (layout.high or 0) + inside // 8 - codes


def _levels(layout: Layout) -> tuple[NDArray[np.uint8], int, np.float32, int]:
    """Return levels as bytes, the code of 0, the value of a level's step, steps to add to values.

    Levels are offset by 128; those of 8 bits are what makes a code such a byte, 16 times. Codes of
    4 or 5 bits that are numbers need no levels.
    """
    one = np.float32(1)
    if layout.bits == 8:
        added = 0 if layout.signed else 128  # unsigned codes need no offset
        return np.full(16, 128 - added, np.uint8), 0, one, added - layout.zero
    values = layouts.levels(layout).astype(np.float64)
    if not layout.codebook:
        fits = len(values) - 1 - LARGEST <= layout.zero <= 128
        zero, left = (layout.zero, 0) if fits else (0, -layout.zero)
        return np.zeros(16, np.uint8), zero, one, left
    top = np.abs(values).max() or 1.0
    steps = np.arange(64, LARGEST + 1) / top  # the step that fits the levels best
    errors = [np.abs(np.rint(values * s) / s - values).max() for s in steps]
    best = steps[int(np.argmin(errors))]
    return (np.rint(values * best) + 128).astype(np.uint8), 0, np.float32(1 / best), 0


def _by_tile(numbers: NDArray[Any]) -> NDArray[Any]:
    """Rearrange [rows, groups] to [tiles, groups, 16], with zeros after the last row."""
    rows, groups = numbers.shape
    padded = np.zeros((-(-rows // LANES) * LANES, groups), numbers.dtype)
    padded[:rows] = numbers
    return np.ascontiguousarray(padded.reshape(-1, LANES, groups).swapaxes(1, 2))
