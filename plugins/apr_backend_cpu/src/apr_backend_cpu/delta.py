"""The causal convolution and the gated delta rule.

The rule runs token by token for prefill as for decode: state that stays in the first-level cache
makes the recurrence cheaper than the chunked form's extra products (benchmarks/gated_delta.py), and
its result does not depend on where a prompt was cut. A task is one value head of one sequence and
32 columns of its state, copied together for the whole segment; a single token goes over the whole
head in place, which reads and writes the state once, in order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from apr_backend_cpu.compiling import serial
from apr_backend_cpu.delta_token import NARROW, WIDE, delta_run, delta_wide
from apr_backend_cpu.exponential import exp32, sigmoid16, sigmoid32
from apr_backend_cpu.program import Opcode, constant, each_time, instructions, new, strided
from apr_backend_cpu.reductions import dot
from apr_backend_cpu.rows import address, alive, floats_at, ints_at, matrix_at, row
from apr_backend_cpu.vector_ir import (
    I64,
    LANES,
    V16F,
    Value,
    advance,
    const,
    count_loop,
    fma,
    load,
    store,
)

Floats = NDArray[np.float32]
CHANNELS = 256  # of a convolution task
NORM_EPS = np.float32(1e-6)
START, STOP, STATE = range(3)  # columns of a table of segments
f32 = np.float32
U = np.uint64


def _segments(step: Any) -> NDArray[np.int64]:
    """[segments, 3]: first row, row after the last, and room for the address of a state."""
    return np.array([(seg.start, seg.stop, 0) for seg in step.segments], np.int64)


def _find_states(table: NDArray[np.int64], state: Any, name: str) -> Any:
    """What looks up, before a step, where each sequence's array of that name is."""

    def refresh(ids: Any, step: Any) -> None:
        for i, seg in enumerate(step.segments):
            table[i, STATE] = address(state.get(name, seg.slot))

    return refresh


@intrinsic
def _conv_vectors(typing: Any, rows: Any, taps: Any, w: Any, w_bytes: Any, out: Any, n: Any) -> Any:
    """silu(sum of w[j] * row j) of n times 16 channels; `rows` is where `taps` addresses stand."""

    def codegen(context: Any, b: ir.IRBuilder, _: Any, args: Any) -> Any:
        rows, taps, w, w_bytes, out, n = args

        def vector(i: Value, values: list[Value]) -> list[Value]:
            skip = advance(b, ir.Constant(I64, 0), i, 4 * LANES)

            def tap(j: Value, sums: list[Value]) -> list[Value]:
                source = load(b, b.add(load(b, advance(b, rows, j, 8), I64), skip), V16F)
                return [
                    fma(b, source, load(b, b.add(advance(b, w, j, w_bytes), skip), V16F), *sums)
                ]

            total = count_loop(b, taps, [const(V16F, 0.0)], tap)[0]
            store(b, b.fmul(total, sigmoid16(b, total)), b.add(out, skip))
            return values

        count_loop(b, n, [], vector)
        return context.get_dummy_value()

    return types.void(*[types.uintp] * 6), codegen


@serial
def _conv_block(x, past, w, first, last, out):  # noqa: ANN001, ANN202
    """Channels [first, last): x [T, C] after past [K - 1, C], w [K, C] -> out [T, C]."""
    (tokens, channels), taps = x.shape, w.shape[0]
    kept, size = taps - 1, last - first
    whole, skip = size // LANES, 4 * first
    stride, rows = 4 * channels, np.empty(taps, np.int64)
    for t in range(tokens):
        for j in range(taps):  # the last `taps` inputs, oldest first
            before = t + j - kept
            rows[j] = skip + (x.ctypes.data + before * stride if before >= 0
                              else past.ctypes.data + (t + j) * stride)  # fmt: skip
        if whole > 0:
            _conv_vectors(U(rows.ctypes.data), U(taps), U(w.ctypes.data) + U(skip), U(stride),
                          U(out[t].ctypes.data) + U(skip), U(whole))  # fmt: skip
        for c in range(whole * LANES, size):
            total = f32(0.0)
            for j in range(taps):
                total += floats_at(rows[j], size)[c] * w[j, first + c]
            out[t, first + c] = total * sigmoid32(total)
    alive(rows)
    for j in range(kept):
        before = tokens + j - kept
        source = x[before][first:last] if before >= 0 else past[tokens + j][first:last]
        target = past[j][first:last]
        for c in range(target.size):
            target[c] = source[c]


@serial
def conv_task(a, i):  # noqa: ANN001, ANN201
    """256 channels of a segment: x, w [K, C], segments, C, K, blocks, out."""
    channels, taps, blocks = a[3], a[4], a[5]
    seg = ints_at(a[2] + 24 * (i // blocks), 3)
    first, size = i % blocks * CHANNELS, seg[STOP] - seg[START]
    skip = 4 * channels * seg[START]
    _conv_block(matrix_at(a[0] + skip, size, channels),
                matrix_at(seg[STATE], taps - 1, channels),
                matrix_at(a[1], taps, channels), first, min(channels, first + CHANNELS),
                matrix_at(a[6] + skip, size, channels))  # fmt: skip


def _taps(w: Floats) -> Floats:
    """w [C, 1, K] as [K, C]."""
    return np.ascontiguousarray(w[:, 0, :].T)


def causal_conv1d(x: Floats, w: Floats, state: Any, step: Any) -> Floats:
    """silu of the depthwise causal convolution: x [T, C], w [C, 1, K], state [K - 1, C]."""
    x, taps, table = strided(x, whole=True).array, constant(w, _taps), _segments(step)
    out = new(x.shape)
    blocks = -(-x.shape[1] // CHANNELS)
    with instructions(x, taps, table, out) as p:
        each_time(p, _find_states(table, state, "conv"), step=step)
        p.add(Opcode.CONV, len(table) * blocks, address(x), address(taps), address(table),
              x.shape[1], taps.shape[0], blocks, address(out))  # fmt: skip
    return out


@serial
def _unit_row(x, stride, heads, size, scale, out):  # noqa: ANN001, ANN202
    """Heads of a token over their lengths: addresses, bytes between the heads of x."""
    for h in range(heads):
        source, target = floats_at(x + h * stride, size), floats_at(out + 4 * h * size, size)
        inverse = scale / np.sqrt(dot(source, source) + NORM_EPS)
        for i in range(size):
            target[i] = source[i] * inverse


@serial
def _in_place(q, k, v, decay, beta, S, out):  # noqa: ANN001, ANN202
    """One token, one head: q, k [Dk]; v, out [Dv], Dv a multiple of 128; S [Dk, Dv]."""
    keys, width = S.shape
    for c in range(width // WIDE):
        delta_wide(
            U(S.ctypes.data) + U(4 * WIDE * c), U(q.ctypes.data), U(k.ctypes.data),
            U(v.ctypes.data) + U(4 * WIDE * c), U(out.ctypes.data) + U(4 * WIDE * c),
            decay, beta, U(keys), U(4 * width),
        )  # fmt: skip


@serial
def _columns(q, k, qk_bytes, v, decay, beta, gate_bytes, S, out):  # noqa: ANN001, ANN202
    """All tokens of a segment for one head and up to 32 columns.

    Addresses of q, k [T, Dk], decay and beta [T], with bytes between tokens; v, out [T, n]; S
    [Dk, n], updated in place.
    """
    tokens, (keys, columns) = v.shape[0], S.shape
    block = np.zeros((keys, NARROW), np.float32)
    for d in range(keys):
        source, target = row(S[d]), block[d]
        for c in range(columns):
            target[c] = source[c]
    values, answers = np.zeros((tokens, NARROW), np.float32), np.empty((tokens, NARROW), np.float32)
    for t in range(tokens):
        wanted, target = row(v[t]), values[t]
        for c in range(columns):
            target[c] = wanted[c]
    delta_run(
        U(block.ctypes.data), U(q), U(k), U(qk_bytes), U(values.ctypes.data), U(4 * NARROW),
        U(answers.ctypes.data), U(4 * NARROW), U(decay), U(beta), U(gate_bytes), U(tokens), U(keys),
    )  # fmt: skip
    alive(values)
    for t in range(tokens):
        source, given = answers[t], row(out[t])
        for c in range(columns):
            given[c] = source[c]
    for d in range(keys):
        source, target = block[d], row(S[d])
        for c in range(columns):
            target[c] = source[c]


@serial
def units_task(a, i):  # noqa: ANN001, ANN201
    """A token: q, its strides, k, its strides, Hk, Dk, log decay, Hv, unit q, unit k, decay.

    q and k over their lengths, q also over sqrt(Dk).
    """
    heads, size, n = a[6], a[7], a[9]
    skip = 4 * heads * size * i
    scale = f32(1.0) / f32(np.sqrt(size))
    _unit_row(a[0] + i * a[1], a[2], heads, size, scale, a[10] + skip)
    _unit_row(a[3] + i * a[4], a[5], heads, size, f32(1.0), a[11] + skip)
    log_decay, decay = floats_at(a[8] + 4 * n * i, n), floats_at(a[12] + 4 * n * i, n)
    for h in range(n):
        decay[h] = exp32(log_decay[h])


@serial
def _heads(x, stride, first, rows, cols):  # noqa: ANN001, ANN202
    """[rows, cols] at an address, bytes between rows, from row `first` on."""
    return matrix_at(x + first * stride, rows, stride // 4)[:, :cols]


@serial
def delta_task(a, i):  # noqa: ANN001, ANN201
    """Some columns of a head of a segment: unit q, unit k, v, its strides, decay, beta, segments,
    Hk, Hv, Dk, Dv, blocks a head, out, whether segments are single tokens."""
    k_heads, heads, keys, width, blocks = a[8], a[9], a[10], a[11], a[12]
    seg = ints_at(a[7] + 24 * (i // (heads * blocks)), 3)
    h, first = i // blocks % heads, i % blocks * NARROW
    kh, start, size = h // (heads // k_heads), seg[START], seg[STOP] - seg[START]
    S = matrix_at(seg[STATE] + 4 * h * keys * width, keys, width)
    k_bytes, gate_bytes = 4 * k_heads * keys, 4 * heads
    k_skip, gate_skip = start * k_bytes + 4 * kh * keys, start * gate_bytes + 4 * h
    q, k, decay, beta = a[0] + k_skip, a[1] + k_skip, a[5] + gate_skip, a[6] + gate_skip
    v_at, out_at = a[2] + h * a[4], a[13] + 4 * h * width
    if a[14] != 0:
        _in_place(floats_at(q, keys), floats_at(k, keys), floats_at(v_at + start * a[3], width),
                  floats_at(decay, 1)[0], floats_at(beta, 1)[0], S,
                  floats_at(out_at + start * 4 * heads * width, width))  # fmt: skip
    else:
        n = min(width - first, NARROW)
        _columns(q, k, k_bytes, _heads(v_at + 4 * first, a[3], start, size, n), decay, beta,
                 gate_bytes, S[:, first : first + n],
                 _heads(out_at + 4 * first, 4 * heads * width, start, size, n))  # fmt: skip


def gated_delta(
    q: Floats, k: Floats, v: Floats, log_decay: Floats, beta: Floats, state: Any, step: Any
) -> Floats:
    """Gated delta rule: q, k [T, Hk, Dk]; v [T, Hv, Dv]; state `delta` [Hv, Dk, Dv] a slot."""
    x, y, z, table = strided(q), strided(k), strided(v), _segments(step)
    log_decay, beta = strided(log_decay, whole=True).array, strided(beta, whole=True).array
    tokens, heads, width = v.shape
    unit_q, unit_k, decay = new(q.shape), new(k.shape), new(log_decay.shape)
    out = new(v.shape)
    single = len(table) == tokens and width % WIDE == 0
    blocks = 1 if single else -(-width // NARROW)
    with instructions(x.array, y.array, z.array, log_decay, beta, table, unit_q, unit_k, decay,
                      out) as p:  # fmt: skip
        each_time(p, _find_states(table, state, "delta"), step=step)
        p.add(Opcode.UNITS, tokens, x.address, x.outer, x.inner, y.address, y.outer, y.inner,
              x.count, x.size, address(log_decay), heads, address(unit_q), address(unit_k),
              address(decay))  # fmt: skip
        p.add(Opcode.DELTA, len(table) * heads * blocks, address(unit_q), address(unit_k),
              z.address, z.outer, z.inner, address(decay), address(beta), address(table),
              x.count, heads, x.size, width, blocks, address(out), single)  # fmt: skip
    return out
