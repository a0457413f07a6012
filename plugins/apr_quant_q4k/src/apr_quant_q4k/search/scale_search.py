"""Sixteen-lane search of one group of q6_k: value = step * q with q in -32..31."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from apr_quant_q4k.search.lanes import (
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

LOW, HIGH = table([-32] * LANES), table([31] * LANES)


@intrinsic
def best_scale(
    typing: Any, x: Any, w: Any, start: Any, count: Any, d: Any, first: Any, other: Any
) -> Any:
    """Return (error, scale) of the best of 8 scales from `first` on and 8 from `other` on.

    For x[start : start + count]; all scales are whole numbers, kept within int8.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        group = Group(context, b, sig, args)
        d, first, other = (splat(b, a) for a in args[4:])
        half = LANES // 2
        is_first = ir.Constant(ir.VectorType(ir.IntType(1), LANES), [1] * half + [0] * half)
        scale = b.fadd(b.select(is_first, first, other), table(2 * list(range(half))))
        scale = smaller(b, larger(b, scale, table([-128] * LANES)), table([127] * LANES))
        step = b.fmul(d, scale)
        inverse = reciprocal(b, step)

        def terms(value: Value) -> Any:
            q = rounded(b, b.fmul(value, inverse), LOW, HIGH)
            miss = b.fsub(value, b.fmul(step, q))
            return [b.fmul(miss, miss)]

        return make_tuple(context, b, sig, best_lane(b, [*group.sums(1, terms), scale]))

    return types.UniTuple(f32, 2)(x, w, i64, i64, f32, f32, f32), codegen
