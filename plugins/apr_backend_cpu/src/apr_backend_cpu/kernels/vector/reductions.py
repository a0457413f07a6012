"""Dot products in a fixed order: 16 lanes, added by halves, then the remaining elements.

Written as vector IR because the compiler's own vectorization of a sum may depend on where the
function was inlined and on an array's layout; then a row alone would not equal the row in a batch.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from apr_backend_cpu.constants import LANES, VECTOR
from apr_backend_cpu.kernels.source import helper, vector
from apr_backend_cpu.kernels.vector.builder import Builder
from apr_backend_cpu.kernels.vector.ir import I64, V16F, Value, const

f32 = np.float32
U = np.uint64


def _dot_lanes(b: Builder, args: tuple[Value, ...]) -> Value:
    """Return the sum of x * y over `groups` times 16 contiguous float32 at two addresses."""
    x, y, groups = args
    start, done = b.block, b.append_basic_block("sum")
    some = b.append_basic_block("some")
    b.cbranch(b.icmp_unsigned("==", groups, ir.Constant(I64, 0)), done, some)
    b.position_at_end(some)

    def body(i: Value, sums: list[Value]) -> list[Value]:
        left, right = (b.read(b.advance(p, i, VECTOR), V16F) for p in (x, y))
        return [b.fma(left, right, sums[0])]

    total = b.count_loop(groups, [const(V16F, 0.0)], body)[0]
    last = b.block
    b.branch(done)
    b.position_at_end(done)
    final = b.phi(V16F)
    final.add_incoming(const(V16F, 0.0), start)
    final.add_incoming(total, last)
    return b.horizontal_sum(final)


dot_lanes = vector("dot_lanes", "ppp", _dot_lanes, "f")


@helper
def dot(x, y):
    """Return the dot product of two contiguous vectors."""
    groups = x.size // LANES
    total = dot_lanes(U(x.ctypes.data), U(y.ctypes.data), U(groups))
    for i in range(LANES * groups, x.size):
        total += x[i] * y[i]
    return f32(total)
