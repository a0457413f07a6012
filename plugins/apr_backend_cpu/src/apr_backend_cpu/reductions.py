"""Dot products in a fixed order: 16 lanes, then by halves, then what is left over.

Written as vector IR because the compiler's own vectorization of a sum may depend on where the
function was inlined and on an array's layout, and then a row alone would not equal the row in a
batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from apr_backend_cpu.compiling import serial
from apr_backend_cpu.vector_ir import I64, LANES, V16F, const, fma, horizontal_sum, load

f32 = np.float32
U = np.uint64


@intrinsic
def _dot_lanes(typing: Any, x: Any, y: Any, groups: Any) -> Any:
    """Sum of x * y over `groups` times 16 contiguous float32 at two addresses."""

    def codegen(context: Any, b: ir.IRBuilder, _: Any, args: Any) -> Any:
        x, y, groups = args
        before = b.block
        loop, done = b.append_basic_block("lanes"), b.append_basic_block("lanes.done")
        zero = ir.Constant(I64, 0)
        b.cbranch(b.icmp_unsigned("==", groups, zero), done, loop)
        b.position_at_end(loop)
        i, total = b.phi(I64), b.phi(V16F)
        i.add_incoming(zero, before)
        total.add_incoming(const(V16F, 0.0), before)
        at = b.mul(i, ir.Constant(I64, 4 * LANES))
        result = fma(b, load(b, b.add(x, at), V16F), load(b, b.add(y, at), V16F), total)
        following = b.add(i, ir.Constant(I64, 1))
        i.add_incoming(following, loop)
        total.add_incoming(result, loop)
        b.cbranch(b.icmp_unsigned("<", following, groups), loop, done)
        b.position_at_end(done)
        final = b.phi(V16F)
        final.add_incoming(const(V16F, 0.0), before)
        final.add_incoming(result, loop)
        return horizontal_sum(b, final)

    return types.float32(types.uintp, types.uintp, types.uintp), codegen


@serial
def dot(x, y):  # noqa: ANN001, ANN201
    """x . y of two vectors whose elements are contiguous."""
    groups = x.size // 16
    total = _dot_lanes(U(x.ctypes.data), U(y.ctypes.data), U(groups))
    for i in range(16 * groups, x.size):
        total += x[i] * y[i]
    return f32(total)
