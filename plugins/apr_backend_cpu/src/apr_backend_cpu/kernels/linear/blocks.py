"""Where the blocks of a weight are, with their scales and minima, and the sum of their products."""

from __future__ import annotations

from llvmlite import ir

from apr_backend_cpu.constants import (
    AT_GROUP_D,
    AT_SHIFT,
    AT_SHIFT32,
    RECORD,
    ROW_WORKSPACE,
    ROWS,
    VECTOR,
)
from apr_backend_cpu.kernels.linear.formats import Format
from apr_backend_cpu.kernels.linear.packed import halves, words
from apr_backend_cpu.kernels.vector.builder import Builder
from apr_backend_cpu.kernels.vector.ir import F32, I1, I8, I16, I32, I64, Value, const, vector_of
from apr_backend_cpu.kernels.vector.lanes import columns4
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
        b, count = self._b, pairs.type.count
        bits = b.bitcast(pairs, vector_of(I16, 2 * count))
        lanes = [lane + k for k in (0, 1) for lane in range(0, 2 * count, 2)]
        both = b.from_half(b.shuffle(bits, lanes))
        values = [b.shuffle(both, [*range(k * count, k * count + count)]) for k in (0, 1)]
        return [self._scaled(v, k * self._format.minimum) for k, v in enumerate(values)]

    def _scaled(self, value: Value, k: int) -> Value:
        return self._b.fmul(value, self._b.splat(self._factors[k], value.type.count))

    def left(self, place: Value, count: int) -> Values:
        """Return 8 scales, then any minima, of what `count` rows left: 32 bytes of float16 each.

        They are neighbours: the scales of 8 blocks, or each with its minimum.
        """
        b, minimum = self._b, self._format.minimum
        first: list[Value] = []
        second: list[Value] = []
        for half in range(1 + minimum):
            for column in columns4(b, quads(b, b.at(place, 16 * half), count)):
                low, high = self.both(column)
                first += [low] if minimum else [low, high]
                second += [high] * minimum
        return first + second

    def at_numbers(self, which: Value, first: int, copies: Value) -> list[Value]:
        """Return where a superblock's first scales, and minima if any, of a tile's rows are.

        `copies` is where those in place have been unpacked.
        """
        b, places = self._b, []
        for k, table in enumerate(self._numbers[: 1 + self._format.minimum]):
            there = b.at(b.advance(table, which, VECTOR), 4 * first)
            places.append(b.select(self.in_place, b.at(copies, k * 8 * VECTOR), there))
        return places


def quads(b: Builder, place: Value, count: int) -> Values:
    """Read four words of each row: int32 [count][4], 32 bytes apart."""
    return [b.read(b.at(place, 32 * r), vector_of(I32, 4)) for r in range(count)]


def shift_of(b: Builder, format: Format, x: Value) -> Value:
    """Return the correction for the codes' offset in a block's dot product: int32.

    `x` is the address of 8 of them.
    """
    shift = b.read(x, I32)  # -128 times the sum
    return b.ashr(shift, ir.Constant(I32, (128 // format.zero).bit_length() - 1))


def add_block(
    b: Builder,
    numbers: tuple[Value, Value | None],
    zero: Value | None,
    total: Value,
    x: Value,
    y: Value,
) -> Value:
    """Add a block: y + d * dx * `total`, then its minimum's part. x is the address of dx.

    Minima multiply the sum of activations times -128, and so does `zero`, a part of the total: the
    code of 0 over 128. The total is an integer below 2^24 before and after.
    """
    (d, minimum), count = numbers, y.type.count
    dx = b.splat(b.read(b.at(x, AT_GROUP_D), F32), count)
    if zero is not None or minimum is not None:
        shift = b.splat(b.read(b.at(x, AT_SHIFT32), F32), count)
    if zero is not None:
        total = b.fma(shift, zero, total)
    y = b.fma(total, b.fmul(d, dx), y)
    return y if minimum is None else b.fma(shift, b.fmul(minimum, dx), y)


def _totals(b: Builder, format: Format, left: Value, x: Value, count: int) -> Values:
    """Return a superblock's 8 dot products, as float32, from what `count` rows left."""
    columns = columns4(b, quads(b, left, count)) + columns4(b, quads(b, b.at(left, 16), count))
    if format.zero and not b.sums_pairs:
        for g, column in enumerate(columns):
            shift = shift_of(b, format, b.at(x, AT_SHIFT + 4 * g))
            columns[g] = b.add(column, b.splat(shift, count))
    return [b.sitofp(column, vector_of(F32, count)) for column in columns]


def finish_blocks(
    b: Builder,
    format: Format,
    blocks: Blocks,
    rows: Values,
    first_row: int,
    xp: Value,
    workspace: Value,
    n: Value,
) -> Value:
    """Return float32 [rows] from the blocks' dot products, int32 [superblocks][16 rows][8].

    Numbers that were in place lie 32 * ROWS after them.
    """
    count, kind = len(rows), vector_of(F32, b.lanes)
    turned, copies = b.stack(8 * 4 * count), b.stack(2 * 8 * VECTOR)
    places = lambda i: (b.advance(workspace, i, ROW_WORKSPACE), b.advance(xp, i, RECORD))

    def whole(i: Value, ys: Values) -> Values:
        (left, x), y = places(i), ys[0]
        totals, numbers = (
            _totals(b, format, left, x, count),
            blocks.left(b.at(left, 32 * ROWS), count),
        )
        for g, total in enumerate(totals):
            mine = numbers[g], numbers[8 + g] if format.minimum else None
            y = add_block(b, mine, blocks.zero, total, b.at(x, 4 * g), y)
        return [y]

    def superblock(i: Value, ys: Values) -> Values:
        left, x = places(i)
        for g, total in enumerate(_totals(b, format, left, x, count)):
            b.write(total, b.at(turned, 4 * count * g))
        first = b.shl(i, number(3))
        if format.declared:
            with b.if_then(blocks.in_place):
                for k, value in enumerate(blocks.left(b.at(left, 32 * ROWS), count)):
                    b.write(value, b.at(copies, VECTOR * k))
            tables = blocks.at_numbers(first, first_row, copies)

        def block(g: Value, ys: Values) -> Values:
            if format.declared:
                scale, *low = [b.read(b.advance(p, g, VECTOR), kind) for p in tables]
                numbers = scale, low[0] if low else None
            else:
                offset = blocks.offset(b.add(first, g))
                numbers = halves(b, [b.add(p, offset) for p in rows]), None
            total = b.read(b.advance(turned, g, 4 * count), kind)
            return [add_block(b, numbers, blocks.zero, total, b.advance(x, g, 4), ys[0])]

        return b.count_loop(b.least(b.sub(n, first), number(8)), ys, block)

    zero, done = const(kind, 0.0), number(0)
    if format.declared:
        done = b.select(blocks.in_place, b.lshr(n, number(3)), number(0))
        zero = b.loop_from(number(0), done, [zero], whole)[0]
    return b.loop_from(done, superblocks(b, n), [zero], superblock)[0]
