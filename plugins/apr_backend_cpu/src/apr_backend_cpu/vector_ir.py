"""Small pieces of LLVM vector IR. Plain Numba loops over packed integers do not vectorize.

Vectors are 16 lanes of 32 bits; LLVM splits them for processors with narrower registers, so the
same IR runs everywhere. Only the 8-bit dot product has a variant for one instruction set.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir

from apr_core.errors import BackendError

I8, I16, I32, I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
F16, F32 = ir.HalfType(), ir.FloatType()
LANES = 16
CACHE_LINE = 64  # bytes
V16F, V16I, V64B = (
    ir.VectorType(F32, LANES),
    ir.VectorType(I32, LANES),
    ir.VectorType(I8, 4 * LANES),
)

Value = Any


ISAS = ("vnni", "avx2", "generic")


def dot_mode() -> str:
    """The instructions of the byte products: what the processor has, or what APR_CPU_ISA says.

    `vnni` needs AVX-512 VNNI, `avx2` AVX2; `generic` is plain LLVM vectors for any processor.
    """
    features = binding.get_host_cpu_features()
    if platform.machine() in ("x86_64", "AMD64") and not features.get("f16c"):
        raise BackendError(
            "this processor cannot convert float16 numbers (F16C), which weights and caches hold",
            "Use an x86 processor of 2013 or later, or another backend.",
        )
    if features.get("avx512vnni") and features.get("avx512vl"):
        best = "vnni"
    else:
        best = "avx2" if features.get("avx2") else "generic"
    forced = os.environ.get("APR_CPU_ISA", "")
    if forced and (forced not in ISAS or ISAS.index(forced) < ISAS.index(best)):
        raise BackendError(
            f"APR_CPU_ISA={forced} is not possible here",
            f"This processor runs {', '.join(ISAS[ISAS.index(best) :])}.",
        )
    return forced or best


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


def dot(b: ir.IRBuilder, total: Value, w: Value, x: Value, bits: int = 8) -> Value:
    """total + 64 unsigned times 64 signed bytes, summed in fours: int32 x 16, exact.

    `bits` says how many of the unsigned bytes' bits are in use.
    """
    if DOT_MODE == "vnni":
        return intrinsic_call(b, "llvm.x86.avx512.vpdpbusd.512", V16I, total, w, x)
    if DOT_MODE == "avx2" and bits < 8:  # pairs fit 16 bits: 2 * 127 * 127 < 2^15
        return b.add(total, _join_halves(b, w, x, _dot_avx2))
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
    return b.add(total, b.add(shuffle(b, pairs, even[:16]), shuffle(b, pairs, odd[:16])))


def weigh(b: ir.IRBuilder, total: Value, x: Value, scale: Value) -> Value:
    """total + x * scale in every lane; both fit 16 bits signed, `scale` in the lower half only."""
    if DOT_MODE == "vnni":  # the upper half of `scale` is zero, so one product counts
        v32 = ir.VectorType(I16, 32)
        pair = [b.bitcast(v, v32) for v in (x, scale)]
        return intrinsic_call(b, "llvm.x86.avx512.vpdpwssd.512", V16I, total, *pair)
    sixteen = const(V16I, 16)
    return b.add(total, b.mul(x, b.ashr(b.shl(scale, sixteen), sixteen)))


def pair_dot(b: ir.IRBuilder, total: Value, x: Value, y: Value) -> Value:
    """total + both int16 of each lane of x times those of y."""
    v32 = ir.VectorType(I16, 32)
    if DOT_MODE == "vnni":
        pair = [b.bitcast(v, v32) for v in (x, y)]
        return intrinsic_call(b, "llvm.x86.avx512.vpdpwssd.512", V16I, total, *pair)
    sixteen = const(V16I, 16)
    low = b.mul(*(b.ashr(b.shl(v, sixteen), sixteen) for v in (x, y)))
    high = b.mul(*(b.ashr(v, sixteen) for v in (x, y)))
    return b.add(total, b.add(low, high))


def _join_halves(b: ir.IRBuilder, w: Value, x: Value, half: Any) -> Value:
    low, high = list(range(32)), list(range(32, 64))
    parts = [half(b, shuffle(b, w, pick), shuffle(b, x, pick)) for pick in (low, high)]
    return shuffle(b, parts[0], list(range(16)), parts[1])


def _dot_avx2(b: ir.IRBuilder, w: Value, x: Value) -> Value:
    """32 bytes each -> int32 x 8."""
    v16 = ir.VectorType(I16, 16)
    pairs = intrinsic_call(b, "llvm.x86.avx2.pmadd.ub.sw", v16, w, x)
    ones = const(v16, 1)
    return intrinsic_call(b, "llvm.x86.avx2.pmadd.wd", ir.VectorType(I32, 8), pairs, ones)


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


def store(b: ir.IRBuilder, value: Value, address: Value) -> None:
    """Unaligned store to an integer address."""
    b.store(value, b.inttoptr(address, value.type.as_pointer())).align = 1


def prefetch(b: ir.IRBuilder, address: Value, nbytes: int) -> None:
    """Ask for the cache lines of a range that is read soon. Any address may be asked for."""
    pointer = ir.IntType(8).as_pointer()
    function = b.module.globals.get("llvm.prefetch.p0") or ir.Function(
        b.module, ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32]), "llvm.prefetch.p0"
    )
    read, second_level, data = (ir.Constant(I32, v) for v in (0, 2, 1))
    for line in range(0, nbytes, CACHE_LINE):
        b.call(function, [b.inttoptr(at(b, address, line), pointer), read, second_level, data])


def advance(b: ir.IRBuilder, base: Value, index: Value, stride: int | Value) -> Value:
    """base + index * stride, in bytes."""
    step = ir.Constant(I64, stride) if isinstance(stride, int) else stride
    return b.add(base, b.mul(index, step))


def count_loop(
    b: ir.IRBuilder, n: Value, start: list[Value], body: Callable[[Value, list[Value]], list[Value]]
) -> list[Value]:
    """Run `body(i, values) -> values` for i from 0 below n, n at least 1; returns the last."""
    before = b.block
    loop, done = b.append_basic_block("loop"), b.append_basic_block("loop.done")
    b.branch(loop)
    b.position_at_end(loop)
    i = b.phi(I64)
    i.add_incoming(ir.Constant(I64, 0), before)
    values = [b.phi(v.type) for v in start]
    for phi, value in zip(values, start, strict=True):
        phi.add_incoming(value, before)
    results = body(i, list(values))
    following = b.add(i, ir.Constant(I64, 1))
    i.add_incoming(following, b.block)
    for phi, result in zip(values, results, strict=True):
        phi.add_incoming(result, b.block)
    b.cbranch(b.icmp_unsigned("<", following, n), loop, done)
    b.position_at_end(done)
    return results
