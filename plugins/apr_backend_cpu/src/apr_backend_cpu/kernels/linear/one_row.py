"""16 weight rows times one row of activations: lanes are positions along the row.

Every weight is read once and used at once, row by row, so that memory is read in order and hardware
prefetching works. A row leaves integers for each superblock in a small buffer; after all 16 rows
these are summed across and multiplied by their float scales, one lane per weight row. The sum of a
superblock is an integer, so it does not matter that `tiles` adds it up in another order; the
float32 sum over superblocks runs in order there as here. So a row gives the same bits alone and in
any batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from apr_backend_cpu.constants import (
    AT_D,
    AT_Q,
    AT_STEP,
    AT_SUM16,
    AT_SUM32,
    RECORD,
    ROW_WORKSPACE,
    ROWS,
    VECTOR,
)
from apr_backend_cpu.kernels.linear.blocks import Blocks, finish_blocks, superblocks
from apr_backend_cpu.kernels.linear.formats import (
    DMIN,
    FORMATS,
    HEAD_AND_TOPS,
    PAIRS,
    D,
    Format,
    six_bit,
)
from apr_backend_cpu.kernels.source import vector
from apr_backend_cpu.kernels.vector.builder import Builder
from apr_backend_cpu.kernels.vector.chain import Chain
from apr_backend_cpu.kernels.vector.ir import F32, I8, I16, I32, I64, Value, const, vector_of
from apr_backend_cpu.kernels.vector.lanes import across, four_sums, group_sums
from apr_backend_cpu.kernels.vector.rows import Values, number

AHEAD = 16 << 10  # bytes to prefetch ahead; hardware prefetching ends at a page boundary
V8S, V16S, V32B, V8I = (vector_of(I16, 8), vector_of(I16, 16), vector_of(I8, 32), vector_of(I32, 8))
RUNS = 8  # of 32 values, in a superblock


def runs_of(b: Builder, format: Format) -> list[tuple[int, ...]]:
    """Return the runs of 32 values that are read together: two where registers hold 64 bytes.

    Those in the low (or high) nibbles of neighbouring bytes go together.
    """
    if b.level.vector < 64:
        return [(r,) for r in range(RUNS)]
    if format.name in ("q4_k", "q5_k"):
        return [(0, 2), (1, 3), (4, 6), (5, 7)]
    return [(r, r + 1) for r in range(0, RUNS, 2)]


def _factors(b: Builder, format: Format, p: Value, x: Value) -> Value:
    """Return the integer scale of each group times its activations' step: int16 [groups]."""
    steps = b.read(b.at(x, AT_STEP), V8S)
    if format.group == 16:
        scales = b.sext(b.read(b.at(p, 192), vector_of(I8, 16)), V16S)
        return b.mul(scales, b.shuffle(steps, [g // 2 for g in range(16)]))
    low, high = six_bit(b, *(b.read(b.at(p, 4 + 4 * k), I32) for k in range(3)))[0]
    both = b.or_(b.zext(low, I64), b.shl(b.zext(high, I64), number(32)))
    return b.mul(b.zext(b.bitcast(both, vector_of(I8, 8)), V8S), steps)


def _weigh(
    b: Builder, total: Value, codes: Value, x: Value, factors: Value, groups: list[int]
) -> Value:
    """Return total + the dot products of four bytes, each times the factor of its group."""
    if b.level.dot == "sdot":
        factor = b.sext(b.shuffle(factors, groups), vector_of(I32, len(groups)))
        chain = Chain(b, 7)
        chain.add(codes, x)
        return chain.scaled(total, factor)
    pairs = vector_of(I16, 2 * len(groups))
    if b.level.dot == "vnni":  # dots fit 16 bits; their upper halves, the signs, must not count
        name = f"llvm.x86.avx512.vpdpbusd.{8 * codes.type.count}"
        dots = b.intrinsic(name, total.type, const(total.type, 0), codes, x)
        wide = b.zext(factors, vector_of(I32, factors.type.count))
        name = f"llvm.x86.avx512.vpdpwssd.{8 * codes.type.count}"
        factor = b.bitcast(b.shuffle(wide, groups), pairs)
        return b.intrinsic(name, total.type, total, b.bitcast(dots, pairs), factor)
    factor = b.shuffle(factors, [g for g in groups for _ in range(2)])
    return b.add(total, b.add_pairs(b.multiply_pairs(codes, x), factor))


def _superblock(b: Builder, format: Format, p: Value, x: Value) -> Value:
    """Return lanes whose sum is the sum of scale * step * dot over a superblock."""
    factors, total = _factors(b, format, p, x), None
    for runs in runs_of(b, format):
        codes = b.joined([format.row(b, p, r) for r in runs])
        values = b.joined([b.read(b.at(x, 32 * r), V32B) for r in runs])
        groups = [
            r * 32 // format.group + lane * 4 // format.group for r in runs for lane in range(8)
        ]
        total = total or const(vector_of(I32, len(groups)), 0)
        total = _weigh(b, total, codes, values, factors, groups)
    return total


def _dot(b: Builder, format: Format, codes: Value, runs: list[tuple[Value, int]]) -> Value:
    """Return the dot products of blocks, in 8 sums each; a run is (address of a record, number).

    Where levels are signed bytes, there is no `shift_of`. Sums may be pairs of int16: see
    `group_sums`.
    """
    values = b.joined([b.read(b.at(x, AT_Q + 32 * r), V32B) for x, r in runs])
    if not format.is_wide(b):
        if b.sums_pairs:
            return b.multiply_pairs(codes, values)
        chain = Chain(b, 8)
        chain.add(codes, values)
        return chain.total()
    if not format.declared:
        codes = b.xor(codes, const(codes.type, format.zero))
    pairs = b.multiply_pairs(b.magnitude(codes), b.with_sign(values, codes))
    return b.add_pairs(pairs, const(pairs.type, 1))


def _block_sums(
    b: Builder, format: Format, place: Callable[[int], tuple[Value, Value]], x: Value
) -> Value:
    """Return the dot products of 8 blocks with 256 values; `place(r)` is what `format.row` takes.

    Places are made just before they are needed, as registers are few.
    """
    if format.four and b.level.dot == "vnni":
        return four_sums(b, *(_four_dots(b, format, place, x, first) for first in (0, 4)))
    dots = []
    for runs in runs_of(b, format):
        codes = b.joined([format.row(b, *place(r)) for r in runs])
        dots.append(_dot(b, format, codes, [(x, r) for r in runs]))
    return group_sums(b, dots)


def _four_dots(
    b: Builder, format: Format, place: Callable[[int], tuple[Value, Value]], x: Value, first: int
) -> Value:
    """Return the dot products of 4 blocks, the `first` and following, in 4 sums each."""
    assert format.four
    kind, chain = vector_of(I8, 64), Chain(b, 8)
    values = [b.read(b.at(x, 32 * (first + k)), kind) for k in (0, 2)]
    for half, codes in enumerate(format.four(b, [place(first + k) for k in range(4)])):
        lanes = [32 * k + 16 * half + lane for k in range(4) for lane in range(16)]
        chain.add(codes, b.shuffle(values[0], lanes, values[1]))
    return chain.total()


def finish_superblock(
    b: Builder, format: Format, head: Value, total: Value, low: Value, dx: Value, y: Value
) -> Value:
    """Add a superblock: y + dx * (d * I - dmin * M), or y + dx * d * (I - 32 * S).

    I is `total`. M sums minima, S scales, each times its sum of activations: `low`.
    """
    kind = y.type
    d = b.read(b.at(head, D), kind)
    if format.has_minima:
        dmin = b.read(b.at(head, DMIN), kind)
        value = b.fma(b.sitofp(low, kind), dmin, b.fmul(b.sitofp(total, kind), d))
        return b.fma(value, dx, y)
    total = b.sub(total, b.shl(low, const(low.type, 5)))
    return b.fma(b.sitofp(total, kind), b.fmul(d, dx), y)


def low_sums(b: Builder, format: Format, head: Value, x: Value) -> Value:
    """Return M or S of `finish_superblock`, its argument `low`."""
    kind = vector_of(I32, b.lanes)
    offset, count = (AT_SUM32, 4) if format.has_minima else (AT_SUM16, 8)
    low = const(kind, 0)
    for g in range(count):
        pair = b.read(b.at(head, PAIRS + VECTOR * g), kind)
        sums = b.splat(b.read(b.at(x, offset + 4 * g), I32), b.lanes)
        low = b.pair_dot(low, pair, sums)
    return low


def _finish_superblocks(
    b: Builder, format: Format, rows: Values, xp: Value, workspace: Value, size: int, n: Value
) -> Value:
    """Return float32 [rows] from the integers that rows left in the buffer."""
    head = b.stack(HEAD_AND_TOPS)
    kind = vector_of(F32, b.lanes)
    sums = vector_of(I32, size // 4)

    def superblock(i: Value, ys: Values) -> Values:
        here = [b.advance(p, i, format.nbytes) for p in rows]
        x, left = b.advance(xp, i, RECORD), b.advance(workspace, i, size * ROWS)
        assert format.head
        format.head(b, here, head, True)
        total = across(b, [b.read(b.at(left, size * r), sums) for r in range(len(rows))])
        low, dx = low_sums(b, format, head, x), b.splat(b.read(b.at(x, AT_D), F32), b.lanes)
        return [finish_superblock(b, format, head, total, low, dx, ys[0])]

    return b.count_loop(superblocks(b, n), [const(kind, 0.0)], superblock)[0]


def _leave_numbers(b: Builder, format: Format, p: Value, out: Value, g: Value) -> None:
    """Copy the float16 scale of a block at p, and any minimum, to the g-th place at `out`."""
    kind = I32 if format.minimum else I16
    b.write(b.read(p, kind), b.advance(out, g, kind.width // 8))


def _leave_blocks(
    b: Builder, format: Format, blocks: Blocks, first: Value, xp: Value, out: Value, n: Value
) -> None:
    """Write the dot products of a row's blocks: int32 [superblocks][8], then numbers in place.

    Superblocks are ROW_WORKSPACE apart, numbers 32 * ROWS after dot products. Nobody reads numbers
    that were not in place.
    """
    whole = b.lshr(n, number(3))

    def superblock(dense: bool, i: Value, values: Values) -> Values:
        left = b.advance(out, i, ROW_WORKSPACE)
        near = b.advance(first, i, 8 * format.dense_nbytes)
        if dense:
            b.prefetch(b.at(near, AHEAD), 8 * format.dense_nbytes)

        def place(r: int) -> tuple[Value, Value]:
            g = b.add(b.shl(i, number(3)), number(r))
            if dense:
                numbers = b.at(near, r * format.dense_nbytes)
                p, fifth = b.at(numbers, format.dense_nbytes - format.code_nbytes), number(-4)
            else:
                p, fifth = b.add(first, blocks.offset(g)), blocks.fifth(g)
                if r == 0:
                    b.prefetch(b.at(p, AHEAD), 8 * format.nbytes + 64 * format.declared)
                if format.declared:
                    numbers = b.add(p, blocks.distance)
            if format.declared:
                _leave_numbers(b, format, numbers, b.at(left, 32 * ROWS), number(r))
            return p, fifth

        b.write(_block_sums(b, format, place, b.advance(xp, i, RECORD)), left)
        return values

    def block(g: Value, values: Values) -> Values:
        i = b.add(b.shl(whole, number(3)), g)
        p = b.add(first, blocks.offset(i))
        b.prefetch(b.at(p, AHEAD), format.nbytes)
        x = b.advance(b.advance(xp, whole, RECORD), g, 32)
        dots = _dot(b, format, format.row(b, p, blocks.fifth(i)), [(x, 0)])
        if dots.type.element == I16:
            dots = b.add_pairs(dots, const(dots.type, 1))
        total = b.intrinsic("llvm.vector.reduce.add.v8i32", I32, dots)
        left = b.advance(out, whole, ROW_WORKSPACE)
        b.write(total, b.advance(left, g, 4))
        if format.declared:
            _leave_numbers(b, format, b.add(p, blocks.distance), b.at(left, 32 * ROWS), g)
        return values

    with b.if_then(b.icmp_unsigned("!=", whole, number(0))):
        if format.declared:
            with b.if_else(blocks.dense) as (dense, other):
                with dense:
                    b.count_loop(whole, [], partial(superblock, True))
                with other:
                    b.count_loop(whole, [], partial(superblock, False))
        else:
            b.count_loop(whole, [], partial(superblock, False))
    rest = b.and_(n, number(7))
    with b.if_then(b.icmp_unsigned("!=", rest, number(0))):
        b.count_loop(rest, [], block)


def make_one_row(name: str, format: Format) -> None:
    """Declare a function: 16 weight rows times one row of activations.

    Arguments: address of 16 rows, bytes per row, address of records, of 16 results, n, workspace.
    n is the number of runs of 32 values, workspace the address of ROW_WORKSPACE bytes for each 256
    values. Declared layouts have three more: see `Blocks`.
    """

    def emit(b: Builder, args: tuple[Value, ...]) -> None:
        wp, row_bytes, xp, op, n, workspace, *more = args
        blocks = Blocks(b, format, tuple(more))
        if format.declared and format.is_wide(b):
            b.levels = b.xor(b.levels, const(b.levels.type, format.zero))  # signed here
        size = 4 * 8 * len(runs_of(b, format)[0])  # bytes that a row leaves for each superblock

        def superblock_row(r: Value, values: Values) -> Values:
            first, out = b.advance(wp, r, row_bytes), b.advance(workspace, r, size)

            def superblock(i: Value, values: Values) -> Values:
                p = b.advance(first, i, format.nbytes)
                b.prefetch(b.at(p, AHEAD), format.nbytes)
                sums = _superblock(b, format, p, b.advance(xp, i, RECORD))
                b.write(sums, b.advance(out, i, size * ROWS))
                return values

            return b.count_loop(superblocks(b, n), values, superblock)

        def block_row(r: Value, values: Values) -> Values:
            start, out = b.advance(wp, r, row_bytes), b.advance(workspace, r, 32)
            _leave_blocks(b, format, blocks, start, xp, out, n)
            return values

        b.count_loop(number(ROWS), [], superblock_row if format.group else block_row)
        for first in range(0, ROWS, b.lanes):
            rows = [b.advance(wp, number(first + r), row_bytes) for r in range(b.lanes)]
            left = b.at(workspace, first * (size if format.group else 32))
            if format.group:
                result = _finish_superblocks(b, format, rows, xp, left, size, n)
            else:
                result = finish_blocks(b, format, blocks, rows, first, xp, left, n)
            b.write(result, b.at(op, 4 * first))

    vector(name, "p" * (9 if format.declared else 6), emit)


for _format in FORMATS.values():
    make_one_row(f"one_row_{_format.name}", _format)
