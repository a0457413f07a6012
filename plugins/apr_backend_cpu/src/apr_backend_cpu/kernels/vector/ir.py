"""Small pieces of LLVM vector IR. Plain Numba loops over packed integers do not vectorize.

Vectors are 16 lanes of 32 bits; LLVM splits them for processors with narrower registers, so the
same IR runs everywhere. Only the 8-bit dot product has a variant for one instruction set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from apr_backend_cpu.kernels.source import Builder

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


def const(type_: Any, value: float) -> Value:
    """A scalar, or a vector with the value in every lane."""
    if isinstance(type_, ir.VectorType):
        return ir.Constant(type_, [value] * type_.count)
    return ir.Constant(type_, value)


def at(b: Builder, address: Value, offset: int) -> Value:
    """address + a constant number of bytes."""
    return b.add(address, ir.Constant(I64, offset)) if offset else address


def load(b: Builder, address: Value, type_: Any) -> Value:
    """Unaligned load from an integer address."""
    value = b.load(b.inttoptr(address, type_.as_pointer()))
    value.align = 1
    return value


def intrinsic_call(b: Builder, name: str, result: Any, *args: Value) -> Value:
    """Call an LLVM intrinsic by its mangled name."""
    function = b.module.globals.get(name) or ir.Function(
        b.module, ir.FunctionType(result, [a.type for a in args]), name
    )
    return b.call(function, args)


def splat(b: Builder, scalar: Value, count: int = LANES) -> Value:
    """The scalar in every lane."""
    vector = ir.VectorType(scalar.type, count)
    one = b.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(I32, 0))
    return shuffle(b, one, [0] * count)


def shuffle(b: Builder, vector: Value, lanes: list[int], other: Value = None) -> Value:
    """Lanes picked by constant indices, from `vector` and then `other`."""
    second = other if other is not None else ir.Constant(vector.type, ir.Undefined)
    return b.shuffle_vector(vector, second, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def fma(b: Builder, x: Value, y: Value, z: Value) -> Value:
    """x * y + z, rounded once: spelled out, so that tile shapes cannot change a result."""
    return intrinsic_call(b, "llvm.fma.v16f32", V16F, x, y, z)


# maddubs and madd of x86 by the bytes of a register
PAIRS = {16: "ssse3.pmadd.ub.sw.128", 32: "avx2.pmadd.ub.sw", 64: "avx512.pmaddubs.w.512"}
FOURS = {16: "sse2.pmadd.wd", 32: "avx2.pmadd.wd", 64: "avx512.pmaddw.d.512"}


def in_registers(b: Builder, function: Callable[..., Value], *vectors: Value) -> Value:
    """function(*vectors) in pieces of the level's registers, put together again."""
    bits = vectors[0].type.element.width if hasattr(vectors[0].type.element, "width") else 32
    pieces = max(1, vectors[0].type.count * bits // 8 // b.level.vector)
    results = []
    for piece in range(pieces):
        parts = []
        for v in vectors:
            size = v.type.count // pieces
            parts.append(shuffle(b, v, list(range(piece * size, piece * size + size)))
                         if pieces > 1 else v)  # fmt: skip
        results.append(function(*parts))
    while len(results) > 1:
        lanes = list(range(2 * results[0].type.count))
        results = [shuffle(b, x, lanes, y)
                   for x, y in zip(results[::2], results[1::2], strict=True)]  # fmt: skip
    return results[0]


def multiply_pairs(b: Builder, w: Value, x: Value) -> Value:
    """Unsigned bytes times signed bytes, neighbours summed in int16, saturated."""

    def pairs(w: Value, x: Value) -> Value:
        result = ir.VectorType(I16, w.type.count // 2)
        return intrinsic_call(b, f"llvm.x86.{PAIRS[w.type.count]}", result, w, x)

    return in_registers(b, pairs, w, x)


def add_pairs(b: Builder, x: Value, y: Value) -> Value:
    """int16 times int16, neighbours summed in int32."""

    def fours(x: Value, y: Value) -> Value:
        result = ir.VectorType(I32, x.type.count // 2)
        return intrinsic_call(b, f"llvm.x86.{FOURS[2 * x.type.count]}", result, x, y)

    if b.level.dot in ("vnni", "maddubs"):
        return in_registers(b, fours, x, y)
    wide = ir.VectorType(I32, x.type.count)
    products = b.mul(b.sext(x, wide), b.sext(y, wide))
    even = list(range(0, wide.count, 2))
    odd = [lane + 1 for lane in even]
    return b.add(shuffle(b, products, even), shuffle(b, products, odd))


def dot(b: Builder, total: Value, w: Value, x: Value, bits: int = 8) -> Value:
    """total + 64 unsigned times 64 signed bytes, summed in fours: int32 x 16, exact.

    `bits` says how many of the unsigned bytes' bits are in use.
    """
    if b.level.dot == "vnni":
        return intrinsic_call(b, "llvm.x86.avx512.vpdpbusd.512", V16I, total, w, x)
    if b.level.dot == "maddubs" and bits < 8:  # pairs fit 16 bits: 2 * 127 * 127 < 2^15
        ones = const(ir.VectorType(I16, 32), 1)
        return b.add(total, add_pairs(b, multiply_pairs(b, w, x), ones))
    # pairs of 16 bits each, of even and of odd bytes: the shapes of pmaddwd
    wide = ir.VectorType(I16, 64)
    return b.add(total, _fold(b, add_pairs(b, b.zext(w, wide), b.sext(x, wide))))


def _fold(b: Builder, pairs: Value) -> Value:
    even = list(range(0, pairs.type.count, 2))
    return b.add(shuffle(b, pairs, even), shuffle(b, pairs, [lane + 1 for lane in even]))


def weigh(b: Builder, total: Value, x: Value, scale: Value) -> Value:
    """total + x * scale in every lane; both fit 16 bits signed, `scale` in the lower half only."""
    v32 = ir.VectorType(I16, 32)
    if b.level.dot == "vnni":  # the upper half of `scale` is zero, so one product counts
        pair = [b.bitcast(v, v32) for v in (x, scale)]
        return intrinsic_call(b, "llvm.x86.avx512.vpdpwssd.512", V16I, total, *pair)
    return b.add(total, add_pairs(b, b.bitcast(x, v32), b.bitcast(scale, v32)))


def pair_dot(b: Builder, total: Value, x: Value, y: Value) -> Value:
    """total + both int16 of each lane of x times those of y."""
    v32 = ir.VectorType(I16, 32)
    pair = [b.bitcast(v, v32) for v in (x, y)]
    if b.level.dot == "vnni":
        return intrinsic_call(b, "llvm.x86.avx512.vpdpwssd.512", V16I, total, *pair)
    return b.add(total, add_pairs(b, *pair))


def horizontal_sum(b: Builder, v: Value) -> Value:
    """The sum of 16 lanes, by halves: a fixed order."""
    width = LANES
    while width > 1:
        width //= 2
        low = shuffle(b, v, list(range(width)))
        high = shuffle(b, v, list(range(width, 2 * width)))
        v = b.fadd(low, high)
    return b.extract_element(v, ir.Constant(I32, 0))


def from_half(b: Builder, bits: Value) -> Value:
    """float16 as int16 bits, a vector or one -> float32. In whole numbers where F16C is missing."""
    vector = isinstance(bits.type, ir.VectorType)
    like = (lambda t: ir.VectorType(t, bits.type.count)) if vector else (lambda t: t)
    if b.level.name != "x86-64-v2":
        return b.fpext(b.bitcast(bits, like(F16)), like(F32))
    wide = b.zext(bits, like(I32))
    magnitude = b.shl(b.and_(wide, const(like(I32), 0x7FFF)), const(like(I32), 13))
    value = b.fmul(b.bitcast(magnitude, like(F32)), const(like(F32), 2.0**112))  # 2^(127 - 15)
    special = b.icmp_unsigned(">=", magnitude, const(like(I32), 0x7C00 << 13))
    large = b.bitcast(b.or_(magnitude, const(like(I32), 0x7F800000)), like(F32))
    value = b.select(special, large, value)
    sign = b.shl(b.and_(wide, const(like(I32), 0x8000)), const(like(I32), 16))
    return b.bitcast(b.or_(b.bitcast(value, like(I32)), sign), like(F32))


def to_half(b: Builder, x: Value) -> Value:
    """float32 -> float16 as int16 bits, ties to even. |x| is at most 65504, or x is NaN."""
    like = lambda t: ir.VectorType(t, x.type.count)  # noqa: E731
    if b.level.name != "x86-64-v2":
        return b.bitcast(b.fptrunc(x, like(F16)), like(I16))
    bits = b.bitcast(x, like(I32))
    magnitude = b.and_(bits, const(like(I32), 0x7FFFFFFF))
    # a subnormal: adding 0.5 moves its bits, rounded, to the lower end
    small = b.fadd(b.bitcast(magnitude, like(F32)), const(like(F32), 0.5))
    small = b.sub(b.bitcast(small, like(I32)), const(like(I32), 0x3F000000))
    odd = b.and_(b.lshr(magnitude, const(like(I32), 13)), const(like(I32), 1))
    normal = b.add(magnitude, b.add(odd, const(like(I32), 0xFFF - (112 << 23))))
    normal = b.lshr(normal, const(like(I32), 13))
    value = b.select(b.icmp_unsigned("<", magnitude, const(like(I32), 113 << 23)), small, normal)
    nan = b.icmp_unsigned(">", magnitude, const(like(I32), 0x7F800000))
    value = b.select(nan, const(like(I32), 0x7E00), value)
    sign = b.and_(b.lshr(bits, const(like(I32), 16)), const(like(I32), 0x8000))
    return b.trunc(b.or_(value, sign), like(I16))


def store(b: Builder, value: Value, address: Value) -> None:
    """Unaligned store to an integer address."""
    b.store(value, b.inttoptr(address, value.type.as_pointer())).align = 1


def prefetch(b: Builder, address: Value, nbytes: int) -> None:
    """Ask for the cache lines of a range that is read soon. Any address may be asked for."""
    pointer = ir.IntType(8).as_pointer()
    function = b.module.globals.get("llvm.prefetch.p0") or ir.Function(
        b.module, ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32]), "llvm.prefetch.p0"
    )
    read, second_level, data = (ir.Constant(I32, v) for v in (0, 2, 1))
    for line in range(0, nbytes, CACHE_LINE):
        b.call(function, [b.inttoptr(at(b, address, line), pointer), read, second_level, data])


def advance(b: Builder, base: Value, index: Value, stride: int | Value) -> Value:
    """base + index * stride, in bytes."""
    step = ir.Constant(I64, stride) if isinstance(stride, int) else stride
    return b.add(base, b.mul(index, step))


def count_loop(
    b: Builder, n: Value, start: list[Value], body: Callable[[Value, list[Value]], list[Value]]
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
