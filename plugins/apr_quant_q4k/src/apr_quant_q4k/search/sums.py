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
    pointers,
    reciprocal,
    rounded,
    smaller,
    splat,
    table,
    total,
)

ZERO, ONE = table([0] * LANES), table([1] * LANES)
INDEX = ir.VectorType(I64, LANES)


def _vectors(
    b: ir.IRBuilder, arrays: list[Value], start: Value, count: Value, width: int
) -> Iterator[tuple[Value, list[Value]]]:
    """Yield which lanes are within `count`, and vectors of arrays[start : start + width]."""
    limit = ir.Constant(INDEX, ir.Undefined)
    for lane in range(LANES):
        limit = b.insert_element(limit, count, I32(lane))
    for first in range(0, width, LANES):
        at, vectors = b.add(start, I64(first)), []
        for array in arrays:
            vector = b.load(b.bitcast(b.gep(array, [at]), VECTOR.as_pointer()))
            vector.align = 4
            vectors.append(vector)
        index = ir.Constant(INDEX, list(range(first, first + LANES)))
        yield b.icmp_signed("<", index, limit), vectors


def _add(
    b: ir.IRBuilder, sums: list[Value], terms: list[Value], weight: list[Value]
) -> list[Value]:
    """Add terms to sums, weighed where there is a weight."""
    weighed = [b.fmul(t, weight[0]) for t in terms] if weight else terms
    return [b.fadd(s, t) for s, t in zip(sums, weighed, strict=True)]


@intrinsic
def extent(typing: Any, x: Any, w: Any, start: Any, count: Any) -> Any:
    """Return (low, span, y, yy) of up to 32 values.

    low = min(0, smallest), span = largest - low; y and yy are the sums of x - low and its square,
    weighed where weights w are not None.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        arrays = pointers(context, b, sig.args, args[:2])
        vectors = list(_vectors(b, arrays, args[2], args[3], 32))
        low, high = ZERO, b.fsub(ZERO, INFINITY)
        for inside, (x, *_) in vectors:
            low = smaller(b, b.select(inside, x, ZERO), low)
            high = larger(b, b.select(inside, x, high), high)
        low, high = extreme(b, low, smaller), extreme(b, high, larger)
        sums = [ZERO, ZERO]
        for inside, (x, *weight) in vectors:
            above = b.select(inside, b.fsub(x, splat(b, low)), ZERO)
            sums = _add(b, sums, [above, b.fmul(above, above)], weight)
        y, yy = (total(b, s) for s in sums)
        return make_tuple(context, b, sig, [low, b.fsub(high, low), y, yy])

    return types.UniTuple(f32, 4)(x, w, i64, i64), codegen


@intrinsic
def peak(typing: Any, x: Any, start: Any, count: Any) -> Any:
    """Return the value furthest from 0 of up to 16 values."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        ((inside, (x,)),) = _vectors(
            b, pointers(context, b, sig.args, args), args[1], args[2], LANES
        )
        x = b.select(inside, x, ZERO)
        return best_lane(b, [smaller(b, x, b.fsub(ZERO, x)), x])[1]

    return f32(x, i64, i64), codegen


def _code_sums(width: int) -> Any:
    """Return an intrinsic for groups of `width` values."""

    @intrinsic
    def code_sums(
        typing: Any,
        x: Any,
        w: Any,
        start: Any,
        count: Any,
        step: Any,
        offset: Any,
        low: Any,
        high: Any,
    ) -> Any:
        """Return (q, qq, qx, x, 1): sums over codes q of x = step * q - offset and values x."""

        def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
            step, offset, low, high = (splat(b, a) for a in args[4:])
            arrays = pointers(context, b, sig.args, args[:2])
            inverse = reciprocal(b, step)
            sums = [ZERO] * 5
            for inside, (x, *weight) in _vectors(b, arrays, args[2], args[3], width):
                q = rounded(b, b.fmul(b.fadd(x, offset), inverse), low, high)
                q, x = b.select(inside, q, ZERO), b.select(inside, x, ZERO)
                one = b.select(inside, ONE, ZERO)
                terms = [q, b.fmul(q, q), b.fmul(q, x), x, one]
                sums = _add(b, sums, terms, weight)
            return make_tuple(context, b, sig, [total(b, s) for s in sums])

        return types.UniTuple(f32, 5)(x, w, i64, i64, f32, f32, f32, f32), codegen

    return code_sums


code_sums_32, code_sums_16 = _code_sums(32), _code_sums(16)
