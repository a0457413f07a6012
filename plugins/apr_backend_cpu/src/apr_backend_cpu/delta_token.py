"""One token of the gated delta rule on 16 columns of one head's state, as vector IR."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from apr_backend_cpu.vector_ir import F32, I64, LANES, V16F, Value, at, const, fma, load, splat

COLUMNS = LANES
UNROLL = 4  # independent sums hide the latency of the multiply-add


def _store(b: ir.IRBuilder, value: Value, address: Value) -> None:
    b.store(value, b.inttoptr(address, V16F.as_pointer())).align = 4


def _over_keys(
    b: ir.IRBuilder, n: Value, body: Callable[[Value, list[Value]], list[Value]]
) -> Value:
    """Run `body(first key, sums) -> sums` for every UNROLL keys; returns the sum of the sums."""
    before = b.block
    loop, done = b.append_basic_block("keys"), b.append_basic_block("keys.done")
    b.branch(loop)
    b.position_at_end(loop)
    d = b.phi(I64)
    d.add_incoming(ir.Constant(I64, 0), before)
    sums = [b.phi(V16F) for _ in range(UNROLL)]
    for phi in sums:
        phi.add_incoming(const(V16F, 0.0), before)
    results = body(d, list(sums))
    following = b.add(d, ir.Constant(I64, UNROLL))
    d.add_incoming(following, loop)
    for phi, result in zip(sums, results, strict=True):
        phi.add_incoming(result, loop)
    b.cbranch(b.icmp_unsigned("<", following, n), loop, done)
    b.position_at_end(done)
    return b.fadd(b.fadd(results[0], results[1]), b.fadd(results[2], results[3]))


@intrinsic
def delta_token(
    typing: Any, S: Any, q: Any, k: Any, v: Any, out: Any, decay: Any, beta: Any, keys: Any
) -> Any:
    """Decay, read, write, query. S [keys, 16], q and k [keys], v and out [16] are addresses.

    `keys` is a multiple of 4.
    """
    signature = types.void(*[types.uintp] * 5, types.float32, types.float32, types.uintp)

    def codegen(context: Any, b: ir.IRBuilder, _: Any, args: Any) -> Any:
        S, q, k, v, out, decay, beta, keys = args
        decays = splat(b, decay)

        def row(d: Value, u: int) -> Value:
            return at(b, b.add(S, b.mul(d, ir.Constant(I64, 4 * LANES))), 4 * LANES * u)

        def scalar(base: Value, d: Value, u: int) -> Value:
            return splat(b, load(b, at(b, b.add(base, b.mul(d, ir.Constant(I64, 4))), 4 * u), F32))

        def read(d: Value, sums: list[Value]) -> list[Value]:
            results = []
            for u in range(UNROLL):
                s = b.fmul(load(b, row(d, u), V16F), decays)
                _store(b, s, row(d, u))
                results.append(fma(b, s, scalar(k, d, u), sums[u]))
            return results

        recalled = _over_keys(b, keys, read)
        delta = b.fmul(b.fsub(load(b, v, V16F), recalled), splat(b, beta))

        def write(d: Value, sums: list[Value]) -> list[Value]:
            results = []
            for u in range(UNROLL):
                s = fma(b, scalar(k, d, u), delta, load(b, row(d, u), V16F))
                _store(b, s, row(d, u))
                results.append(fma(b, s, scalar(q, d, u), sums[u]))
            return results

        _store(b, _over_keys(b, keys, write), out)
        return context.get_dummy_value()

    return signature, codegen
