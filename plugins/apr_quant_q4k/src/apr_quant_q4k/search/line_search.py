"""Sixteen-lane searches of a q4_k or q5_k group: value = step * q - offset, q in 0..levels."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from apr_quant_q4k.search.lanes import (
    INFINITY,
    LANES,
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

ZERO, ONE = table([0] * LANES), table([1] * LANES)
# The first steps are span / (levels + these): fewer levels pay off if few values are far out.
FIRST = [-2.5 + 0.25 * k for k in range(LANES)]
PASSES = 2  # of least squares, each from the codes of the previous line
# Neighbours (scale, minimum) that are tried. A larger step with a larger offset is the same line
# turned about its middle, so low errors are on the diagonal. The present pair wins ties.
WINDOW = [
    (0, 0), (1, 1), (-1, -1), (1, 0), (0, 1), (-1, 0), (0, -1), (2, 1), (1, 2), (-2, -1), (-1, -2),
    (2, 2), (-2, -2), (1, -1), (-1, 1), (2, 0),
]  # fmt: skip


def _least_squares(
    b: ir.IRBuilder, low: Value, sums: list[Value], all_of: tuple[Value, Value, Value]
) -> tuple[Value, Value, Value]:
    """Return (step, offset, error) per lane of y = step * q + offset; low + offset <= 0."""
    q, qq, qy = sums
    count, y, yy = all_of
    det = b.fsub(b.fmul(count, qq), b.fmul(q, q))
    usable = b.fcmp_ordered(">", det, ZERO)
    det = b.select(usable, det, ONE)
    step = b.fdiv(b.fsub(b.fmul(count, qy), b.fmul(q, y)), det)
    offset = b.fdiv(b.fsub(b.fmul(qq, y), b.fmul(q, qy)), det)
    # a positive offset becomes 0, and the step the best one through 0
    positive = b.fcmp_ordered(">", b.fadd(low, offset), ZERO)
    through_zero = b.fdiv(b.fadd(qy, b.fmul(low, q)), larger(b, qq, ONE))
    step = b.select(positive, through_zero, step)
    offset = b.select(positive, b.fsub(ZERO, low), offset)
    # sum of (y - step q - offset)^2, multiplied out
    miss = b.fsub(yy, b.fmul(step, b.fadd(qy, qy)))
    miss = b.fadd(miss, b.fmul(b.fmul(step, step), qq))
    cross = b.fsub(b.fmul(step, q), y)
    miss = b.fadd(miss, b.fmul(offset, b.fadd(b.fmul(count, offset), b.fadd(cross, cross))))
    usable = b.and_(usable, b.fcmp_ordered(">", step, ZERO))
    return b.select(usable, step, ONE), offset, b.select(usable, miss, INFINITY)


@intrinsic
def fit_line(
    typing: Any,
    x: Any,
    w: Any,
    start: Any,
    count: Any,
    low: Any,
    span: Any,
    y: Any,
    yy: Any,
    levels: Any,
) -> Any:
    """Return (error, step, offset) of the best line through x[start : start + count].

    low = min(0, smallest value), span = largest - low > 0; y and yy are the sums of x - low and of
    its square. The error is infinite where no candidate has two different codes.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        group = Group(context, b, sig, args)
        low, span, y, yy, levels = (splat(b, a) for a in args[4:])
        all_of = group.size(), y, yy
        inverse, offset = b.fdiv(b.fadd(levels, table(FIRST)), span), ZERO
        for _ in range(PASSES):

            def terms(value: Value, offset: Value = offset, inverse: Value = inverse) -> Any:
                above = b.fsub(value, low)
                q = rounded(b, b.fmul(b.fsub(above, offset), inverse), ZERO, levels)
                return [q, b.fmul(q, q), b.fmul(q, above)]

            step, offset, error = _least_squares(b, low, group.sums(3, terms), all_of)
            inverse = b.fdiv(ONE, step)
        return make_tuple(context, b, sig, best_lane(b, [error, step, b.fadd(low, offset)]))

    result = types.UniTuple(f32, 3)
    return result(x, w, i64, i64, f32, f32, f32, f32, f32), codegen


@intrinsic
def best_pair(
    typing: Any,
    x: Any,
    w: Any,
    start: Any,
    count: Any,
    d: Any,
    dmin: Any,
    sc: Any,
    mn: Any,
    levels: Any,
) -> Any:
    """Return (error, sc, mn) of the best neighbour of (sc, mn) for x[start : start + count]."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        group = Group(context, b, sig, args)
        d, dmin, sc, mn, levels = (splat(b, a) for a in args[4:])
        top = table([63] * LANES)
        s = smaller(b, larger(b, b.fadd(sc, table([p[0] for p in WINDOW])), ZERO), top)
        m = smaller(b, larger(b, b.fadd(mn, table([p[1] for p in WINDOW])), ZERO), top)
        step, offset = b.fmul(d, s), b.fmul(dmin, m)
        inverse = reciprocal(b, step)

        def terms(value: Value) -> list[Value]:
            q = rounded(b, b.fmul(b.fadd(value, offset), inverse), ZERO, levels)
            miss = b.fsub(value, b.fsub(b.fmul(step, q), offset))
            return [b.fmul(miss, miss)]

        (error,) = group.sums(1, terms)
        return make_tuple(context, b, sig, best_lane(b, [error, s, m]))

    result = types.UniTuple(f32, 3)
    return result(x, w, i64, i64, f32, f32, f32, f32, f32), codegen
