"""The builder of vector IR. Plain Numba loops over packed integers do not vectorize.

Vectors may be longer than registers: LLVM splits them, so that the same IR runs everywhere. What
differs between levels is here: products of bytes, sums of products, float16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from apr_backend_cpu.constants import CACHE_LINE, LANES
from apr_backend_cpu.kernels.vector.ir import F16, F32, I16, I32, I64, Value, const, vector_of
from apr_backend_cpu.levels import ARM, X86, Level

# maddubs and madd of x86, by register size in bytes
PAIRS = {16: "ssse3.pmadd.ub.sw.128", 32: "avx2.pmadd.ub.sw", 64: "avx512.pmaddubs.w.512"}
FOURS = {16: "sse2.pmadd.wd", 32: "avx2.pmadd.wd", 64: "avx512.pmaddw.d.512"}


class Builder(ir.IRBuilder):
    """An IRBuilder that knows the level it writes for. Addresses are integers."""

    levels: Any = None  # the levels that a declared layout's codes stand for

    def __init__(self, block: ir.Block, level: Level) -> None:
        super().__init__(block)
        self.level = level

    @property
    def lanes(self) -> int:
        """How many 32-bit numbers a register holds."""
        return self.level.vector // 4

    @property
    def sums_pairs(self) -> bool:
        """Whether sums of 16 bits are scaled, so that scales are needed twice per lane."""
        return self.level.sums_pairs

    def stack(self, nbytes: int) -> Any:
        """Allocate `nbytes` on the stack, until the function returns; return the address."""
        lines = ir.ArrayType(ir.VectorType(ir.IntType(8), CACHE_LINE), -(-nbytes // CACHE_LINE))
        with self.goto_entry_block():
            return self.ptrtoint(self.alloca(lines), I64)

    def at(self, address: Value, offset: int) -> Value:
        """Return address + a constant number of bytes."""
        return self.add(address, ir.Constant(I64, offset)) if offset else address

    def read(self, address: Value, type_: Any) -> Value:
        """Load a value from an integer address, unaligned."""
        value = self.load(self.inttoptr(address, type_.as_pointer()))
        value.align = 1
        return value

    def word(self, address: Value, offset: int) -> Value:
        """Load four bytes at an address into every lane of a register."""
        return self.splat(self.read(self.at(address, offset), I32), self.lanes)

    def intrinsic(self, name: str, result: Any, *args: Value) -> Value:
        """Call an LLVM intrinsic by its mangled name."""
        function = self.module.globals.get(name) or ir.Function(
            self.module, ir.FunctionType(result, [a.type for a in args]), name
        )
        return self.call(function, args)

    def splat(self, scalar: Value, count: int = LANES) -> Value:
        """Return the scalar in every lane."""
        vector = ir.VectorType(scalar.type, count)
        one = self.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(I32, 0))
        return self.shuffle(one, [0] * count)

    def shuffle(self, vector: Value, lanes: list[int], other: Value = None) -> Value:
        """Return lanes picked by constant indices, from `vector` and then `other`."""
        second = other if other is not None else ir.Constant(vector.type, ir.Undefined)
        return self.shuffle_vector(
            vector, second, ir.Constant(ir.VectorType(I32, len(lanes)), lanes)
        )

    def fma(self, x: Value, y: Value, z: Value) -> Value:
        """Return x * y + z, rounded once, so that tile shapes cannot change a result."""
        if self.level.name != "x86-64-v2":
            return self.intrinsic(f"llvm.fma.v{x.type.count}f32", x.type, x, y, z)
        # In float64 the product is exact. If the sum is not, its last bit is set. Rounded to odd,
        # it can be rounded again to float32 as if for the first time (Boldo and Melquiond,
        # 2008).
        wide, words = vector_of(ir.DoubleType(), x.type.count), vector_of(I64, x.type.count)
        x, y, addend = (self.fpext(v, wide) for v in (x, y, z))
        product = self.fmul(x, y)
        total = self.fadd(product, addend)
        shadow = self.fsub(total, product)
        error = self.fadd(self.fsub(product, self.fsub(total, shadow)), self.fsub(addend, shadow))
        bits = self.bitcast(total, words)
        even = self.icmp_unsigned("==", self.and_(bits, const(words, 1)), const(words, 0))
        inexact = self.fcmp_ordered("!=", error, const(wide, 0.0))
        # towards zero where the error and the sum have different signs
        apart = self.icmp_signed("<", self.xor(bits, self.bitcast(error, words)), const(words, 0))
        odd = self.select(apart, self.sub(bits, const(words, 1)), self.add(bits, const(words, 1)))
        total = self.bitcast(self.select(self.and_(even, inexact), odd, bits), wide)
        return self.fptrunc(total, z.type)

    def join(self, low: Value, high: Value) -> Value:
        """Concatenate two vectors."""
        return self.shuffle(low, list(range(2 * low.type.count)), high)

    def joined(self, parts: list[Value]) -> Value:
        """Concatenate vectors."""
        while len(parts) > 1:
            parts = [self.join(x, y) for x, y in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0]

    def in_registers(self, function: Callable[..., Value], *vectors: Value) -> Value:
        """Return function(*vectors), computed in pieces of the level's register size."""
        bits = vectors[0].type.count * vectors[0].type.element.width
        pieces = max(1, bits // 8 // self.level.vector)
        results = []
        for piece in range(pieces):
            parts = []
            for v in vectors:
                size = v.type.count // pieces
                first = piece * size
                whole = pieces == 1
                parts.append(v if whole else self.shuffle(v, list(range(first, first + size))))
            results.append(function(*parts))
        return self.joined(results)

    def multiply_pairs(self, w: Value, x: Value) -> Value:
        """Multiply unsigned by signed bytes and add neighbours; sums must fit int16."""
        if self.level.dot in ("vnni", "maddubs"):

            def pairs(w: Value, x: Value) -> Value:
                result = ir.VectorType(I16, w.type.count // 2)
                return self.intrinsic(f"llvm.x86.{PAIRS[w.type.count]}", result, w, x)

            return self.in_registers(pairs, w, x)
        wide = ir.VectorType(I16, w.type.count)
        return self.fold(self.mul(self.zext(w, wide), self.sext(x, wide)))

    def magnitude(self, x: Value) -> Value:
        """Return the magnitudes of signed bytes, as unsigned ones."""
        return self.select(self.icmp_signed("<", x, const(x.type, 0)), self.neg(x), x)

    def with_sign(self, x: Value, sign: Value) -> Value:
        """Return signed bytes, negated where `sign` is negative; any value where it is 0."""
        if self.level.vector == 32:
            name = "llvm.x86.avx2.psign.b"
            return self.in_registers(lambda x, s: self.intrinsic(name, x.type, x, s), x, sign)
        return self.select(self.icmp_signed("<", sign, const(sign.type, 0)), self.neg(x), x)

    def add_pairs(self, x: Value, y: Value) -> Value:
        """Multiply int16 by int16 and add neighbours in int32."""
        if self.level.dot in ("vnni", "maddubs"):

            def fours(x: Value, y: Value) -> Value:
                result = ir.VectorType(I32, x.type.count // 2)
                return self.intrinsic(f"llvm.x86.{FOURS[2 * x.type.count]}", result, x, y)

            return self.in_registers(fours, x, y)
        wide = ir.VectorType(I32, x.type.count)
        return self.fold(self.mul(self.sext(x, wide), self.sext(y, wide)))

    def fold(self, v: Value) -> Value:
        """Return the sums of neighbouring lanes."""
        even = list(range(0, v.type.count, 2))
        return self.add(self.shuffle(v, even), self.shuffle(v, [lane + 1 for lane in even]))

    def in_order(self, value: Value) -> Value:
        """Return the value; LLVM has to compute it before what follows."""
        register = {ARM: "w", X86: "v" if self.level.vector == 64 else "x"}.get(self.level.arch)
        if register is None:
            return value
        kind = ir.FunctionType(value.type, [value.type])
        return self.asm(kind, "", f"={register},0", [value], True)

    def wide(self, codes: Value, first: int) -> Value:
        """Return two bytes of each lane as int16, from its byte `first` on."""
        none, count = const(codes.type, 0), codes.type.count
        picks = [lane for k in range(first, count, 4) for lane in (k, count, k + 1, count)]
        return self.bitcast(self.shuffle(codes, picks, none), vector_of(I16, count // 2))

    def sdot(self, codes: Value, x: Value, start: Value) -> Value:
        """Add products of signed bytes, four per lane, to `start`."""
        name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
        sums = lambda w, x, s: self.intrinsic(name, s.type, s, w, x)
        return self.in_registers(sums, codes, x, start)

    def pair_of(self, scale: Value) -> Value:
        """Return 32-bit scales as `Chain.scaled` takes them: unchanged, or int16 twice."""
        if not self.sums_pairs:
            return scale
        low = self.and_(scale, const(scale.type, 0xFFFF))
        twice = self.or_(low, self.shl(scale, const(scale.type, 16)))
        return self.bitcast(twice, vector_of(I16, 2 * scale.type.count))

    def pair_dot(self, total: Value, x: Value, y: Value) -> Value:
        """Return total + both int16 of each lane of x times those of y, in int32 vectors."""
        halves = vector_of(I16, 2 * x.type.count)
        pair = [self.bitcast(v, halves) for v in (x, y)]
        if self.level.dot == "vnni" and x.type.count == self.lanes:
            name = f"llvm.x86.avx512.vpdpwssd.{8 * self.level.vector}"
            return self.intrinsic(name, total.type, total, *pair)
        return self.add(total, self.add_pairs(*pair))

    def horizontal_sum(self, v: Value) -> Value:
        """Return the sum of 16 lanes, by halves: a fixed order."""
        width = LANES
        while width > 1:
            width //= 2
            low = self.shuffle(v, list(range(width)))
            high = self.shuffle(v, list(range(width, 2 * width)))
            v = self.fadd(low, high)
        return self.extract_element(v, ir.Constant(I32, 0))

    def from_half(self, bits: Value) -> Value:
        """Convert float16, as int16 bits, to float32; in integer arithmetic without F16C.

        The value may be a vector or a scalar.
        """
        vector = isinstance(bits.type, ir.VectorType)
        like = (lambda t: ir.VectorType(t, bits.type.count)) if vector else (lambda t: t)
        if self.level.name != "x86-64-v2":
            return self.fpext(self.bitcast(bits, like(F16)), like(F32))
        wide = self.zext(bits, like(I32))
        magnitude = self.shl(self.and_(wide, const(like(I32), 0x7FFF)), const(like(I32), 13))
        value = self.fmul(
            self.bitcast(magnitude, like(F32)), const(like(F32), 2.0**112)
        )  # 2^(127 - 15)
        special = self.icmp_unsigned(">=", magnitude, const(like(I32), 0x7C00 << 13))
        large = self.bitcast(self.or_(magnitude, const(like(I32), 0x7F800000)), like(F32))
        value = self.select(special, large, value)
        sign = self.shl(self.and_(wide, const(like(I32), 0x8000)), const(like(I32), 16))
        return self.bitcast(self.or_(self.bitcast(value, like(I32)), sign), like(F32))

    def to_half(self, x: Value) -> Value:
        """Convert float32 to float16 as int16 bits, ties to even.

        |x| is at most 65504, or x is NaN.
        """
        like = lambda t: ir.VectorType(t, x.type.count)
        if self.level.name != "x86-64-v2":
            return self.bitcast(self.fptrunc(x, like(F16)), like(I16))
        bits = self.bitcast(x, like(I32))
        magnitude = self.and_(bits, const(like(I32), 0x7FFFFFFF))
        # a subnormal: adding 0.5 moves its bits, rounded, to the low end
        small = self.fadd(self.bitcast(magnitude, like(F32)), const(like(F32), 0.5))
        small = self.sub(self.bitcast(small, like(I32)), const(like(I32), 0x3F000000))
        odd = self.and_(self.lshr(magnitude, const(like(I32), 13)), const(like(I32), 1))
        normal = self.add(magnitude, self.add(odd, const(like(I32), 0xFFF - (112 << 23))))
        normal = self.lshr(normal, const(like(I32), 13))
        value = self.select(
            self.icmp_unsigned("<", magnitude, const(like(I32), 113 << 23)), small, normal
        )
        nan = self.icmp_unsigned(">", magnitude, const(like(I32), 0x7F800000))
        value = self.select(nan, const(like(I32), 0x7E00), value)
        sign = self.and_(self.lshr(bits, const(like(I32), 16)), const(like(I32), 0x8000))
        return self.trunc(self.or_(value, sign), like(I16))

    def write(self, value: Value, address: Value) -> None:
        """Store a value at an integer address, unaligned."""
        self.store(value, self.inttoptr(address, value.type.as_pointer())).align = 1

    def prefetch(self, address: Value, nbytes: int) -> None:
        """Prefetch the cache lines of a range; any address is allowed."""
        pointer = ir.IntType(8).as_pointer()
        function = self.module.globals.get("llvm.prefetch.p0") or ir.Function(
            self.module,
            ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32]),
            "llvm.prefetch.p0",
        )
        read, second_level, data = (ir.Constant(I32, v) for v in (0, 2, 1))
        for line in range(0, nbytes, CACHE_LINE):
            self.call(
                function, [self.inttoptr(self.at(address, line), pointer), read, second_level, data]
            )

    def least(self, x: Value, y: Value) -> Value:
        """Return the smaller of two counts."""
        return self.select(self.icmp_unsigned("<", x, y), x, y)

    def advance(self, base: Value, index: Value, stride: int | Value) -> Value:
        """Return base + index * stride, in bytes."""
        step = ir.Constant(I64, stride) if isinstance(stride, int) else stride
        return self.add(base, self.mul(index, step))

    def loop_from(
        self,
        first: Value,
        n: Value,
        start: list[Value],
        body: Callable[[Value, list[Value]], list[Value]],
    ) -> list[Value]:
        """Run `count_loop` from i = `first` on, which may be no time at all."""
        before = self.block
        with self.if_then(self.icmp_unsigned("<", first, n)):
            moved = lambda i, values: body(self.add(i, first), values)
            results, after = self.count_loop(self.sub(n, first), start, moved), self.block
        values = [self.phi(v.type) for v in start]
        for phi, value, result in zip(values, start, results, strict=True):
            phi.add_incoming(value, before)
            phi.add_incoming(result, after)
        return values

    def count_loop(
        self, n: Value, start: list[Value], body: Callable[[Value, list[Value]], list[Value]]
    ) -> list[Value]:
        """Run `body(i, values) -> values` for i from 0 below n >= 1; return the last values."""
        before = self.block
        loop, done = self.append_basic_block("loop"), self.append_basic_block("loop.done")
        self.branch(loop)
        self.position_at_end(loop)
        i = self.phi(I64)
        i.add_incoming(ir.Constant(I64, 0), before)
        values = [self.phi(v.type) for v in start]
        for phi, value in zip(values, start, strict=True):
            phi.add_incoming(value, before)
        results = body(i, list(values))
        following = self.add(i, ir.Constant(I64, 1))
        i.add_incoming(following, self.block)
        for phi, result in zip(values, results, strict=True):
            phi.add_incoming(result, self.block)
        self.cbranch(self.icmp_unsigned("<", following, n), loop, done)
        self.position_at_end(done)
        return results
