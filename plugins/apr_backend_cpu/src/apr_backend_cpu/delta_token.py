"""One token of the gated delta rule on some columns of one head's state, as vector IR.

The sums over keys run in two, even and odd keys, whatever the number of columns: a prompt in
narrow blocks and a single token in wide ones give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from apr_backend_cpu.vector_ir import (
    F32,
    I64,
    LANES,
    V16F,
    Value,
    advance,
    at,
    const,
    count_loop,
    fma,
    load,
    splat,
    store,
)

VECTOR = 4 * LANES  # bytes


def make_delta_token(vectors: int) -> Any:
    """An intrinsic: decay, read, write, query of `vectors` times 16 columns.

    Arguments: addresses of S, q and k [keys], v and out; decay, beta; keys, an even number; bytes
    between the rows of S.
    """
    signature = types.void(
        *[types.uintp] * 5, types.float32, types.float32, types.uintp, types.uintp
    )

    def codegen(context: Any, b: ir.IRBuilder, _: Any, args: Any) -> Any:
        S, q, k, v, out, decay, beta, keys, stride = args
        decays, betas = splat(b, decay), splat(b, beta)
        pairs = b.lshr(keys, ir.Constant(I64, 1))

        def over_keys(step: Callable[[Value, Value, int], Value], vector: Value) -> list[Value]:
            """Sums of step(address, key, column vector) times the scalars of `vector`."""

            def body(i: Value, sums: list[Value]) -> list[Value]:
                results = []
                for odd in (0, 1):
                    d = b.add(b.mul(i, ir.Constant(I64, 2)), ir.Constant(I64, odd))
                    row = advance(b, S, d, stride)
                    scalars = [splat(b, load(b, advance(b, p, d, 4), F32)) for p in (vector, k)]
                    for c in range(vectors):
                        address = at(b, row, VECTOR * c)
                        s = step(address, scalars[1], c)
                        results.append(fma(b, s, scalars[0], sums[vectors * odd + c]))
                return results

            sums = count_loop(b, pairs, [const(V16F, 0.0)] * (2 * vectors), body)
            return [b.fadd(sums[c], sums[vectors + c]) for c in range(vectors)]

        def read(address: Value, key: Value, c: int) -> Value:
            return load(b, address, V16F)  # decay is a factor of the sum: no store is needed here

        recalled = [b.fmul(r, decays) for r in over_keys(read, k)]
        deltas = [
            b.fmul(b.fsub(load(b, at(b, v, VECTOR * c), V16F), r), betas)
            for c, r in enumerate(recalled)
        ]

        def write(address: Value, key: Value, c: int) -> Value:
            s = fma(b, key, deltas[c], b.fmul(load(b, address, V16F), decays))
            store(b, s, address)
            return s

        for c, answer in enumerate(over_keys(write, q)):
            store(b, answer, at(b, out, VECTOR * c))
        return context.get_dummy_value()

    @intrinsic
    def delta_token(
        typing: Any, S: Any, q: Any, k: Any, v: Any, out: Any, decay: Any, beta: Any, keys: Any,
        stride: Any,
    ) -> Any:  # fmt: skip
        return signature, codegen

    return delta_token


NARROW, WIDE = 32, 128  # columns
delta_narrow, delta_wide = make_delta_token(NARROW // LANES), make_delta_token(WIDE // LANES)
