"""Sums of byte products, in the steps that a level's instructions allow."""

from __future__ import annotations

from apr_backend_cpu.kernels.vector.builder import Builder
from apr_backend_cpu.kernels.vector.ir import I32, Value, const, vector_of

LARGEST_SUM = 32767
LARGEST_ACTIVATION = 127


class Chain:
    """Sums of codes times activations, four bytes per lane, kept until they are scaled. Exact.

    Codes are unsigned, of `bits` bits; activations are signed. Where an instruction sums two
    products in 16 bits, as many of its results are added before widening as are sure to fit.
    """

    def __init__(self, b: Builder, bits: int, start: Value | None = None) -> None:
        self._b, self._sum = b, start
        self._limit = LARGEST_SUM // (2 * LARGEST_ACTIVATION * (2**bits - 1))
        self._split = bits == 8 and b.level.dot == "sdot"  # sdot takes no unsigned bytes
        self._narrow: list[Value] = []  # sums in 16 bits
        self._count = 0

    def add(self, codes: Value, x: Value) -> None:
        """Add the products of a vector of codes and a vector of activations."""
        b, level = self._b, self._b.level
        lanes_ = codes.type.count // 4
        start = self._sum or const(vector_of(I32, lanes_), 0)
        if level.dot == "vnni":
            name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes_}"
            self._sum = b.intrinsic(name, start.type, start, codes, x)
        elif level.dot == "sdot":
            if self._split:
                upper = b.sdot(b.lshr(codes, const(codes.type, 4)), x, const(start.type, 0))
                start = b.add(start, b.shl(upper, const(start.type, 4)))
                codes = b.and_(codes, const(codes.type, 15))
            self._sum = b.sdot(codes, x, start)
        else:
            self._add_narrow(b.multiply_pairs(codes, x))

    def _add_narrow(self, pairs: Value) -> None:
        if self._count % self._limit == 0:
            self._narrow.append(pairs)
        else:
            self._narrow[-1] = self._b.add(self._narrow[-1], pairs)
        self._count += 1

    def pin(self) -> None:
        """Keep LLVM from moving later sums before those so far and running out of registers."""
        if self._sum is not None:
            self._sum = self._b.in_order(self._sum)
        if self._narrow:
            self._narrow[-1] = self._b.in_order(self._narrow[-1])

    def total(self) -> Value:
        """Return the sums as int32."""
        b, total = self._b, self._sum
        for part in self._narrow:
            fours = b.add_pairs(part, const(part.type, 1))
            total = fours if total is None else b.add(total, fours)
        return total

    def scaled(self, total: Value, factor: Value) -> Value:
        """Return total + the sums times a factor for each lane, in the form of `pair_of`."""
        b = self._b
        if self._sum is not None:
            return b.add(total, b.mul(self._sum, factor))
        for part in self._narrow:
            total = b.add(total, b.add_pairs(part, factor))
        return total
