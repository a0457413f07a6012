"""Matrix products with f32, f16 and bf16 weights, in float32, read in place.

Own code instead of BLAS because BLAS picks another kernel, and so another rounding, for every
shape: here the sum of an output element is the same in any batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from apr_backend_cpu.compiling import serial
from apr_backend_cpu.vector_ir import (
    F16,
    F32,
    I16,
    I32,
    I64,
    LANES,
    V16F,
    Value,
    const,
    fma,
    horizontal_sum,
    load,
)

ROWS, TOKENS = 4, 4
U = np.uint64
Loader = Callable[[ir.IRBuilder, Value], Value]


def _load_f32(b: ir.IRBuilder, p: Value) -> Value:
    return load(b, p, V16F)


def _load_f16(b: ir.IRBuilder, p: Value) -> Value:
    return b.fpext(load(b, p, ir.VectorType(F16, LANES)), V16F)


def _load_bf16(b: ir.IRBuilder, p: Value) -> Value:
    wide = b.zext(load(b, p, ir.VectorType(I16, LANES)), ir.VectorType(I32, LANES))
    return b.bitcast(b.shl(wide, const(wide.type, 16)), V16F)


def make_tile(loader: Loader, itemsize: int, rows: int, tokens: int) -> Any:
    """An intrinsic: `rows` weight rows times `tokens` activation rows over n groups of 16.

    Arguments: weights, weight row stride, activations, activation row stride, output, output row
    stride (all addresses and strides in bytes), n. Adds nothing: it stores.
    """
    signature = types.void(*[types.uintp] * 7)

    def codegen(context: Any, b: ir.IRBuilder, _: Any, args: Any) -> Any:
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
        return context.get_dummy_value()

    @intrinsic
    def tile(typing: Any, wp: Any, ws: Any, xp: Any, xs: Any, op: Any, os_: Any, n: Any) -> Any:
        return signature, codegen

    return tile


f32_44, f32_41 = make_tile(_load_f32, 4, ROWS, TOKENS), make_tile(_load_f32, 4, ROWS, 1)
f32_11 = make_tile(_load_f32, 4, 1, 1)
f16_44, f16_41 = make_tile(_load_f16, 2, ROWS, TOKENS), make_tile(_load_f16, 2, ROWS, 1)
f16_11 = make_tile(_load_f16, 2, 1, 1)
bf16_44, bf16_41 = make_tile(_load_bf16, 2, ROWS, TOKENS), make_tile(_load_bf16, 2, ROWS, 1)
bf16_11 = make_tile(_load_bf16, 2, 1, 1)

F32_CODE, F16_CODE, BF16_CODE = 16, 17, 18  # format numbers in tables; packed ones are below 16
CODES = {"f32": F32_CODE, "f16": F16_CODE, "bf16": BF16_CODE}


@serial
def _f32_rows(w, ws, rows, xp, xs, tokens, op, os_, n):  # noqa: ANN001, ANN202
    t, r = U(0), U(0)
    while r + U(ROWS) <= rows:
        t = U(0)
        while t + U(TOKENS) <= tokens:
            f32_44(w + r * ws, ws, xp + t * xs, xs, op + t * os_ + r * U(4), os_, n)
            t += U(TOKENS)
        while t < tokens:
            f32_41(w + r * ws, ws, xp + t * xs, xs, op + t * os_ + r * U(4), os_, n)
            t += U(1)
        r += U(ROWS)
    while r < rows:
        for t1 in range(tokens):
            f32_11(w + r * ws, ws, xp + U(t1) * xs, xs, op + U(t1) * os_ + r * U(4), os_, n)
        r += U(1)


@serial
def _f16_rows(w, ws, rows, xp, xs, tokens, op, os_, n):  # noqa: ANN001, ANN202
    t, r = U(0), U(0)
    while r + U(ROWS) <= rows:
        t = U(0)
        while t + U(TOKENS) <= tokens:
            f16_44(w + r * ws, ws, xp + t * xs, xs, op + t * os_ + r * U(4), os_, n)
            t += U(TOKENS)
        while t < tokens:
            f16_41(w + r * ws, ws, xp + t * xs, xs, op + t * os_ + r * U(4), os_, n)
            t += U(1)
        r += U(ROWS)
    while r < rows:
        for t1 in range(tokens):
            f16_11(w + r * ws, ws, xp + U(t1) * xs, xs, op + U(t1) * os_ + r * U(4), os_, n)
        r += U(1)


@serial
def _bf16_rows(w, ws, rows, xp, xs, tokens, op, os_, n):  # noqa: ANN001, ANN202
    t, r = U(0), U(0)
    while r + U(ROWS) <= rows:
        t = U(0)
        while t + U(TOKENS) <= tokens:
            bf16_44(w + r * ws, ws, xp + t * xs, xs, op + t * os_ + r * U(4), os_, n)
            t += U(TOKENS)
        while t < tokens:
            bf16_41(w + r * ws, ws, xp + t * xs, xs, op + t * os_ + r * U(4), os_, n)
            t += U(1)
        r += U(ROWS)
    while r < rows:
        for t1 in range(tokens):
            bf16_11(w + r * ws, ws, xp + U(t1) * xs, xs, op + U(t1) * os_ + r * U(4), os_, n)
        r += U(1)


@serial
def float_rows(code, w, ws, rows, xp, xs, tokens, op, os_, n):  # noqa: ANN001, ANN201
    """Some rows times all tokens: addresses, strides in bytes, n groups of 16 values."""
    if code == U(F32_CODE):
        _f32_rows(w, ws, rows, xp, xs, tokens, op, os_, n)
    elif code == U(F16_CODE):
        _f16_rows(w, ws, rows, xp, xs, tokens, op, os_, n)
    else:
        _bf16_rows(w, ws, rows, xp, xs, tokens, op, os_, n)
