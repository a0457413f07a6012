"""16 weight rows times one row of activations: lanes are positions along the row.

Every weight is read once and used at once, row by row, so that memory is read in order: that is
what processors foresee. A row leaves a vector of integers for each superblock in a small room; when
all 16 rows have been read, these are summed across and meet their float scales, one lane a weight
row. What a superblock sums is an integer, so it does not matter that `matmul` sums it in another
order; the float32 sum over superblocks runs in order there as here. So a row gives the same bits
alone and in any batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from apr_backend_cpu.constants import (
    AT_D,
    AT_GROUP_D,
    AT_SCALE32,
    AT_SHIFT16,
    AT_SHIFT32,
    AT_SUM32,
    LANES,
    RECORD,
)
from apr_backend_cpu.kernels.linear.formats import FORMATS, V8I, V32B, Packed, join, six_bit
from apr_backend_cpu.kernels.source import Builder, vector
from apr_backend_cpu.kernels.vector.ir import (
    F32,
    I8,
    I16,
    I32,
    I64,
    V16F,
    V16I,
    Value,
    advance,
    at,
    const,
    count_loop,
    dot,
    fma,
    from_half,
    load,
    pair_dot,
    prefetch,
    shuffle,
    splat,
    store,
    weigh,
)
from apr_backend_cpu.kernels.vector.lanes import Reduction, columns4

RowStep = Callable[[Builder, Packed, Value, Value], Value]
RowsStep = Callable[[Builder, list[Value], Value, Value, Value], Value]
AHEAD = 16 << 10  # bytes; memory answers late, and the processor foresees only up to the next page
V16H, V4I = ir.VectorType(I16, LANES), ir.VectorType(I32, 4)
UNDEFINED16 = ir.Constant(ir.VectorType(I16, LANES), ir.Undefined)


def halves(b: Builder, addresses: list[Value]) -> Value:
    """16 float16 at 16 addresses -> float32 x 16."""
    bits = UNDEFINED16
    for r, address in enumerate(addresses):
        bits = b.insert_element(bits, load(b, address, I16), ir.Constant(I32, r))
    return from_half(b, bits)


def low_half(b: Builder, words: Value) -> Value:
    """float16 in the lower half of each lane -> float32 x 16."""
    return from_half(b, b.trunc(words, V16H))


def byte(b: Builder, words: list[Value], index: int) -> Value:
    """The index-th unsigned byte of vectors of words, as int32."""
    shifted = b.lshr(words[index // 4], const(V16I, index % 4 * 8))
    return b.and_(shifted, const(V16I, 0xFF))


def byte_pairs(b: Builder, words: list[Value]) -> list[Value]:
    """The unsigned bytes of vectors of two words, two by two: int16 [4][2] in each lane."""
    low, high = const(V16I, 0x00FF), const(V16I, 0xFF00)
    pairs = []
    for word in words:
        for value in (word, b.lshr(word, const(V16I, 16))):
            above = b.shl(b.and_(value, high), const(V16I, 8))
            pairs.append(b.or_(b.and_(value, low), above))
    return pairs


def _weigh(b: Builder, packed: Packed, dots: list[Value], scales: Value) -> Value:
    """Each lane's dot times the scale of its group, summed over the superblock. Integer."""
    a_run = scales.type.count // 8  # scales a run of 32 values
    total = const(V16I, 0)
    for lanes, runs in zip(dots, packed.runs, strict=True):
        groups = [runs[lane // 8] * a_run + lane % 8 * a_run // 8 for lane in range(LANES)]
        total = weigh(b, total, lanes, shuffle(b, scales, groups))
    return total


def _dots(b: Builder, packed: Packed, p: Value, x: Value) -> list[Value]:
    """The products of a superblock at p with a record at x, summed in fours."""
    zero, dots = const(V16I, 0), []
    for v, pair in enumerate(packed.runs):
        q = join(b, *(load(b, at(b, x, 32 * run), V32B) for run in pair))
        dots.append(dot(b, zero, packed.code(b, p, v), q, packed.bits))
    return dots


def _scale_bytes(b: Builder, p: Value) -> Value:
    """The 8 scales of a superblock of q4_k or q5_k, as int32 x 8. Scalar code: vectors are busy."""
    scales, _ = six_bit(b, *(load(b, at(b, p, 4 + 4 * k), I32) for k in range(3)))
    low, high = (b.zext(word, I64) for word in scales)
    both = b.or_(low, b.shl(high, ir.Constant(I64, 32)))
    return b.zext(b.bitcast(both, ir.VectorType(I8, 8)), V8I)


def _affine_row(b: Builder, packed: Packed, p: Value, x: Value) -> Value:
    """Lanes whose sum is that of scale * step * dot over a superblock of q4_k or q5_k."""
    scales = b.mul(_scale_bytes(b, p), load(b, at(b, x, AT_SCALE32), V8I))
    return _weigh(b, packed, _dots(b, packed, p, x), scales)


def _affine_rows(b: Builder, rows: list[Value], x: Value, room: Value, y: Value) -> Value:
    """One superblock of 16 rows: y + dx * (d * I - dmin * M)."""
    ds, *words = columns4(b, [load(b, p, V4I) for p in rows])
    _, mins = six_bit(b, *words)
    low = const(V16I, 0)
    for g, pair in enumerate(byte_pairs(b, mins)):
        low = pair_dot(b, low, pair, splat(b, load(b, at(b, x, AT_SUM32 + 4 * g), I32)))
    d, dmin = low_half(b, ds), b.fneg(low_half(b, b.lshr(ds, const(V16I, 16))))
    value = fma(b, b.sitofp(low, V16F), dmin, b.fmul(b.sitofp(_across(b, room), V16F), d))
    return fma(b, value, splat(b, load(b, at(b, x, AT_D), F32)), y)


def _signed_row(b: Builder, packed: Packed, p: Value, x: Value) -> Value:
    """As `_affine_row`, for q6_k; codes are 32 too large."""
    steps = load(b, at(b, x, AT_SCALE32), V8I)
    steps = shuffle(b, steps, [lane // 2 for lane in range(LANES)])
    scales = b.sext(load(b, at(b, p, 192), ir.VectorType(I8, 16)), V16I)
    stepped = b.mul(scales, steps)
    shift = b.mul(stepped, load(b, at(b, x, AT_SHIFT16), V16I))
    lower = b.and_(stepped, const(V16I, 0xFFFF))  # signed, in the lower half
    return b.add(_weigh(b, packed, _dots(b, packed, p, x), lower), shift)


def _signed_rows(b: Builder, rows: list[Value], x: Value, room: Value, y: Value) -> Value:
    """One superblock of 16 rows of q6_k: y + d * dx * I."""
    dx = splat(b, load(b, at(b, x, AT_D), F32))
    d = halves(b, [at(b, p, 208) for p in rows])
    return fma(b, b.sitofp(_across(b, room), V16F), b.fmul(d, dx), y)


def _blocks_row(b: Builder, packed: Packed, p: Value, x: Value) -> Value:
    """The dots of the 8 groups of a superblock of q8_0: int32 x 8."""
    total = Reduction(b)
    for lanes in _dots(b, packed, p, x):  # 8 lanes a group
        total.push(lanes)
    fours = total.fours[0]  # quarters 0 and 1 hold groups 0, 2, 4, 6; 2 and 3 the odd ones
    parts = [shuffle(b, fours, [first + k + 8 * odd for k in range(4) for odd in (0, 1)])
             for first in (0, 4)]  # fmt: skip
    return b.add(*parts)


def group_sums(b: Builder, room: Value) -> list[Value]:
    """The sums of 8 groups of a superblock, one lane a weight row, from int32 [16 rows][8]."""
    totals: list[Value] = []
    for half in (0, 16):
        totals += columns4(b, [load(b, at(b, room, 32 * r + half), V4I) for r in range(LANES)])
    return totals


def add_groups(
    b: Builder, sums: list[Value], x: Value, y: Value, scales: list[Value],
    minima: list[Value] | None = None,
) -> Value:  # fmt: skip
    """One superblock: y + scale[g] * dx[g] * I[g] and then the minima's, group by group.

    Codes are 128 too large; minima are for sums of activations times -128.
    """
    for g, (total, scale) in enumerate(zip(sums, scales, strict=True)):
        dx = splat(b, load(b, at(b, x, AT_GROUP_D + 4 * g), F32))
        shift = splat(b, load(b, at(b, x, AT_SHIFT32 + 4 * g), I32))
        y = fma(b, b.sitofp(b.add(total, shift), V16F), b.fmul(scale, dx), y)
        if minima:
            y = fma(b, b.sitofp(shift, V16F), b.fmul(minima[g], dx), y)
    return y


def _blocks_rows(b: Builder, rows: list[Value], x: Value, room: Value, y: Value) -> Value:
    """One superblock of 16 rows of q8_0."""
    scales = [halves(b, [at(b, p, 34 * g) for p in rows]) for g in range(8)]
    return add_groups(b, group_sums(b, room), x, y, scales)


def _across(b: Builder, room: Value) -> Value:
    """The sums of 16 vectors of 16 lanes."""
    total = Reduction(b)
    for r in range(LANES):
        total.push(load(b, at(b, room, 4 * LANES * r), V16I))
    return total.whole()


# a row's vector of a superblock, bytes of it, and what 16 of them become
KINDS: dict[str, tuple[RowStep, int, RowsStep]] = {
    "q4_k": (_affine_row, 64, _affine_rows),
    "q5_k": (_affine_row, 64, _affine_rows),
    "q6_k": (_signed_row, 64, _signed_rows),
    "q8_0": (_blocks_row, 32, _blocks_rows),
}


def make_matvec(name: str, format: str) -> Any:
    """An intrinsic: addresses of 16 rows, bytes a row, address of records, of 16 results; n, room.

    n is the number of superblocks, room an address of n times ROW_ROOM bytes.
    """
    packed, (row_step, size, rows_step) = FORMATS[format], KINDS[format]

    def emit(b: Builder, args: tuple[Value, ...]) -> None:
        wp, row_bytes, xp, op, n, room = args

        def row(r: Value, values: list[Value]) -> list[Value]:
            first, out = advance(b, wp, r, row_bytes), advance(b, room, r, size)

            def superblock(i: Value, values: list[Value]) -> list[Value]:
                p = advance(b, first, i, packed.nbytes)
                prefetch(b, at(b, p, AHEAD), packed.nbytes)
                lanes = row_step(b, packed, p, advance(b, xp, i, RECORD))
                store(b, lanes, advance(b, out, i, size * LANES))
                return values

            return count_loop(b, n, values, superblock)

        def finish(i: Value, totals: list[Value]) -> list[Value]:
            start = advance(b, wp, i, packed.nbytes)
            rows = [advance(b, start, ir.Constant(I64, r), row_bytes) for r in range(LANES)]
            x, here = advance(b, xp, i, RECORD), advance(b, room, i, size * LANES)
            return [rows_step(b, rows, x, here, totals[0])]

        count_loop(b, ir.Constant(I64, LANES), [], row)
        store(b, count_loop(b, n, [const(V16F, 0.0)], finish)[0], op)

    return vector(name, "pppppp", emit)


for _format in FORMATS:
    make_matvec(f"one_row_{_format}", _format)
