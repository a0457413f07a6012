"""Sums over one group's values, sixteen values side by side, added in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from apr_quant_q4k.search.lanes import (
    I32,
    I64,
    INFINITY,
    LANES,
    VECTOR,
    Value,
    best_lane,
    extreme,
    f32,
    i64,
    larger,
    make_tuple,
    reciprocal,
    rounded,
    smaller,
    splat,
    table,
    total,
)

ZERO = table([0] * LANES)
INDEX = ir.VectorType(I64, LANES)


def _vectors(
    context: Any, b: ir.IRBuilder, sig: Any, args: Any, width: int
) -> Iterator[tuple[Value, Value]]:
    """Yield vectors of x[start : start + width], and which lanes are within `count`."""
    array, start, count = args[:3]
    data = context.make_array(sig.args[0])(context, b, value=array).data
    limit = ir.Constant(INDEX, ir.Undefined)
    for lane in range(LANES):
        limit = b.insert_element(limit, count, I32(lane))
    for first in range(0, width, LANES):
        at = b.gep(data, [b.add(start, I64(first))])
        vector = b.load(b.bitcast(at, VECTOR.as_pointer()))
        vector.align = 4
        index = ir.Constant(INDEX, list(range(first, first + LANES)))
        yield vector, b.icmp_signed("<", index, limit)


@intrinsic
def extent(typing: Any, x: Any, start: Any, count: Any) -> Any:
    """Return (low, span, y, yy) of up to 32 values.

    low = min(0, smallest), span = largest - low; y and yy are the sums of x - low and its square.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        vectors = list(_vectors(context, b, sig, args, 32))
        low, high = ZERO, b.fsub(ZERO, INFINITY)
        for x, inside in vectors:
            low = smaller(b, b.select(inside, x, ZERO), low)
            high = larger(b, b.select(inside, x, high), high)
        low, high = extreme(b, low, smaller), extreme(b, high, larger)
        y, yy = ZERO, ZERO
        for x, inside in vectors:
            above = b.select(inside, b.fsub(x, splat(b, low)), ZERO)
            y, yy = b.fadd(y, above), b.fadd(yy, b.fmul(above, above))
        return make_tuple(context, b, sig, [low, b.fsub(high, low), total(b, y), total(b, yy)])

    return types.UniTuple(f32, 4)(x, i64, i64), codegen


@intrinsic
def peak(typing: Any, x: Any, start: Any, count: Any) -> Any:
    """Return the value furthest from 0 of up to 16 values."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        ((x, inside),) = _vectors(context, b, sig, args, LANES)
        x = b.select(inside, x, ZERO)
        return best_lane(b, [smaller(b, x, b.fsub(ZERO, x)), x])[1]

    return f32(x, i64, i64), codegen


def _code_sums(width: int) -> Any:
    """Return an intrinsic for groups of `width` values."""

    @intrinsic
    def code_sums(
        typing: Any, x: Any, start: Any, count: Any, step: Any, offset: Any, low: Any, high: Any
    ) -> Any:
        """Return (q, qq, qx, x): sums over codes q of x = step * q - offset and values x."""

        def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
            step, offset, low, high = (splat(b, a) for a in args[3:])
            inverse = reciprocal(b, step)
            sums = [ZERO] * 4
            for x, inside in _vectors(context, b, sig, args, width):
                q = rounded(b, b.fmul(b.fadd(x, offset), inverse), low, high)
                q, x = b.select(inside, q, ZERO), b.select(inside, x, ZERO)
                terms = q, b.fmul(q, q), b.fmul(q, x), x
                sums = [b.fadd(s, t) for s, t in zip(sums, terms, strict=True)]
            return make_tuple(context, b, sig, [total(b, s) for s in sums])

        return types.UniTuple(f32, 4)(x, i64, i64, f32, f32, f32, f32), codegen

    return code_sums


code_sums_32, code_sums_16 = _code_sums(32), _code_sums(16)
