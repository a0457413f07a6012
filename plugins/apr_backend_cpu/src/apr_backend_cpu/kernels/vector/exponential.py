"""exp and sigmoid in float32 as vector IR, for any number of values side by side.

libm would need one call per value, and its bits differ between systems.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from apr_backend_cpu.constants import LANES
from apr_backend_cpu.kernels.source import helper, vector
from apr_backend_cpu.kernels.vector.builder import Builder
from apr_backend_cpu.kernels.vector.ir import I32, ROUND, V16F, Value, const, vector_of

U = np.uint64
LOG2E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4  # ln 2 = their sum, the first exact in few bits
LOWEST = -87.33654
# exp(r) for |r| up to ln 2 / 2, to 3.1e-9 (fitted for the least relative error)
POLYNOMIAL = (1.3814599e-3, 8.3687166e-3, 4.1668389e-2, 1.6666521e-1, 4.9999994e-1, 1.0, 1.0)
Function = Callable[[Builder, Value], Value]


def exponential(b: Builder, x: Value) -> Value:
    """Return exp(x) to 1 ulp, x at most 88; 0 below -87.34, NaN for NaN."""
    words = vector_of(I32, x.type.count)
    c = lambda v: const(x.type, float(np.float32(v)))
    clamped = b.select(b.fcmp_ordered("<", x, c(LOWEST)), c(LOWEST), x)
    rounded = b.fma(clamped, c(LOG2E), c(ROUND))
    n = b.fsub(rounded, c(ROUND))
    r = b.fma(n, c(-LN2_LOW), b.fma(n, c(-LN2_HIGH), clamped))
    p = c(POLYNOMIAL[0])
    for coefficient in POLYNOMIAL[1:]:
        p = b.fma(p, r, c(coefficient))
    exponent = b.shl(b.bitcast(rounded, words), const(words, 23))
    exponent = b.add(exponent, const(words, 127 << 23))
    value = b.fmul(p, b.bitcast(exponent, x.type))
    return b.select(b.fcmp_ordered("<", x, c(LOWEST)), c(0.0), value)


def sigmoid(b: Builder, x: Value) -> Value:
    """Return 1 / (1 + exp(-x))."""
    ones = const(x.type, 1.0)
    magnitude = b.intrinsic(f"llvm.fabs.v{x.type.count}f32", x.type, x)
    e = exponential(b, b.fneg(magnitude))
    positive = b.fdiv(ones, b.fadd(ones, e))
    return b.select(b.fcmp_ordered("<", x, const(x.type, 0.0)), b.fmul(e, positive), positive)


def _one(name: str, function: Function) -> Any:
    """Declare a function of one float32."""

    def emit(b: Builder, args: tuple[Value, ...]) -> Value:
        result = function(b, b.splat(args[0], 1))
        return b.extract_element(result, ir.Constant(I32, 0))

    return vector(name, "f", emit, "f")


def _each16(name: str, function: Function) -> Any:
    """Declare a function of n times 16 float32, n above 0: addresses of values and of results."""

    def emit(b: Builder, args: tuple[Value, ...]) -> None:
        source, target, n = args

        def body(i: Value, values: list[Value]) -> list[Value]:
            x = b.read(b.advance(source, i, 4 * LANES), V16F)
            b.write(function(b, x), b.advance(target, i, 4 * LANES))
            return values

        b.count_loop(n, [], body)

    return vector(name, "ppp", emit)


exp32, sigmoid32 = _one("exp32", exponential), _one("sigmoid32", sigmoid)
_sigmoids16 = _each16("sigmoids16", sigmoid)


@helper
def sigmoids(source, target):
    """Write the sigmoids of a contiguous vector into another, or into itself."""
    whole = source.size // LANES
    if whole > 0:
        _sigmoids16(U(source.ctypes.data), U(target.ctypes.data), U(whole))
    for i in range(whole * LANES, source.size):
        target[i] = sigmoid32(source[i])


def _weights(b: Builder, args: tuple[Value, ...]) -> Value:
    """Replace n times 16 float32 at an address by exp(x * scale - top); return their sum.

    It is made of 16 sums, added by halves.
    """
    p, n, scale, top = args
    factor, low = b.splat(scale), b.splat(b.fneg(top))

    def body(i: Value, sums: list[Value]) -> list[Value]:
        here = b.advance(p, i, 4 * LANES)
        value = exponential(b, b.fma(b.read(here, V16F), factor, low))
        b.write(value, here)
        return [b.fadd(value, sums[0])]

    return b.horizontal_sum(b.count_loop(n, [const(V16F, 0.0)], body)[0])


softmax_weights = vector("softmax_weights", "ppff", _weights, "f")
