"""exp and sigmoid in float32: of a value, and of 16 side by side as vector IR.

libm's would be one call a value, and LLVM leaves the scalar form below scalar. Both forms follow
the same steps (Cephes expf); products and sums are rounded one by one in both, so they agree.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from apr_backend_cpu.constants import LANES
from apr_backend_cpu.kernels.source import helper, vector
from apr_backend_cpu.kernels.vector.builder import Builder
from apr_backend_cpu.kernels.vector.ir import V16F, V16I, Value, const

U = np.uint64
LOG2E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(0.693359375)  # ln 2 = high - low, the high part exact in few bits
LN2_LOW = np.float32(-2.12194440e-4)
LOWEST, HIGHEST = np.float32(-87.33654), np.float32(88.3762626647949)
ROUND = np.float32(12582912.0)
C = tuple(
    np.float32(c)
    for c in (
        1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3,
        4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1,
    )
)  # fmt: skip
C0, C1, C2, C3, C4, C5 = C


@helper
def exp32(x):
    """exp(x) to 2 ulp (Cephes expf); 0 below -87.34, NaN for NaN."""
    clamped = min(max(x, LOWEST), HIGHEST)
    n = (clamped * LOG2E + ROUND) - ROUND
    r = clamped - n * LN2_HIGH - n * LN2_LOW
    p = C0
    p = p * r + C1
    p = p * r + C2
    p = p * r + C3
    p = p * r + C4
    p = p * r + C5
    value = p * r * r + r + np.float32(1.0)
    scale = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    value = value * scale
    value = value if x >= LOWEST else np.float32(0.0)
    return value if x == x else x


@helper
def sigmoid32(x):
    """1 / (1 + exp(-x))."""
    e = exp32(-abs(x))
    positive = np.float32(1.0) / (np.float32(1.0) + e)
    return positive if x >= 0 else e * positive if x == x else x


def exp16(b: Builder, x: Value) -> Value:
    """exp of 16 values, as `exp32`."""
    low, high, ones = (const(V16F, float(v)) for v in (LOWEST, HIGHEST, 1.0))
    clamped = b.select(b.fcmp_ordered("<", x, high), x, high)
    clamped = b.select(b.fcmp_ordered(">", clamped, low), clamped, low)
    magic = const(V16F, float(ROUND))
    n = b.fsub(b.fadd(b.fmul(clamped, const(V16F, float(LOG2E))), magic), magic)
    r = b.fsub(clamped, b.fmul(n, const(V16F, float(LN2_HIGH))))
    r = b.fsub(r, b.fmul(n, const(V16F, float(LN2_LOW))))
    p = const(V16F, float(C0))
    for c in C[1:]:
        p = b.fadd(b.fmul(p, r), const(V16F, float(c)))
    value = b.fadd(b.fadd(b.fmul(b.fmul(p, r), r), r), ones)
    exponent = b.shl(b.add(b.fptosi(n, V16I), const(V16I, 127)), const(V16I, 23))
    value = b.fmul(value, b.bitcast(exponent, V16F))
    value = b.select(b.fcmp_ordered(">=", x, low), value, const(V16F, 0.0))
    return b.select(b.fcmp_ordered("==", x, x), value, x)


def sigmoid16(b: Builder, x: Value) -> Value:
    """1 / (1 + exp(-x)) of 16 values, as `sigmoid32`."""
    ones = const(V16F, 1.0)
    e = exp16(b, b.fneg(b.intrinsic("llvm.fabs.v16f32", V16F, x)))
    positive = b.fdiv(ones, b.fadd(ones, e))
    value = b.select(b.fcmp_ordered(">=", x, const(V16F, 0.0)), positive, b.fmul(e, positive))
    return b.select(b.fcmp_ordered("==", x, x), value, x)


def _each16(name: str, function: Any) -> Any:
    """A function: addresses of float32 values and of results, n times 16 of them, n above 0."""

    def emit(b: Builder, args: tuple[Value, ...]) -> None:
        source, target, n = args

        def body(i: Value, values: list[Value]) -> list[Value]:
            x = b.read(b.advance(source, i, 4 * LANES), V16F)
            b.write(function(b, x), b.advance(target, i, 4 * LANES))
            return values

        b.count_loop(n, [], body)

    return vector(name, "ppp", emit)


_sigmoids16 = _each16("sigmoids16", sigmoid16)
_exps16 = _each16("exps16", exp16)


@helper
def sigmoids(source, target):
    """Sigmoids of a contiguous vector into another, or into itself."""
    whole = source.size // LANES
    if whole > 0:
        _sigmoids16(U(source.ctypes.data), U(target.ctypes.data), U(whole))
    for i in range(whole * LANES, source.size):
        target[i] = sigmoid32(source[i])


@helper
def exps(source, target):
    """Exponentials of a contiguous vector into another, or into itself."""
    whole = source.size // LANES
    if whole > 0:
        _exps16(U(source.ctypes.data), U(target.ctypes.data), U(whole))
    for i in range(whole * LANES, source.size):
        target[i] = exp32(source[i])
