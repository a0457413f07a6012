"""Where the blocks of a weight are, with their scales and minima."""

from __future__ import annotations

from apr_backend_cpu.constants import VECTOR
from apr_backend_cpu.kernels.linear.formats import Format
from apr_backend_cpu.kernels.linear.packed import halves, words
from apr_backend_cpu.kernels.vector.builder import Builder
from apr_backend_cpu.kernels.vector.ir import F32, I1, I8, I16, I64, Value, const, vector_of
from apr_backend_cpu.kernels.vector.rows import Values, number
from apr_backend_cpu.layout_constants import (
    AT_NUMBERS,
    COLUMNS_OF_NUMBERS,
    DENSE,
    HIGH,
    IN_PLACE,
    LEVELS,
    NUMBER_KIND,
    NUMBERS,
    OFFSETS,
    TILE_STEP,
    ZERO,
)


def superblocks(b: Builder, runs: Value) -> Value:
    """Return the superblocks in `runs` runs of 32 values; the last may have fewer than 8."""
    return b.lshr(b.add(runs, number(7)), number(3))


def blocks_in(b: Builder, format: Format, runs: Value) -> Value:
    """Return how many of the format's blocks, of 256 values or of 32, `runs` runs have."""
    return superblocks(b, runs) if format.group else runs


class Blocks:
    """Where a weight's blocks of 32 values are, with their scales and minima.

    For a declared layout, `args` are addresses of its parameters and of a tile's scales and minima,
    float32 [blocks][16 rows]. `zero` is what `add_block` takes.
    """

    def __init__(self, b: Builder, format: Format, args: tuple[Value, ...]) -> None:
        self._b, self._format, self.zero = b, format, None
        if format.declared:
            params, *self._numbers = args
            self._offsets, self._high = (b.read(b.at(params, 8 * k), I64) for k in (OFFSETS, HIGH))
            if format.has_zero:
                self.zero = b.splat(b.read(b.at(params, 8 * ZERO), F32), b.lanes)
            else:
                levels = b.read(b.read(b.at(params, 8 * LEVELS), I64), vector_of(I8, 16))
                b.levels = b.shuffle(levels, list(range(16)) * 4)
            columns = [b.at(params, 8 * (NUMBERS + k * COLUMNS_OF_NUMBERS)) for k in (0, 1)]
            self.dense = b.trunc(b.read(b.at(params, 8 * DENSE), I64), I1)
            kind = b.read(b.at(columns[0], 8 * NUMBER_KIND), I64)
            self.in_place = b.icmp_unsigned("==", kind, number(IN_PLACE))
            distance = b.read(b.at(columns[0], 8 * AT_NUMBERS), I64)
            self.distance = b.select(self.in_place, distance, number(0))  # from codes to scale
            self._factors = [b.read(b.at(c, 8 * TILE_STEP), F32) for c in columns]

    def offset(self, g: Value) -> Value:
        """Return the bytes from a row's start to its g-th block."""
        b = self._b
        if self._format.declared:
            return b.read(b.advance(self._offsets, g, 8), I64)
        return b.mul(g, number(self._format.nbytes))

    def fifth(self, g: Value) -> Value:
        """Return the bytes from the codes of a row's g-th block to its fifth bits, if any."""
        b = self._b
        return b.read(b.advance(self._high, g, 8), I64) if self._format.fifth else number(0)

    def numbers(self, g: Value, rows: Values, first: Value) -> tuple[Value, Value | None]:
        """Return scales, and minima or None, of the g-th block of rows at these addresses.

        `first` is the first row's number in its tile.
        """
        b = self._b
        if not self._format.declared:
            return halves(b, rows), None
        with b.if_else(self.in_place) as (here, there):
            with here:
                near, after_near = self._near(rows), b.block
            with there:
                far, after_far = [], b.block
                for table in self._numbers[: 1 + self._format.minimum]:
                    place = b.advance(b.advance(table, g, VECTOR), first, 4)
                    far.append(b.read(place, vector_of(F32, len(rows))))
        scale, *minimum = [b.phi(value.type) for value in far]
        for phi, one, other in zip([scale, *minimum], near, far, strict=True):
            phi.add_incoming(one, after_near)
            phi.add_incoming(other, after_far)
        return scale, minimum[0] if minimum else None

    def _near(self, rows: Values) -> Values:
        """Return scales, and minima if there are any, that are float16 in the blocks."""
        b, places = self._b, [self._b.add(p, self.distance) for p in rows]
        if not self._format.minimum:
            return [self._scaled(halves(b, places), 0)]
        return self.both(words(b, places))

    def both(self, pairs: Value) -> Values:
        """Return scales and minima, or two blocks' scales, of pairs of float16 in each lane."""
        b, half = self._b, vector_of(I16, pairs.type.count)
        parts = (pairs, b.lshr(pairs, const(pairs.type, 16)))
        values = [b.from_half(b.trunc(part, half)) for part in parts]
        return [self._scaled(v, k * self._format.minimum) for k, v in enumerate(values)]

    def _scaled(self, value: Value, k: int) -> Value:
        return self._b.fmul(value, self._b.splat(self._factors[k], value.type.count))

    def at_numbers(self, which: Value, first: int, copies: Value) -> list[Value]:
        """Return where a superblock's first scales, and minima if any, of a tile's rows are.

        `copies` is where those in place have been unpacked.
        """
        b, places = self._b, []
        for k, table in enumerate(self._numbers[: 1 + self._format.minimum]):
            there = b.at(b.advance(table, which, VECTOR), 4 * first)
            places.append(b.select(self.in_place, b.at(copies, k * 8 * VECTOR), there))
        return places
