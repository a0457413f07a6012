"""The levels of iq4_nl, which are uneven: the nearest one to a value, and sixteen-lane searches.

Twice a boundary between levels is a whole number, so that a value's code can be looked up by twice
the value, rounded up. Lanes try similar steps: in all of them a value lies between a few levels.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import partial
from itertools import pairwise
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from apr_quant_q4k.hooks import IQ4_NL
from apr_quant_q4k.search.block_search import either_side
from apr_quant_q4k.search.lanes import (
    F32,
    I32,
    I64,
    LANES,
    VECTOR,
    Value,
    call,
    extreme,
    f32,
    i64,
    larger,
    smaller,
    splat,
    table,
)

TWICE = [int(below + above) for below, above in pairwise(IQ4_NL)]
FIRST, LAST = TWICE[0], TWICE[-1] + 1
CODES = [bisect_left(TWICE, twice) for twice in range(FIRST, LAST + 1)]
FEW = 2  # boundaries that are compared with in any case
# None is above the last one; the rest is never read for a level.
BETWEEN = [twice / 2 for twice in TWICE] + [float("inf")] * (FEW + 1)
LEVELS = [*IQ4_NL, *[IQ4_NL[-1]] * FEW]


def _entry(b: ir.IRBuilder, name: str, kind: Any, values: list[Any], index: Value) -> Value:
    """Load an entry of a constant table."""
    array = ir.Constant(ir.ArrayType(kind, len(values)), values)
    return b.load(b.gep(cgutils.global_constant(b, f"iq4_nl_{name}", array), [I32(0), index]))


def _code(b: ir.IRBuilder, scaled: Value) -> Value:
    """Return the code of the level nearest to a float32: int64."""
    twice = call(b, "llvm.ceil.f32", F32, b.fadd(scaled, scaled))
    twice = smaller(b, larger(b, twice, F32(FIRST)), F32(LAST))
    index = b.sub(b.fptosi(twice, I64), I64(FIRST))
    return b.zext(_entry(b, "codes", ir.IntType(8), CODES, index), I64)


def _nearest(b: ir.IRBuilder, value: Value, inverse: Value) -> Value:
    """Return the level nearest to a value, in all lanes, over each lane's step."""
    scaled, one = b.fmul(value, inverse), b.extract_element(value, I32(0))
    ends = [b.fmul(one, extreme(b, inverse, pick)) for pick in (smaller, larger)]
    code = _code(b, smaller(b, *ends))
    between = partial(_entry, b, "between", F32, BETWEEN)
    levels = partial(_entry, b, "levels", F32, LEVELS)

    def raised(result: Value, k: Value) -> Value:
        above = b.fcmp_ordered(">", scaled, splat(b, between(k)))
        return b.select(above, splat(b, levels(b.add(k, I64(1)))), result)

    result = splat(b, levels(code))
    for k in range(FEW):
        result = raised(result, b.add(code, I64(k)))
    slot, following = cgutils.alloca_once(b, VECTOR), b.add(code, I64(FEW))
    b.store(result, slot)
    highest = larger(b, *ends)
    with cgutils.if_unlikely(b, b.fcmp_ordered(">", highest, between(following))):
        stop = _code(b, highest)
        with cgutils.for_range_slice(b, following, stop, I64(1), I64) as (k, _):
            b.store(raised(b.load(slot), k), slot)
    return b.load(slot)


@intrinsic
def level_code(typing: Any, scaled: Any) -> Any:
    """Return the code of the level nearest to a value over its step; of two, the lower one."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return _code(b, args[0])

    return i64(f32), codegen


@intrinsic
def best_step_of_levels(typing: Any, x: Any, w: Any, start: Any, count: Any, top: Any) -> Any:
    """Return (error, d) of the best d for x[start : start + count] and these levels."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        ends = [table([end] * LANES) for end in (IQ4_NL[0], IQ4_NL[-1])]
        return either_side(context, b, sig, args, ends, _nearest)

    return types.UniTuple(f32, 2)(x, w, i64, i64, f32), codegen
