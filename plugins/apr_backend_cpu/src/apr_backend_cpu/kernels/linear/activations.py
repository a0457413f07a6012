"""Activations for packed products: int8 with integer sub-scales, quantized once.

A row is cut into superblocks of 256 values, x = d * s_j * q with q int8, one float32 d per
superblock and one integer s_j from 1 to S for each 32 values. So everything a product sums over a
superblock is an integer, and integers can be summed in any order.

S is 32 where the integers of every format then stay below 2^31 and sums of 16 and 32 below 2^15,
which is nearly always; else 8, where they do for any values. The largest are those of q6_k: a
scale of 128, times codes at most 32 from zero, times s_j * q.

A superblock is a record of 1024 bytes, with offsets as in `constants`; sums are over q. Rows of
records are `row_of_records` bytes apart.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from apr_backend_cpu.constants import (
    AT_D,
    AT_GROUP_D,
    AT_Q,
    AT_Q16,
    AT_SHIFT,
    AT_SHIFT32,
    AT_STEP,
    AT_STEP32,
    AT_STEP_PAIR,
    AT_SUM16,
    AT_SUM32,
    GROUP,
    LANES,
    RECORD,
    ROW_GAP,
    SUPERBLOCK,
)
from apr_backend_cpu.kernels.linear.crossed import write_cross_sums
from apr_backend_cpu.kernels.source import helper, kernel, vector
from apr_backend_cpu.kernels.vector.builder import Builder
from apr_backend_cpu.kernels.vector.ir import (
    F32,
    I8,
    I16,
    I32,
    ROUND,
    ROUND_BITS,
    V16F,
    V16I,
    Value,
    const,
)
from apr_backend_cpu.kernels.vector.lanes import across
from apr_backend_cpu.kernels.vector.memory import U, floats_at, ints_at

STEPS, SAFE_STEPS = 32, 8  # S above
LARGEST_SUM = 2**15 - 1
SUM_LIMIT = 2**31 // (128 * 32)  # for the sum of s_j * |q|
INFINITY_BITS = 0x7F800000
GROUPS = SUPERBLOCK // GROUP
V8I, V8F = ir.VectorType(I32, GROUPS), ir.VectorType(F32, GROUPS)
V16B, V16H = ir.VectorType(I8, LANES), ir.VectorType(I16, LANES)
V8H = ir.VectorType(I16, GROUPS)


def _umax(b: Builder, x: Value, y: Value) -> Value:
    return b.select(b.icmp_unsigned(">", x, y), x, y)


def _halves(b: Builder, x: Value, y: Value, width: int) -> tuple[Value, Value]:
    """Return the first halves of all runs of `width` lanes in x and y, and the second halves."""
    starts = range(0, x.type.count + y.type.count, width)
    low = [start + lane for start in starts for lane in range(width // 2)]
    return b.shuffle(x, low, y), b.shuffle(x, [lane + width // 2 for lane in low], y)


def _tops(b: Builder, values: list[Value]) -> Value:
    """Return the largest magnitude in each two of 16 vectors, as bits: NaN exceeds infinity."""
    magnitude = const(V16I, 0x7FFFFFFF)
    bits = [b.and_(b.bitcast(v, V16I), magnitude) for v in values]
    tops, width = [_umax(b, *bits[2 * j : 2 * j + 2]) for j in range(GROUPS)], LANES
    while len(tops) > 1:
        tops = [_umax(b, *_halves(b, tops[i], tops[i + 1], width)) for i in range(0, len(tops), 2)]
        width //= 2
    even = [2 * j for j in range(GROUPS)]  # two lanes per group remain
    return _umax(b, b.shuffle(tops[0], even), b.shuffle(tops[0], [lane + 1 for lane in even]))


def _largest(b: Builder, tops: Value) -> Value:
    """Return the largest of 8 lanes, in all of them."""
    for distance in (4, 2, 1):
        turned = b.shuffle(tops, [(lane + distance) % GROUPS for lane in range(GROUPS)])
        tops = _umax(b, tops, turned)
    return tops


def _scales(b: Builder, tops: Value, steps: int) -> tuple[Value, Value, Value, Value]:
    """Return, for 8 groups: whether all values are finite, s_j, 1 / (d * s_j), and d.

    d is the same in all lanes.
    """
    top, one, zero = _largest(b, tops), const(V8F, 1.0), const(V8F, 0.0)
    finite = b.icmp_unsigned("<", top, const(V8I, INFINITY_BITS))
    unit = b.fdiv(b.bitcast(top, V8F), const(V8F, 127.0 * steps))
    inverse_bits = b.bitcast(b.fdiv(one, unit), V8I)  # infinite for zero or a subnormal
    usable = b.and_(finite, b.icmp_unsigned("<", inverse_bits, const(V8I, INFINITY_BITS)))
    unit = b.select(usable, unit, zero)
    wanted = b.fdiv(b.bitcast(tops, V8F), b.fmul(unit, const(V8F, 127.0)))
    wanted = b.intrinsic("llvm.ceil.v8f32", V8F, wanted)
    most = const(V8F, float(steps))
    wanted = b.select(b.fcmp_ordered(">", wanted, one), wanted, one)  # 1 also where it is NaN
    wanted = b.select(b.fcmp_ordered("<", wanted, most), wanted, most)
    wanted = b.select(usable, wanted, one)
    inverse = b.select(usable, b.fdiv(one, b.fmul(unit, wanted)), zero)
    return finite, wanted, inverse, unit


def _codes(b: Builder, x: Value, inverse: Value) -> Value:
    """Round 16 values to integers from -127 to 127."""
    top, bottom = const(V16F, 127.0), const(V16F, -127.0)
    scaled = b.fmul(x, inverse)
    scaled = b.select(b.fcmp_ordered(">", scaled, bottom), scaled, bottom)
    scaled = b.select(b.fcmp_ordered("<", scaled, top), scaled, top)
    rounded = b.bitcast(b.fadd(scaled, const(V16F, ROUND)), V16I)
    return b.sub(rounded, const(V16I, ROUND_BITS))


def _quantize(b: Builder, x: Value, record: Value, steps: int) -> Value:
    """Write one record from 256 values; return whether its sums fit.

    d is NaN if any value is not finite.
    """
    values = [b.read(b.at(x, 4 * LANES * v), V16F) for v in range(SUPERBLOCK // LANES)]
    finite, wanted, inverse, unit = _scales(b, _tops(b, values), steps)
    all_finite, scales = b.shuffle(finite, [0] * LANES), b.fptosi(wanted, V8I)
    sums, size = [], const(V16I, 0)
    for v, value in enumerate(values):
        value = b.select(all_finite, value, const(V16F, 0.0))
        codes = _codes(b, value, b.shuffle(inverse, [v // 2] * LANES))
        b.write(b.trunc(codes, V16B), b.at(record, AT_Q + LANES * v))
        b.write(b.trunc(codes, V16H), b.at(record, AT_Q16 + 2 * LANES * v))
        sums.append(codes)
        size = b.add(size, b.mul(_absolute(b, codes), b.shuffle(scales, [v // 2] * LANES)))
    if b.sums_pairs:
        write_cross_sums(b, record)
    top = _store_integers(b, record, across(b, sums), scales)
    nan = const(V8F, float("nan"))
    unit = b.select(finite, unit, nan)
    b.write(b.select(finite, b.fmul(unit, wanted), nan), b.at(record, AT_GROUP_D))
    b.write(b.extract_element(unit, ir.Constant(I32, 0)), b.at(record, AT_D))
    total = b.intrinsic("llvm.vector.reduce.add.v16i32", I32, size)
    return b.and_(
        b.icmp_unsigned("<", total, ir.Constant(I32, SUM_LIMIT)),
        b.icmp_unsigned("<=", top, ir.Constant(I32, LARGEST_SUM)),
    )


def _absolute(b: Builder, x: Value) -> Value:
    return b.select(b.icmp_signed("<", x, const(x.type, 0)), b.neg(x), x)


def _store_integers(b: Builder, record: Value, sums: Value, steps: Value) -> Value:
    """Store scales, and sums [16] of 16 codes each, in the forms that products read.

    Returns the largest magnitude stored in 16 bits.
    """
    even = [2 * j for j in range(GROUPS)]
    odd = [lane + 1 for lane in even]
    pairs = b.add(b.shuffle(sums, even), b.shuffle(sums, odd))
    weighed = b.mul(pairs, steps)
    halves = b.mul(sums, b.shuffle(steps, [lane // 2 for lane in range(LANES)]))
    b.write(b.trunc(halves, V16H), b.at(record, AT_SUM16))
    b.write(b.trunc(weighed, V8H), b.at(record, AT_SUM32))
    b.write(b.trunc(steps, V8H), b.at(record, AT_STEP))
    b.write(b.mul(steps, const(V8I, 0x10001)), b.at(record, AT_STEP_PAIR))
    b.write(steps, b.at(record, AT_STEP32))
    shifts = b.mul(pairs, const(V8I, -128))
    b.write(b.sitofp(shifts, V8F), b.at(record, AT_SHIFT32))
    if not b.sums_pairs:
        b.write(shifts, b.at(record, AT_SHIFT))
    tops = [
        b.intrinsic(f"llvm.vector.reduce.umax.v{v.type.count}i32", I32, _absolute(b, v))
        for v in (weighed, halves)
    ]
    return b.select(b.icmp_unsigned(">", *tops), *tops)


def _quantize_superblock(b: Builder, args: tuple[Value, ...]) -> None:
    """Write the record at an address from 256 values at another."""
    source, record = args
    with b.if_then(b.not_(_quantize(b, source, record, STEPS)), likely=False):
        _quantize(b, source, record, SAFE_STEPS)


quantize_superblock = vector("quantize_superblock", "pp", _quantize_superblock)


@helper
def row_of_records(blocks):
    """Return the bytes from one row's records to the next row's."""
    return blocks * RECORD + ROW_GAP


@helper
def quantize_block(x, size, block, records, scratch):
    """Write the record of a row's block: addresses of its `size` values and first record.

    A short last block is padded with zeros in `scratch`.
    """
    first = block * SUPERBLOCK
    count, source = min(size - first, SUPERBLOCK), x + 4 * first
    if count < SUPERBLOCK:
        values, inputs = floats_at(scratch, SUPERBLOCK), floats_at(source, count)
        for i in range(count):
            values[i] = inputs[i]
        for i in range(count, SUPERBLOCK):
            values[i] = np.float32(0.0)
        quantize_superblock(U(scratch), U(records + RECORD * block))
    else:
        quantize_superblock(U(source), U(records + RECORD * block))


@kernel()
def quantize_task(arguments, i, scratch):
    """Quantize one superblock of a row.

    Arguments: x, row stride, columns, records, superblocks.
    """
    a = ints_at(arguments, 5)
    t, block = i // a[4], i % a[4]
    quantize_block(a[0] + t * a[1], a[2], block, a[3] + t * row_of_records(a[4]), scratch)
