"""Vector IR of the searches: sixteen candidates side by side, one in each lane.

A lane sums over a group's values one after the other, and nothing is reordered or fused: every
processor finds the same scales, however wide its vectors are. LLVM splits the lanes as needed.
Plain Numba loops would need reordered sums to vectorize, so bytes would depend on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

Value = Any
I32, I64, F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
LANES = 16
VECTOR = ir.VectorType(F32, LANES)
INFINITY = ir.Constant(VECTOR, [float("inf")] * LANES)
f32, i64 = types.float32, types.int64


def table(values: Sequence[float]) -> Value:
    """Return a constant vector."""
    return ir.Constant(VECTOR, [float(v) for v in values])


def splat(b: ir.IRBuilder, scalar: Value) -> Value:
    """Return the scalar in every lane."""
    undefined = ir.Constant(VECTOR, ir.Undefined)
    one = b.insert_element(undefined, scalar, I32(0))
    return b.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(I32, LANES), [0] * LANES))


def call(b: ir.IRBuilder, name: str, result: Any, *args: Value) -> Value:
    """Call an LLVM intrinsic by its mangled name."""
    function = b.module.globals.get(name) or ir.Function(
        b.module, ir.FunctionType(result, [a.type for a in args]), name
    )
    return b.call(function, args)


def smaller(b: ir.IRBuilder, x: Value, y: Value) -> Value:
    """Return the smaller of each lane; there are no NaNs here."""
    return b.select(b.fcmp_ordered("<", x, y), x, y)


def larger(b: ir.IRBuilder, x: Value, y: Value) -> Value:
    """Return the larger of each lane."""
    return b.select(b.fcmp_ordered(">", x, y), x, y)


def rounded(b: ir.IRBuilder, x: Value, low: Value, high: Value) -> Value:
    """Return the nearest integer (ties to even) within [low, high]."""
    name = "llvm.rint.v16f32" if isinstance(x.type, ir.VectorType) else "llvm.rint.f32"
    return smaller(b, larger(b, call(b, name, x.type, x), low), high)


def reciprocal(b: ir.IRBuilder, step: Value) -> Value:
    """Return 1 / step, and 0 where the step is 0."""
    zero, one = table([0] * LANES), table([1] * LANES)
    is_zero = b.fcmp_ordered("==", step, zero)
    return b.select(is_zero, zero, b.fdiv(one, b.select(is_zero, one, step)))


def halves(b: ir.IRBuilder, v: Value, width: int) -> list[Value]:
    """Return the first `width` lanes, and the `width` lanes after them."""
    kind = ir.VectorType(I32, width)
    return [
        b.shuffle_vector(v, v, ir.Constant(kind, list(range(at, at + width)))) for at in (0, width)
    ]


def total(b: ir.IRBuilder, v: Value) -> Value:
    """Return the sum of all lanes, by halves: a fixed order."""
    width = LANES
    while width > 1:
        width //= 2
        v = b.fadd(*halves(b, v, width))
    return b.extract_element(v, I32(0))


def extreme(b: ir.IRBuilder, v: Value, pick: Callable[..., Value]) -> Value:
    """Return the smallest or largest lane; `pick` is `smaller` or `larger`."""
    width = LANES
    while width > 1:
        width //= 2
        v = pick(b, *halves(b, v, width))
    return b.extract_element(v, I32(0))


def pointers(context: Any, b: ir.IRBuilder, kinds: Any, args: Any) -> list[Value]:
    """Return pointers to the values of those of the first arguments that are arrays."""
    pairs = [(t, a) for t, a in zip(kinds, args, strict=False) if isinstance(t, types.Array)]
    return [context.make_array(t)(context, b, value=a).data for t, a in pairs]


class Group:
    """A run of `count` values of a float32 array and of its weights, inside an intrinsic's code.

    Where there are None, all weigh the same.
    """

    def __init__(self, context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> None:
        self.b, self.count, arrays = b, args[3], pointers(context, b, sig.args, args[:2])
        self.pointers = [b.gep(array, [args[2]]) for array in arrays]

    def sums(self, lanes: int, terms: Callable[[Value], list[Value]]) -> list[Value]:
        """Return `lanes` vectors: `terms(value in all lanes)`, weighed, summed over the values."""
        b = self.b
        zero = table([0] * LANES)
        slots = [cgutils.alloca_once_value(b, zero) for _ in range(lanes)]
        for slot in slots:
            b.store(zero, slot)  # the alloca is at the function's start; this may be in a loop
        with cgutils.for_range(b, self.count, intp=I64) as loop:
            value, *weight = [splat(b, b.load(b.gep(p, [loop.index]))) for p in self.pointers]
            for slot, term in zip(slots, terms(value), strict=True):
                weighed = b.fmul(term, weight[0]) if weight else term
                b.store(b.fadd(b.load(slot), weighed), slot)
        return [b.load(slot) for slot in slots]

    def size(self) -> Value:
        """Return the sum of the weights, in all lanes."""
        if len(self.pointers) > 1:
            return self.sums(1, lambda _: [table([1] * LANES)])[0]
        return splat(self.b, self.b.sitofp(self.count, F32))


def best_lane(b: ir.IRBuilder, vectors: list[Value]) -> list[Value]:
    """Return one lane of each vector: the one with the smallest value in the first vector."""
    width = LANES
    while width > 1:
        width //= 2
        lows, highs = zip(*(halves(b, v, width) for v in vectors), strict=True)
        less = b.fcmp_ordered("<", highs[0], lows[0])
        vectors = [b.select(less, high, low) for low, high in zip(lows, highs, strict=True)]
    return [b.extract_element(v, I32(0)) for v in vectors]


def make_tuple(context: Any, b: ir.IRBuilder, sig: Any, values: list[Value]) -> Value:
    """Return a tuple of scalars as an intrinsic returns it."""
    return context.make_tuple(b, sig.return_type, values)


@intrinsic
def nearest(typing: Any, x: Any) -> Any:
    """Return the nearest integer, ties to even, as float32."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return call(b, "llvm.rint.f32", F32, args[0])

    return f32(f32), codegen
