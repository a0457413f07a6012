"""The gated delta rule on some columns of one head's state, as vector IR.

A single token reads the state, then writes it. A run of tokens goes over it once a token: while a
key's row is written it is also read for the next token. The sums over keys run in two, even and odd
keys, in both: a prompt in narrow blocks and a single token in wide ones give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from apr_backend_cpu.constants import LANES
from apr_backend_cpu.kernels.source import Builder, vector
from apr_backend_cpu.kernels.vector.ir import (
    F32,
    I64,
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


def make_delta_token(name: str, vectors: int) -> Any:
    """An intrinsic: decay, read, write, query of `vectors` times 16 columns.

    Arguments: addresses of S, q and k [keys], v and out; decay, beta; keys, an even number; bytes
    between the rows of S.
    """

    def emit(b: Builder, args: tuple[Value, ...]) -> None:
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

    return vector(name, "pppppffpp", emit)


def make_delta_run(name: str, vectors: int) -> Any:
    """An intrinsic: all tokens of a segment on `vectors` times 16 columns.

    Arguments: addresses of S [keys, columns], of q and k and bytes between two tokens', of v and
    bytes, of out and bytes, of decays and of betas and bytes; tokens; keys, an even number.
    """
    stride = VECTOR * vectors

    def emit(b: Builder, args: tuple[Value, ...]) -> None:
        S, q, k, qk_bytes, v, v_bytes, out, out_bytes, decay, beta, bytes_, tokens, keys = args
        pairs = b.lshr(keys, ir.Constant(I64, 1))
        zeros = [const(V16F, 0.0)] * (2 * vectors)
        columns = range(vectors)

        def over_keys(row: Callable[[Value, Value, int, list[Value]], list[Value]],
                      start: list[Value]) -> list[Value]:  # fmt: skip
            def body(i: Value, sums: list[Value]) -> list[Value]:
                for odd in (0, 1):
                    d = b.add(b.mul(i, ir.Constant(I64, 2)), ir.Constant(I64, odd))
                    sums = row(advance(b, S, d, stride), d, odd, sums)
                return sums

            return count_loop(b, pairs, start, body)

        def scalar(p: Value, d: Value) -> Value:
            return splat(b, load(b, advance(b, p, d, 4), F32))

        def first(row: Value, d: Value, odd: int, sums: list[Value]) -> list[Value]:
            key, sums = scalar(k, d), list(sums)
            for c in columns:
                s = load(b, at(b, row, VECTOR * c), V16F)
                sums[vectors * odd + c] = fma(b, s, key, sums[vectors * odd + c])
            return sums

        def token(t: Value, recalled: list[Value]) -> list[Value]:
            last = b.sub(tokens, ir.Constant(I64, 1))
            following = b.select(b.icmp_unsigned("<", t, last), b.add(t, ir.Constant(I64, 1)), t)
            here, now, then = (
                advance(b, p, n, qk_bytes) for p, n in ((q, t), (k, t), (k, following))
            )
            decays, betas = (
                splat(b, load(b, advance(b, p, t, bytes_), F32)) for p in (decay, beta)
            )
            wanted = advance(b, v, t, v_bytes)
            deltas = []
            for c in columns:
                r = b.fmul(b.fadd(recalled[c], recalled[vectors + c]), decays)
                value = load(b, at(b, wanted, VECTOR * c), V16F)
                deltas.append(b.fmul(b.fsub(value, r), betas))

            def write(row: Value, d: Value, odd: int, sums: list[Value]) -> list[Value]:
                key, query, coming = (scalar(p, d) for p in (now, here, then))
                sums = list(sums)
                for c in columns:
                    address, i = at(b, row, VECTOR * c), vectors * odd + c
                    s = fma(b, key, deltas[c], b.fmul(load(b, address, V16F), decays))
                    store(b, s, address)
                    sums[i] = fma(b, s, query, sums[i])
                    sums[2 * vectors + i] = fma(b, s, coming, sums[2 * vectors + i])
                return sums

            sums = over_keys(write, zeros + zeros)
            answer = advance(b, out, t, out_bytes)
            for c in columns:
                store(b, b.fadd(sums[c], sums[vectors + c]), at(b, answer, VECTOR * c))
            return sums[2 * vectors :]

        count_loop(b, tokens, over_keys(first, zeros), token)

    return vector(name, "ppppppppppppp", emit)


NARROW, WIDE = 32, 128  # columns
delta_run = make_delta_run("delta_run", NARROW // LANES)
delta_wide = make_delta_token("delta_wide", WIDE // LANES)
