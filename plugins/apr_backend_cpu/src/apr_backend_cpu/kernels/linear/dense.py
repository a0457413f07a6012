"""Matrix products with f32, f16 and bf16 weights, in float32.

Own code instead of BLAS, because BLAS picks another kernel, and so another rounding, for each
shape. Here a result is 16 partial sums, each of every 16th product in order, added by halves: the
same in any batch. A few rows of activations read the weights in place, with positions as lanes.
Many meet an unpacked tile with weight rows as lanes: it holds the weights of each of the 16 sums
together, and activations are arranged alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from apr_backend_cpu.constants import LANES, ROW_GAP, ROWS, TOKENS, VECTOR
from apr_backend_cpu.kernels.linear.one_row import AHEAD
from apr_backend_cpu.kernels.source import helper, kernel, vector
from apr_backend_cpu.kernels.vector.builder import Builder
from apr_backend_cpu.kernels.vector.ir import (
    F32,
    I16,
    I32,
    I64,
    V16F,
    V16I,
    Value,
    const,
    vector_of,
)
from apr_backend_cpu.kernels.vector.lanes import transpose
from apr_backend_cpu.kernels.vector.memory import ints_at
from apr_backend_cpu.kernels.vector.rows import Values, addresses, number, opaque

Loader = Callable[[Builder, Value], Value]
V16S = vector_of(I16, LANES)
FEW_SIZES = (1, 2, 4, 8)  # rows of activations
COLUMNS = 32  # times 16, that several rows of activations meet at a time
NEAR = 16  # times 16 columns: a tile that fits the first-level cache beside its inputs


def _load_f32(b: Builder, p: Value) -> Value:
    return b.read(p, V16F)


def _load_f16(b: Builder, p: Value) -> Value:
    return b.from_half(b.read(p, V16S))


def _load_bf16(b: Builder, p: Value) -> Value:
    return b.bitcast(b.shl(b.zext(b.read(p, V16S), V16I), const(V16I, 16)), V16F)


def make_few(name: str, loader: Loader, itemsize: int, size: int) -> None:
    """Declare a function: weight rows times up to `size` rows of activations.

    Arguments: address of weights, bytes per row, rows; address of activations, bytes per row, rows,
    1 to `size`; address of results, bytes per row; n times 16 columns.
    """

    def emit(b: Builder, args: tuple[Value, ...]) -> None:
        wp, row_bytes, rows, xp, x_stride, tokens, op, out_stride, n = args
        xs = addresses(b, xp, x_stride, size, tokens)
        outs = addresses(b, op, out_stride, size, tokens)

        wide = size if b.lanes == LANES else min(size, 4)  # as many sums as fit the registers
        workspace, near = b.stack(ROWS * size * VECTOR), b.stack(COLUMNS * size * VECTOR)

        def dots(
            p: Value,
            reads: Sequence[Callable[[Value], Value]],
            steps: Value,
            fetch: bool,
            start: Values,
        ) -> Values:
            def step(i: Value, sums: Values) -> Values:
                here = b.advance(p, i, LANES * itemsize)
                if fetch:
                    b.prefetch(b.at(here, AHEAD), LANES * itemsize)
                weights = loader(b, here)
                return [
                    b.fma(weights, b.read(read(i), V16F), total)
                    for read, total in zip(reads, sums, strict=True)
                ]

            return b.count_loop(steps, start, step)

        def chunk(c: Value, values: Values) -> Values:
            """Multiply some columns of all rows; their activations fit the first-level cache."""
            begin = b.mul(c, number(COLUMNS))
            steps = b.least(b.sub(n, begin), number(COLUMNS))

            def copy(i: Value, values: Values) -> Values:
                for t, x in enumerate(xs):
                    value = b.read(b.advance(x, b.add(begin, i), VECTOR), V16F)
                    b.write(value, b.at(b.advance(near, i, VECTOR * size), VECTOR * t))
                return values

            def row(r: Value, values: Values) -> Values:
                weights = b.advance(b.advance(wp, r, row_bytes), begin, LANES * itemsize)
                slot = b.advance(workspace, r, VECTOR * size)
                for first in range(0, size, wide):
                    places = [b.at(slot, VECTOR * (first + t)) for t in range(wide)]
                    reads = [
                        partial(b.advance, b.at(near, VECTOR * (first + t)), stride=VECTOR * size)
                        for t in range(wide)
                    ]
                    start = [b.read(p, V16F) for p in places]
                    sums = dots(weights, reads, steps, not first, start)
                    for total, p in zip(sums, places, strict=True):
                        b.write(total, p)
                return values

            b.count_loop(steps, [], copy)
            return b.count_loop(rows, values, row)

        def result(r: Value, values: Values) -> Values:
            slot = b.advance(workspace, r, VECTOR * size)
            for t, out in enumerate(outs):
                total = b.horizontal_sum(b.read(b.at(slot, VECTOR * t), V16F))
                b.write(total, b.advance(out, r, 4))
            return values

        def whole(r: Value, values: Values) -> Values:
            zeros = [const(V16F, 0.0)] * size
            reads = [partial(b.advance, x, stride=VECTOR) for x in xs]
            sums = dots(b.advance(wp, r, row_bytes), reads, n, True, zeros)
            for total, out in zip(sums, outs, strict=True):
                b.write(b.horizontal_sum(total), b.advance(out, r, 4))
            return values

        if size < FEW_SIZES[2]:  # activations of up to two rows stay in the cache
            b.count_loop(rows, [], whole)
            return
        for place in range(0, ROWS * size * VECTOR, VECTOR):
            b.write(const(V16F, 0.0), b.at(workspace, place))
        b.count_loop(b.udiv(b.add(n, number(COLUMNS - 1)), number(COLUMNS)), [], chunk)
        b.count_loop(rows, [], result)

    vector(name, "p" * 9, emit)


def _sum_bytes(b: Builder, n: Value) -> Value:
    """Return the bytes that one of the 16 sums has in a tile: an odd number of cache lines.

    Sums a multiple of 4096 bytes apart would evict each other from the cache.
    """
    return b.mul(b.or_(n, number(1)), number(VECTOR))


def make_unpack(name: str, loader: Loader, itemsize: int) -> None:
    """Declare a function: unpack a tile to float32 [16 sums][n | 1][16 rows].

    Arguments: address of weights, bytes per row, rows, up to 16; address of the tile; n times 16
    columns.
    """

    def emit(b: Builder, args: tuple[Value, ...]) -> None:
        wp, row_bytes, rows, tile, n = args
        starts = addresses(b, wp, row_bytes, ROWS, rows)  # the last row repeats
        a_sum = _sum_bytes(b, n)

        def step(i: Value, values: Values) -> Values:
            here = [b.advance(p, i, LANES * itemsize) for p in starts]
            columns = transpose(b, [b.bitcast(loader(b, p), V16I) for p in here])
            for j, column in enumerate(columns):
                b.write(column, b.advance(b.advance(tile, number(j), a_sum), i, VECTOR))
            return values

        b.count_loop(n, [], step)

    vector(name, "p" * 5, emit)


def _tree(b: Builder, values: Values) -> Value:
    """Return the sum of 8 values by halves, as in `horizontal_sum`."""
    while len(values) > 1:
        half = len(values) // 2
        values = [b.fadd(x, y) for x, y in zip(values[:half], values[half:], strict=True)]
    return values[0]


def _dense_many(b: Builder, args: tuple[Value, ...]) -> None:
    """Multiply an unpacked tile by arranged activations.

    Arguments: address of the tile; address of activations, bytes per row, rows, 1 to TOKENS;
    address of results, 16 float32 per row, bytes between rows; n.
    """
    tile, xp, x_stride, tokens, op, out_stride, n = args
    kind = vector_of(F32, b.lanes)
    wide = min(2, ROWS // b.lanes)  # registers of weights
    # A sum and the one it is added to first are computed together, for as many rows of activations
    # as fit the registers with both.
    size, parts = 8 if b.lanes == LANES else 3, ROWS // (wide * b.lanes)
    count = LANES // 2
    workspace = b.stack(count * TOKENS * VECTOR)  # [sums][tokens][16 rows]
    inputs = b.stack(8 * TOKENS)
    for t, p in enumerate(addresses(b, xp, x_stride, TOKENS, tokens)):
        b.write(p, b.at(inputs, 8 * t))
        b.prefetch(b.advance(op, number(t), out_stride), VECTOR)
    a_sum, an_input = _sum_bytes(b, n), b.mul(n, number(4))

    def each_sum(j: Value, first: Value, blocks: Value) -> None:
        weights, left = b.advance(tile, j, a_sum), b.advance(workspace, j, TOKENS * VECTOR)
        skip, rows = b.mul(j, an_input), b.advance(inputs, first, 8)

        def block(t: Value, values: Values) -> Values:
            here = b.advance(rows, t, 8 * size)
            xs = [b.read(b.at(here, 8 * k), I64) for k in range(size)]
            results = b.advance(left, t, VECTOR * size)

            def part(k: Value, values: Values) -> Values:
                mine = b.advance(weights, k, wide * b.level.vector)

                def step(i: Value, sums: Values) -> Values:
                    results = []
                    for half in (0, 1):
                        first = b.advance(mine, number(half * count), a_sum)
                        first = b.advance(first, i, VECTOR)
                        ws = [b.read(b.at(first, b.level.vector * r), kind) for r in range(wide)]
                        offset = b.advance(skip, number(half * count), an_input)
                        offset = opaque(b, b.advance(offset, i, 4))
                        for t, x in enumerate(xs):
                            value = b.splat(b.read(b.add(x, offset), F32), b.lanes)
                            at_ = wide * (size * half + t)
                            results += [b.fma(value, w, sums[at_ + r]) for r, w in enumerate(ws)]
                    return results

                zeros = [const(kind, 0.0)] * (2 * size * wide)
                sums = b.count_loop(n, zeros, step)
                pairs = zip(sums[: size * wide], sums[size * wide :], strict=True)
                sums = [b.fadd(x, y) for x, y in pairs]
                out = b.advance(results, k, wide * b.level.vector)
                for c, total in enumerate(sums):
                    offset = VECTOR * (c // wide) + b.level.vector * (c % wide)
                    b.write(total, b.at(out, offset))
                return values

            return b.count_loop(number(parts), values, part)

        b.count_loop(blocks, [], block)

    # A tile that fits the first-level cache meets a few rows in full, then the next few; a larger
    # one meets all rows, one sum at a time.
    few = b.select(b.icmp_unsigned("<=", n, number(NEAR)), number(size), number(TOKENS))

    def some(i: Value, values: Values) -> Values:
        first = b.mul(i, few)
        rows = b.least(b.sub(tokens, first), few)
        blocks = b.udiv(b.add(rows, number(size - 1)), number(size))

        def sums(j: Value, values: Values) -> Values:
            each_sum(j, first, blocks)
            return values

        def result(t: Value, values: Values) -> Values:
            here = b.advance(workspace, t, VECTOR)
            sums = [b.read(b.at(here, j * TOKENS * VECTOR), V16F) for j in range(count)]
            b.write(_tree(b, sums), b.advance(op, b.add(first, t), out_stride))
            return values

        b.count_loop(number(count), [], sums)
        return b.count_loop(rows, values, result)

    b.count_loop(b.udiv(b.add(tokens, b.sub(few, number(1))), few), [], some)


def _arrange(b: Builder, args: tuple[Value, ...]) -> None:
    """Rearrange a row of n times 16 float32 as [16][n]: address of the row, of the result, n."""
    source, target, n = args
    whole, rest = b.lshr(n, number(4)), b.and_(n, number(15))

    def block(i: Value, values: Values) -> Values:
        here = b.advance(source, i, LANES * VECTOR)
        columns = transpose(b, [b.read(b.at(here, VECTOR * k), V16I) for k in range(LANES)])
        out = b.advance(target, i, VECTOR)
        for j, column in enumerate(columns):
            b.write(column, b.advance(out, b.mul(n, number(j)), 4))
        return values

    def one(i: Value, values: Values) -> Values:
        i = b.add(i, b.shl(whole, number(4)))
        here, out = b.advance(source, i, VECTOR), b.advance(target, i, 4)
        for j in range(LANES):
            value = b.read(b.at(here, 4 * j), I32)
            b.write(value, b.advance(out, b.mul(n, number(j)), 4))
        return values

    for count, body in ((whole, block), (rest, one)):
        with b.if_then(b.icmp_unsigned("!=", count, number(0))):
            b.count_loop(count, [], body)


dense_many = vector("dense_many", "p" * 7, _dense_many)
arrange = vector("arrange_floats", "ppp", _arrange)


@helper
def row_of_floats(columns):
    """Return the bytes from one arranged row to the next."""
    return 4 * columns + ROW_GAP


@kernel()
def arrange_task(arguments, i, scratch):
    """Arrange a row of activations for `dense_many`.

    Arguments: x, bytes per row, columns, result.
    """
    a = ints_at(arguments, 4)
    size = a[2]
    arrange(a[0] + i * a[1], a[3] + i * row_of_floats(size), size // LANES)


LOADERS: dict[str, tuple[Loader, int]] = {
    "f32": (_load_f32, 4), "f16": (_load_f16, 2), "bf16": (_load_bf16, 2),
}  # fmt: skip
for _format, (_loader, _itemsize) in LOADERS.items():
    make_unpack(f"dense_unpack_{_format}", _loader, _itemsize)
    for _size in FEW_SIZES:
        make_few(f"dense_{_size}_{_format}", _loader, _itemsize, _size)
