"""Matrix products that read packed weights in place: integer dots, one pass over the weights.

The sum of an output element runs over superblocks in order, in 16 lanes, whatever the tile: a row
gives the same bits alone, in a batch and on any number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from apr_backend_cpu.compiling import threaded
from apr_backend_cpu.unpack import READERS
from apr_backend_cpu.vector_ir import (
    F32,
    I64,
    V16F,
    V64B,
    Value,
    at,
    const,
    dot,
    fma,
    horizontal_sum,
    load,
    splat,
)

SUPERBLOCK = 256
TILE = 8  # tokens that share one unpacking of a superblock
U = np.uint64


def _advance(b: ir.IRBuilder, base: Value, index: Value, stride: int) -> Value:
    return b.add(base, b.mul(index, ir.Constant(I64, stride)))


def make_tile(format: str, tokens: int) -> Any:
    """An intrinsic: one weight row times `tokens` activation rows.

    Arguments are addresses: weights, int8 values, scales, sums, output; then the number of
    superblocks and the output's stride in bytes. Activation rows are contiguous.
    """
    reader, nbytes = READERS[format]
    signature = types.void(*[types.uintp] * 7)

    def codegen(context: Any, b: ir.IRBuilder, _: Any, args: Any) -> Any:
        wp, qp, sp, gp, op, n, out_stride = args
        before = b.block
        loop, done = b.append_basic_block("superblock"), b.append_basic_block("done")
        b.branch(loop)
        b.position_at_end(loop)
        i = b.phi(I64)
        i.add_incoming(ir.Constant(I64, 0), before)
        sums = [b.phi(V16F) for _ in range(tokens)]
        for phi in sums:
            phi.add_incoming(const(V16F, 0.0), before)
        weights, scales, offsets = reader(b, _advance(b, wp, i, nbytes))
        results = []
        for t in range(tokens):
            block = b.add(i, b.mul(n, ir.Constant(I64, t)))
            x = _advance(b, qp, block, 256)
            s = _advance(b, sp, block, 16)
            g = _advance(b, gp, block, 64)
            total = sums[t]
            for j in range(4):
                d = b.sitofp(dot(b, weights[j], load(b, at(b, x, 64 * j), V64B)), V16F)
                scale = b.fmul(scales[j], splat(b, load(b, at(b, s, 4 * j), F32)))
                total = fma(b, d, scale, total)
            results.append(fma(b, offsets, load(b, g, V16F), total))
        following = b.add(i, ir.Constant(I64, 1))
        i.add_incoming(following, loop)
        for phi, result in zip(sums, results, strict=True):
            phi.add_incoming(result, loop)
        b.cbranch(b.icmp_unsigned("<", following, n), loop, done)
        b.position_at_end(done)
        for t, result in enumerate(results):
            address = b.add(op, b.mul(out_stride, ir.Constant(I64, t)))
            stored = b.store(horizontal_sum(b, result), b.inttoptr(address, F32.as_pointer()))
            stored.align = 4
        return context.get_dummy_value()

    @intrinsic
    def tile(typing: Any, wp: Any, qp: Any, sp: Any, gp: Any, op: Any, n: Any, stride: Any) -> Any:
        return signature, codegen

    return tile


q4_k_one, q4_k_tile = make_tile("q4_k", 1), make_tile("q4_k", TILE)
q5_k_one, q5_k_tile = make_tile("q5_k", 1), make_tile("q5_k", TILE)
q6_k_one, q6_k_tile = make_tile("q6_k", 1), make_tile("q6_k", TILE)
q8_0_one, q8_0_tile = make_tile("q8_0", 1), make_tile("q8_0", TILE)

# One driver a format: Numba keeps compiled code on disk only for functions without closures.


@threaded
def linear_q4_k(wp, row_bytes, rows, n, qp, sp, gp, tokens, op):  # noqa: ANN001, ANN201
    """All rows times all tokens; out [tokens, rows]."""
    for r in prange(rows):
        w, t = wp + U(r) * row_bytes, U(0)
        while t + U(TILE) <= tokens:
            q4_k_tile(w, qp + t * n * U(256), sp + t * n * U(16), gp + t * n * U(64),
                      op + (t * rows + U(r)) * U(4), n, rows * U(4))  # fmt: skip
            t += U(TILE)
        while t < tokens:
            q4_k_one(w, qp + t * n * U(256), sp + t * n * U(16), gp + t * n * U(64),
                     op + (t * rows + U(r)) * U(4), n, rows * U(4))  # fmt: skip
            t += U(1)


@threaded
def linear_q5_k(wp, row_bytes, rows, n, qp, sp, gp, tokens, op):  # noqa: ANN001, ANN201
    """All rows times all tokens; out [tokens, rows]."""
    for r in prange(rows):
        w, t = wp + U(r) * row_bytes, U(0)
        while t + U(TILE) <= tokens:
            q5_k_tile(w, qp + t * n * U(256), sp + t * n * U(16), gp + t * n * U(64),
                      op + (t * rows + U(r)) * U(4), n, rows * U(4))  # fmt: skip
            t += U(TILE)
        while t < tokens:
            q5_k_one(w, qp + t * n * U(256), sp + t * n * U(16), gp + t * n * U(64),
                     op + (t * rows + U(r)) * U(4), n, rows * U(4))  # fmt: skip
            t += U(1)


@threaded
def linear_q6_k(wp, row_bytes, rows, n, qp, sp, gp, tokens, op):  # noqa: ANN001, ANN201
    """All rows times all tokens; out [tokens, rows]."""
    for r in prange(rows):
        w, t = wp + U(r) * row_bytes, U(0)
        while t + U(TILE) <= tokens:
            q6_k_tile(w, qp + t * n * U(256), sp + t * n * U(16), gp + t * n * U(64),
                      op + (t * rows + U(r)) * U(4), n, rows * U(4))  # fmt: skip
            t += U(TILE)
        while t < tokens:
            q6_k_one(w, qp + t * n * U(256), sp + t * n * U(16), gp + t * n * U(64),
                     op + (t * rows + U(r)) * U(4), n, rows * U(4))  # fmt: skip
            t += U(1)


@threaded
def linear_q8_0(wp, row_bytes, rows, n, qp, sp, gp, tokens, op):  # noqa: ANN001, ANN201
    """All rows times all tokens; out [tokens, rows]."""
    for r in prange(rows):
        w, t = wp + U(r) * row_bytes, U(0)
        while t + U(TILE) <= tokens:
            q8_0_tile(w, qp + t * n * U(256), sp + t * n * U(16), gp + t * n * U(64),
                      op + (t * rows + U(r)) * U(4), n, rows * U(4))  # fmt: skip
            t += U(TILE)
        while t < tokens:
            q8_0_one(w, qp + t * n * U(256), sp + t * n * U(16), gp + t * n * U(64),
                     op + (t * rows + U(r)) * U(4), n, rows * U(4))  # fmt: skip
            t += U(1)
