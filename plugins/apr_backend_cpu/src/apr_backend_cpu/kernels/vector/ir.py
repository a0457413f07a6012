"""Types of LLVM's vector IR, and constants of these types."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from apr_backend_cpu.constants import LANES

I1, I8, I16, I32, I64 = ir.IntType(1), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
F16, F32 = ir.HalfType(), ir.FloatType()
V16F, V16I, V64B = (ir.VectorType(F32, LANES), ir.VectorType(I32, LANES),
                    ir.VectorType(I8, 4 * LANES))  # fmt: skip
Value = Any
# 1.5 * 2^23: adding it to a float32 rounds, ties to even, and leaves the integer in the lowest bits
ROUND, ROUND_BITS = 12582912.0, 0x4B400000


def const(type_: Any, value: float) -> Value:
    """Return a scalar, or a vector with the value in every lane."""
    if isinstance(type_, ir.VectorType):
        return ir.Constant(type_, [value] * type_.count)
    return ir.Constant(type_, value)


def vector_of(type_: Any, count: int) -> ir.VectorType:
    """Return a vector type."""
    return ir.VectorType(type_, count)
