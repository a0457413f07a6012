"""Matrix products with f32, f16 and bf16 weights, in float32, read in place.

Own code instead of BLAS because BLAS picks another kernel, and so another rounding, for every
shape: here the sum of an output element is the same in any batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from apr_backend_cpu.constants import LANES
from apr_backend_cpu.kernels.source import Builder, vector
from apr_backend_cpu.kernels.vector.ir import (
    F32,
    I16,
    I32,
    I64,
    V16F,
    Value,
    const,
    fma,
    from_half,
    horizontal_sum,
    load,
)

ROWS, TOKENS = 4, 4
Loader = Callable[[Builder, Value], Value]


def _load_f32(b: Builder, p: Value) -> Value:
    return load(b, p, V16F)


def _load_f16(b: Builder, p: Value) -> Value:
    return from_half(b, load(b, p, ir.VectorType(I16, LANES)))


def _load_bf16(b: Builder, p: Value) -> Value:
    wide = b.zext(load(b, p, ir.VectorType(I16, LANES)), ir.VectorType(I32, LANES))
    return b.bitcast(b.shl(wide, const(wide.type, 16)), V16F)


def make_tile(name: str, loader: Loader, itemsize: int, rows: int, tokens: int) -> Any:
    """An intrinsic: `rows` weight rows times `tokens` activation rows over n groups of 16.

    Arguments: weights, weight row stride, activations, activation row stride, output, output row
    stride (all addresses and strides in bytes), n. Adds nothing: it stores.
    """

    def emit(b: Builder, args: tuple[Value, ...]) -> None:
        wp, ws, xp, xs, op, os_, n = args
        times = lambda stride, k: b.mul(stride, ir.Constant(I64, k))  # noqa: E731
        before = b.block
        loop, done = b.append_basic_block("group"), b.append_basic_block("done")
        b.branch(loop)
        b.position_at_end(loop)
        i = b.phi(I64)
        i.add_incoming(ir.Constant(I64, 0), before)
        sums = [[b.phi(V16F) for _ in range(tokens)] for _ in range(rows)]
        w_at, x_at = times(i, LANES * itemsize), times(i, LANES * 4)
        ws_ = [loader(b, b.add(b.add(wp, times(ws, r)), w_at)) for r in range(rows)]
        xs_ = [_load_f32(b, b.add(b.add(xp, times(xs, t)), x_at)) for t in range(tokens)]
        following = b.add(i, ir.Constant(I64, 1))
        i.add_incoming(following, loop)
        results = []
        for r in range(rows):
            for t in range(tokens):
                phi = sums[r][t]
                result = fma(b, ws_[r], xs_[t], phi)
                phi.add_incoming(const(V16F, 0.0), before)
                phi.add_incoming(result, loop)
                results.append((r, t, result))
        b.cbranch(b.icmp_unsigned("<", following, n), loop, done)
        b.position_at_end(done)
        for r, t, result in results:
            address = b.add(b.add(op, times(os_, t)), ir.Constant(I64, 4 * r))
            stored = b.store(horizontal_sum(b, result), b.inttoptr(address, F32.as_pointer()))
            stored.align = 4

    return vector(name, "ppppppp", emit)


LOADERS: dict[str, tuple[Loader, int]] = {
    "f32": (_load_f32, 4), "f16": (_load_f16, 2), "bf16": (_load_bf16, 2),
}  # fmt: skip
for _format, (_loader, _itemsize) in LOADERS.items():
    for _rows, _tokens in ((ROWS, TOKENS), (ROWS, 1), (1, 1)):
        make_tile(f"dense_{_rows}{_tokens}_{_format}", _loader, _itemsize, _rows, _tokens)
