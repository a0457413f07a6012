"""The gated delta rule on some columns of one head's state, as vector IR.

The state is read and written once per token: while a key's row is written it is also read for the
next token. The sums over keys are split in two: even and odd keys.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from apr_backend_cpu.constants import LANES, NARROW, VECTOR
from apr_backend_cpu.kernels.source import vector
from apr_backend_cpu.kernels.vector.builder import Builder
from apr_backend_cpu.kernels.vector.ir import F32, I64, V16F, Value, const

VECTORS = NARROW // LANES  # vectors per 32 columns


def _delta_run(b: Builder, args: tuple[Value, ...]) -> None:
    """Update 32 columns of the state for all tokens of a segment.

    Arguments: address of S [keys, columns]; of q and k, and bytes between two tokens; of v, and
    bytes; of out, and bytes; of decays and betas, and bytes; tokens; keys, an even number; bytes
    between the rows of S.
    """
    wide = VECTORS if b.lanes == LANES else 1  # as many sums as fit the registers
    for first in range(0, VECTORS, wide):
        _some(b, args, range(first, first + wide))


def _some(b: Builder, args: tuple[Value, ...], columns: range) -> None:
    S, q, k, qk_bytes, v, v_bytes, out, out_bytes, decay, beta, bytes_, tokens, keys, stride = args
    pairs, wide = b.lshr(keys, ir.Constant(I64, 1)), len(columns)
    zeros = [const(V16F, 0.0)] * (2 * wide)

    def over_keys(
        row: Callable[[Value, Value, int, list[Value]], list[Value]], start: list[Value]
    ) -> list[Value]:
        def body(i: Value, sums: list[Value]) -> list[Value]:
            for odd in (0, 1):
                d = b.add(b.mul(i, ir.Constant(I64, 2)), ir.Constant(I64, odd))
                sums = row(b.advance(S, d, stride), d, odd, sums)
            return sums

        return b.count_loop(pairs, start, body)

    def scalar(p: Value, d: Value) -> Value:
        return b.splat(b.read(b.advance(p, d, 4), F32))

    def first(row: Value, d: Value, odd: int, sums: list[Value]) -> list[Value]:
        key, sums = scalar(k, d), list(sums)
        for i, c in enumerate(columns, wide * odd):
            sums[i] = b.fma(b.read(b.at(row, VECTOR * c), V16F), key, sums[i])
        return sums

    def token(t: Value, recalled: list[Value]) -> list[Value]:
        last = b.sub(tokens, ir.Constant(I64, 1))
        following = b.select(b.icmp_unsigned("<", t, last), b.add(t, ir.Constant(I64, 1)), t)
        here, now, then = (b.advance(p, n, qk_bytes) for p, n in ((q, t), (k, t), (k, following)))
        decays, betas = (b.splat(b.read(b.advance(p, t, bytes_), F32)) for p in (decay, beta))
        wanted = b.advance(v, t, v_bytes)
        deltas = []
        for i, c in enumerate(columns):
            r = b.fmul(b.fadd(recalled[i], recalled[wide + i]), decays)
            value = b.read(b.at(wanted, VECTOR * c), V16F)
            deltas.append(b.fmul(b.fsub(value, r), betas))

        def write(row: Value, d: Value, odd: int, sums: list[Value]) -> list[Value]:
            key, query, coming = (scalar(p, d) for p in (now, here, then))
            sums = list(sums)
            for n, c in enumerate(columns):
                address, i = b.at(row, VECTOR * c), wide * odd + n
                s = b.fma(key, deltas[n], b.fmul(b.read(address, V16F), decays))
                b.write(s, address)
                sums[i] = b.fma(s, query, sums[i])
                sums[2 * wide + i] = b.fma(s, coming, sums[2 * wide + i])
            return sums

        sums = over_keys(write, zeros + zeros)
        answer = b.advance(out, t, out_bytes)
        for i, c in enumerate(columns):
            b.write(b.fadd(sums[i], sums[wide + i]), b.at(answer, VECTOR * c))
        return sums[2 * wide :]

    b.count_loop(tokens, over_keys(first, zeros), token)


delta_run = vector("delta_run", "p" * 14, _delta_run)
