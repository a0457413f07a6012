"""Small pieces of LLVM vector IR. Plain Numba loops over packed integers do not vectorize.

Vectors are 16 lanes of 32 bits; LLVM splits them for processors with narrower registers, so the
same IR runs everywhere. Only the 8-bit dot product has a variant for one instruction set.
"""

from __future__ import annotations

import os
from typing import Any

from llvmlite import binding, ir

I8, I16, I32, I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
F16, F32 = ir.HalfType(), ir.FloatType()
LANES = 16
V16F, V16I, V64B = (
    ir.VectorType(F32, LANES),
    ir.VectorType(I32, LANES),
    ir.VectorType(I8, 4 * LANES),
)

Value = Any


def dot_mode() -> str:
    """`vnni` where the processor has AVX-512 VNNI, else `generic`; APR_CPU_ISA forces one."""
    forced = os.environ.get("APR_CPU_ISA", "")
    if forced:
        return forced
    features = binding.get_host_cpu_features()
    return "vnni" if features.get("avx512vnni") and features.get("avx512vl") else "generic"


DOT_MODE = dot_mode()


def const(type_: Any, value: float) -> Value:
    """A scalar, or a vector with the value in every lane."""
    if isinstance(type_, ir.VectorType):
        return ir.Constant(type_, [value] * type_.count)
    return ir.Constant(type_, value)


def at(b: ir.IRBuilder, address: Value, offset: int) -> Value:
    """address + a constant number of bytes."""
    return b.add(address, ir.Constant(I64, offset)) if offset else address


def load(b: ir.IRBuilder, address: Value, type_: Any) -> Value:
    """Unaligned load from an integer address."""
    value = b.load(b.inttoptr(address, type_.as_pointer()))
    value.align = 1
    return value


def intrinsic_call(b: ir.IRBuilder, name: str, result: Any, *args: Value) -> Value:
    """Call an LLVM intrinsic by its mangled name."""
    function = b.module.globals.get(name) or ir.Function(
        b.module, ir.FunctionType(result, [a.type for a in args]), name
    )
    return b.call(function, args)


def splat(b: ir.IRBuilder, scalar: Value, count: int = LANES) -> Value:
    """The scalar in every lane."""
    vector = ir.VectorType(scalar.type, count)
    one = b.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(I32, 0))
    return shuffle(b, one, [0] * count)


def shuffle(b: ir.IRBuilder, vector: Value, lanes: list[int], other: Value = None) -> Value:
    """Lanes picked by constant indices, from `vector` and then `other`."""
    second = other if other is not None else ir.Constant(vector.type, ir.Undefined)
    return b.shuffle_vector(vector, second, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def fma(b: ir.IRBuilder, x: Value, y: Value, z: Value) -> Value:
    """x * y + z, rounded once: spelled out, so that tile shapes cannot change a result."""
    return intrinsic_call(b, "llvm.fma.v16f32", V16F, x, y, z)


def dot(b: ir.IRBuilder, w: Value, x: Value) -> Value:
    """64 unsigned times 64 signed bytes, summed in fours: int32 x 16, exact."""
    zero = const(V16I, 0)
    if DOT_MODE == "vnni":
        return intrinsic_call(b, "llvm.x86.avx512.vpdpbusd.512", V16I, zero, w, x)
    # neighbours are multiplied and added twice over: the shape of pmaddwd, which LLVM knows.
    # llvm.vector.partial.reduce.add would be shorter, but may sum any four, not neighbours.
    wide = ir.VectorType(I16, 64)
    w16, x16 = b.zext(w, wide), b.sext(x, wide)
    pair = ir.VectorType(I32, 32)
    even, odd = list(range(0, 64, 2)), list(range(1, 64, 2))
    products = [
        b.mul(b.sext(shuffle(b, w16, lanes), pair), b.sext(shuffle(b, x16, lanes), pair))
        for lanes in (even, odd)
    ]
    pairs = b.add(*products)
    return b.add(shuffle(b, pairs, even[:16]), shuffle(b, pairs, odd[:16]))


def horizontal_sum(b: ir.IRBuilder, v: Value) -> Value:
    """The sum of 16 lanes, by halves: a fixed order."""
    width = LANES
    while width > 1:
        width //= 2
        low = shuffle(b, v, list(range(width)))
        high = shuffle(b, v, list(range(width, 2 * width)))
        v = b.fadd(low, high)
    return b.extract_element(v, ir.Constant(I32, 0))


def half(b: ir.IRBuilder, address: Value) -> Value:
    """Load a float16 as float32."""
    return b.fpext(load(b, address, F16), F32)
