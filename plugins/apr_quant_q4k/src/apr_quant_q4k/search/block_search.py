"""Sixteen-lane searches of a block of 32 values: value = d * level, or d * code + m.

Lanes try different first steps. Each step's codes give d (and m) by least squares, rounded to
float16; the lane whose best codes for these have the least squared error wins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from apr_quant_q4k.search.lanes import (
    I32,
    INFINITY,
    LANES,
    VECTOR,
    Group,
    Value,
    best_lane,
    f32,
    i64,
    larger,
    make_tuple,
    reciprocal,
    rounded,
    smaller,
    splat,
    table,
)
from apr_quant_q4k.search.line_search import FIRST, ONE, PASSES, ZERO

MOST = table([65504] * LANES)
TRIES = 12  # first steps of either sign
# The value furthest from zero meets the outermost level times these.
LEAST, LARGEST = np.float32(0.72), np.float32(1.12)
TIMES = [
    float(LEAST + (LARGEST - LEAST) * np.float32(min(k, TRIES - 1)) / np.float32(TRIES - 1))
    for k in range(LANES)
]
WORDS = ir.VectorType(I32, LANES)
Nearest = Callable[[ir.IRBuilder, Value, Value], Value]  # (value, 1 / step) -> the nearest level


def _word(value: int) -> Value:
    return ir.Constant(WORDS, [value] * LANES)


def _half(b: ir.IRBuilder, x: Value) -> Value:
    """Return x rounded to float16, ties to even; |x| <= 65504."""
    bits = b.bitcast(x, WORDS)
    sign, size = b.and_(bits, _word(1 << 31)), b.and_(bits, _word((1 << 31) - 1))
    odd = b.and_(b.lshr(size, _word(13)), _word(1))
    normal = b.and_(b.add(size, b.add(odd, _word(0xFFF))), _word(0xFFFFE000))
    half = table([0.5] * LANES)  # to which 2^-24, a subnormal's unit, is the last bit
    small = b.bitcast(b.fsub(b.fadd(b.bitcast(size, VECTOR), half), half), WORDS)
    is_small = b.icmp_unsigned("<", size, _word(0x38800000))
    return b.bitcast(b.or_(b.select(is_small, small, normal), sign), VECTOR)


def _one_side(b: ir.IRBuilder, group: Group, outermost: Value, top: Value, nearest: Nearest) -> Any:
    """Return (error, d) of the best step for which `top` is near d * outermost."""
    inverse = b.fdiv(b.fmul(outermost, table(TIMES)), top)

    def products(value: Value) -> list[Value]:
        q = nearest(b, value, inverse)
        return [b.fmul(q, value), b.fmul(q, q)]

    qx, qq = group.sums(2, products)
    some = b.fcmp_ordered(">", qq, ZERO)
    d = b.select(some, b.fdiv(qx, b.select(some, qq, ONE)), ZERO)
    d = _half(b, smaller(b, larger(b, d, b.fsub(ZERO, MOST)), MOST))
    again = reciprocal(b, d)

    def misses(value: Value) -> list[Value]:
        miss = b.fsub(value, b.fmul(d, nearest(b, value, again)))
        return [b.fmul(miss, miss)]

    return best_lane(b, [*group.sums(1, misses), d])


def either_side(context: Any, b: Any, sig: Any, args: Any, ends: Any, nearest: Nearest) -> Any:
    """Return (error, d) of the best step for which `top` is near one of the outermost levels."""
    group, top = Group(context, b, sig, args), splat(b, args[4])
    (error, d), (other, d2) = (_one_side(b, group, end, top, nearest) for end in ends)
    less = b.fcmp_ordered("<", other, error)
    return make_tuple(context, b, sig, [b.select(less, other, error), b.select(less, d2, d)])


@intrinsic
def best_step(
    typing: Any, x: Any, w: Any, start: Any, count: Any, top: Any, low: Any, high: Any
) -> Any:
    """Return (error, d) of the best d for x[start : start + count] and levels low to high.

    `top` is the value furthest from 0, which it is not.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        low, high = (splat(b, a) for a in args[5:])

        def nearest(b: ir.IRBuilder, value: Value, inverse: Value) -> Value:
            return rounded(b, b.fmul(value, inverse), low, high)

        return either_side(context, b, sig, args, (low, high), nearest)

    return types.UniTuple(f32, 2)(x, w, i64, i64, f32, f32, f32), codegen


@intrinsic
def best_line(
    typing: Any, x: Any, w: Any, start: Any, count: Any, low: Any, high: Any, levels: Any
) -> Any:
    """Return (error, d, m) of the best line through x[start : start + count].

    low < high are the smallest and the largest value. The error is infinite if there is none.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        group, (low, high, levels) = Group(context, b, sig, args), (splat(b, a) for a in args[4:])
        n, most = group.size(), MOST
        step, m = b.fdiv(b.fsub(high, low), b.fadd(levels, table(FIRST))), low
        usable, best = b.fcmp_ordered("==", ZERO, ZERO), [INFINITY, ONE, ZERO]
        for _ in range(PASSES):
            inverse = b.fdiv(ONE, step)

            def terms(value: Value, m: Value = m, inverse: Value = inverse) -> list[Value]:
                above = b.fsub(value, m)
                q = rounded(b, b.fmul(above, inverse), ZERO, levels)
                return [q, b.fmul(q, q), above, b.fmul(q, above)]

            q, qq, y, qy = group.sums(4, terms)
            det = b.fsub(b.fmul(n, qq), b.fmul(q, q))
            usable = b.and_(usable, b.fcmp_ordered(">", det, ZERO))
            det = b.select(usable, det, ONE)
            line = b.fdiv(b.fsub(b.fmul(n, qy), b.fmul(q, y)), det)
            moved = b.fadd(m, b.fdiv(b.fsub(b.fmul(qq, y), b.fmul(q, qy)), det))
            for less, more in ((ZERO, line), (line, most), (moved, most), (b.fneg(most), moved)):
                usable = b.and_(usable, b.fcmp_ordered("<", less, more))
            step, m = b.select(usable, line, ONE), b.select(usable, moved, low)
            d, low16 = _half(b, step), _half(b, m)
            again = reciprocal(b, d)

            def misses(
                value: Value, d: Value = d, m: Value = low16, again: Value = again
            ) -> list[Value]:
                code = rounded(b, b.fmul(b.fsub(value, m), again), ZERO, levels)
                miss = b.fsub(value, b.fadd(b.fmul(d, code), m))
                return [b.fmul(miss, miss)]

            (error,) = group.sums(1, misses)
            better = b.and_(usable, b.fcmp_ordered("<", error, best[0]))
            pairs = zip((error, d, low16), best, strict=True)
            best = [b.select(better, new, old) for new, old in pairs]
        return make_tuple(context, b, sig, best_lane(b, best))

    return types.UniTuple(f32, 3)(x, w, i64, i64, f32, f32, f32), codegen
