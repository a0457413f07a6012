"""Small pieces of LLVM vector IR. Plain Numba loops over packed integers do not vectorize.

Vectors are 16 lanes of 32 bits; LLVM splits them for processors with narrower registers, so the
same IR runs everywhere. Only the 8-bit dot product has a variant for one instruction set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from apr_backend_cpu.constants import CACHE_LINE, LANES
from apr_backend_cpu.kernels.source import Builder
from apr_backend_cpu.levels import ARM, X86

I8, I16, I32, I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
F16, F32 = ir.HalfType(), ir.FloatType()
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
    if b.level.name != "x86-64-v2":
        return intrinsic_call(b, f"llvm.fma.v{x.type.count}f32", x.type, x, y, z)
    # In float64 the product is exact. If the sum is not, its last bit is set: rounded to odd, it
    # can be rounded again to float32 as if that were the first time (Boldo and Melquiond, 2008).
    wide, words = vector_of(ir.DoubleType(), x.type.count), vector_of(I64, x.type.count)
    x, y, addend = (b.fpext(v, wide) for v in (x, y, z))
    product = b.fmul(x, y)
    total = b.fadd(product, addend)
    shadow = b.fsub(total, product)
    error = b.fadd(b.fsub(product, b.fsub(total, shadow)), b.fsub(addend, shadow))
    bits = b.bitcast(total, words)
    even = b.icmp_unsigned("==", b.and_(bits, const(words, 1)), const(words, 0))
    inexact = b.fcmp_ordered("!=", error, const(wide, 0.0))
    # towards zero where the error and the sum have different signs
    apart = b.icmp_signed("<", b.xor(bits, b.bitcast(error, words)), const(words, 0))
    odd = b.select(apart, b.sub(bits, const(words, 1)), b.add(bits, const(words, 1)))
    total = b.bitcast(b.select(b.and_(even, inexact), odd, bits), wide)
    return b.fptrunc(total, z.type)


# maddubs and madd of x86 by the bytes of a register
PAIRS = {16: "ssse3.pmadd.ub.sw.128", 32: "avx2.pmadd.ub.sw", 64: "avx512.pmaddubs.w.512"}
FOURS = {16: "sse2.pmadd.wd", 32: "avx2.pmadd.wd", 64: "avx512.pmaddw.d.512"}
LARGEST_SUM = 32767
LARGEST_ACTIVATION = 127


def lanes(b: Builder) -> int:
    """32-bit numbers of a register."""
    return b.level.vector // 4


def vector_of(type_: Any, count: int) -> ir.VectorType:
    """A vector type."""
    return ir.VectorType(type_, count)


def join(b: Builder, low: Value, high: Value) -> Value:
    """Two vectors, one after the other."""
    return shuffle(b, low, list(range(2 * low.type.count)), high)


def joined(b: Builder, parts: list[Value]) -> Value:
    """Vectors, one after the other."""
    while len(parts) > 1:
        parts = [join(b, x, y) for x, y in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def in_registers(b: Builder, function: Callable[..., Value], *vectors: Value) -> Value:
    """function(*vectors) in pieces of the level's registers, put together again."""
    bits = vectors[0].type.count * vectors[0].type.element.width
    pieces = max(1, bits // 8 // b.level.vector)
    results = []
    for piece in range(pieces):
        parts = []
        for v in vectors:
            size = v.type.count // pieces
            first = piece * size
            whole = pieces == 1
            parts.append(v if whole else shuffle(b, v, list(range(first, first + size))))
        results.append(function(*parts))
    return joined(b, results)


def multiply_pairs(b: Builder, w: Value, x: Value) -> Value:
    """Unsigned bytes times signed bytes, neighbours summed: int16, which has to hold the sums."""
    if b.level.dot in ("vnni", "maddubs"):

        def pairs(w: Value, x: Value) -> Value:
            result = ir.VectorType(I16, w.type.count // 2)
            return intrinsic_call(b, f"llvm.x86.{PAIRS[w.type.count]}", result, w, x)

        return in_registers(b, pairs, w, x)
    wide = ir.VectorType(I16, w.type.count)
    return fold(b, b.mul(b.zext(w, wide), b.sext(x, wide)))


def add_pairs(b: Builder, x: Value, y: Value) -> Value:
    """int16 times int16, neighbours summed in int32."""
    if b.level.dot in ("vnni", "maddubs"):

        def fours(x: Value, y: Value) -> Value:
            result = ir.VectorType(I32, x.type.count // 2)
            return intrinsic_call(b, f"llvm.x86.{FOURS[2 * x.type.count]}", result, x, y)

        return in_registers(b, fours, x, y)
    wide = ir.VectorType(I32, x.type.count)
    return fold(b, b.mul(b.sext(x, wide), b.sext(y, wide)))


def fold(b: Builder, v: Value) -> Value:
    """Sums of neighbours."""
    even = list(range(0, v.type.count, 2))
    return b.add(shuffle(b, v, even), shuffle(b, v, [lane + 1 for lane in even]))


def in_order(b: Builder, value: Value) -> Value:
    """The value, which LLVM has to have computed before what follows it here."""
    register = {ARM: "w", X86: "v" if b.level.vector == 64 else "x"}.get(b.level.arch)
    if register is None:
        return value
    kind = ir.FunctionType(value.type, [value.type])
    return b.asm(kind, "", f"={register},0", [value], True)


class Chain:
    """Sums of codes times activations, four bytes a lane, until they are scaled. Exact.

    Codes are unsigned, of `bits` bits, activations signed. Where an instruction sums two products
    in 16 bits, several of its results are added before they are widened: as many as surely fit.
    """

    def __init__(self, b: Builder, bits: int, start: Value | None = None) -> None:
        self._b, self._sum = b, start
        self._limit = LARGEST_SUM // (2 * LARGEST_ACTIVATION * (2**bits - 1))
        self._split = bits == 8 and b.level.dot == "sdot"  # which has no unsigned bytes
        self._narrow: list[Value] = []  # sums in 16 bits
        self._count = 0

    def add(self, codes: Value, x: Value) -> None:
        """Another vector of bytes each, or of int16: `wide` makes these of codes of 8 bits."""
        b, level = self._b, self._b.level
        lanes_ = codes.type.count * codes.type.element.width // 32
        start = self._sum or const(vector_of(I32, lanes_), 0)
        if level.dot == "vnni":
            name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes_}"
            self._sum = intrinsic_call(b, name, start.type, start, codes, x)
        elif level.dot == "sdot":
            if self._split:
                upper = _sdot(b, b.lshr(codes, const(codes.type, 4)), x, const(start.type, 0))
                start = b.add(start, b.shl(upper, const(start.type, 4)))
                codes = b.and_(codes, const(codes.type, 15))
            self._sum = _sdot(b, codes, x, start)
        elif codes.type.element == I16:
            self._sum = b.add(start, add_pairs(b, codes, x))
        else:
            self._add_narrow(multiply_pairs(b, codes, x))

    def _add_narrow(self, pairs: Value) -> None:
        if self._count % self._limit == 0:
            self._narrow.append(pairs)
        else:
            self._narrow[-1] = self._b.add(self._narrow[-1], pairs)
        self._count += 1

    def pin(self) -> None:
        """Let LLVM not take later sums before those so far: it would run out of registers."""
        if self._sum is not None:
            self._sum = in_order(self._b, self._sum)
        if self._narrow:
            self._narrow[-1] = in_order(self._b, self._narrow[-1])

    def total(self) -> Value:
        """The sums: int32."""
        b, found = self._b, self._sum
        for part in self._narrow:
            fours = add_pairs(b, part, const(part.type, 1))
            found = fours if found is None else b.add(found, fours)
        return found

    def scaled(self, total: Value, factor: Value) -> Value:
        """total + the sums times a factor of each lane, which is as `pair_of` makes it."""
        b = self._b
        if self._sum is not None:
            return b.add(total, b.mul(self._sum, factor))
        for part in self._narrow:
            total = b.add(total, add_pairs(b, part, factor))
        return total


def wide(b: Builder, codes: Value, first: int) -> Value:
    """Two bytes of each lane as int16, from its `first` on."""
    none, count = const(codes.type, 0), codes.type.count
    picks = [lane for k in range(first, count, 4) for lane in (k, count, k + 1, count)]
    return b.bitcast(shuffle(b, codes, picks, none), vector_of(I16, count // 2))


def _sdot(b: Builder, codes: Value, x: Value, start: Value) -> Value:
    name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
    sums = lambda w, x, s: intrinsic_call(b, name, s.type, s, w, x)  # noqa: E731
    return in_registers(b, sums, codes, x, start)


def uses_pairs(b: Builder) -> bool:
    """Whether sums of 16 bits meet their scales, so that each scale is wanted twice in a lane."""
    return b.level.sums_pairs


def pair_of(b: Builder, scale: Value) -> Value:
    """Scales of 32 bits in the form that `Chain.scaled` wants: themselves, or int16 twice each."""
    if not uses_pairs(b):
        return scale
    low = b.and_(scale, const(scale.type, 0xFFFF))
    twice = b.or_(low, b.shl(scale, const(scale.type, 16)))
    return b.bitcast(twice, vector_of(I16, 2 * scale.type.count))


def dot(b: Builder, total: Value, w: Value, x: Value, bits: int = 8) -> Value:
    """total + unsigned bytes of so many bits times signed ones, summed in fours: int32, exact."""
    chain = Chain(b, bits)
    chain.add(w, x)
    return b.add(total, chain.total())


def pair_dot(b: Builder, total: Value, x: Value, y: Value) -> Value:
    """total + both int16 of each lane of x times those of y, all of them int32 vectors."""
    halves = vector_of(I16, 2 * x.type.count)
    pair = [b.bitcast(v, halves) for v in (x, y)]
    if b.level.dot == "vnni" and x.type.count == lanes(b):
        name = f"llvm.x86.avx512.vpdpwssd.{8 * b.level.vector}"
        return intrinsic_call(b, name, total.type, total, *pair)
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
