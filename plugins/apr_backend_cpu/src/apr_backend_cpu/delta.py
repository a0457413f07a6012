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
from numpy.typing import NDArray

from apr_backend_cpu.compiling import serial
from apr_backend_cpu.delta_token import NARROW, WIDE, delta_narrow, delta_wide
from apr_backend_cpu.exponential import exp32, sigmoid32
from apr_backend_cpu.program import Opcode, constant, each_time, instructions, new, strided
from apr_backend_cpu.reductions import dot
from apr_backend_cpu.rows import address, floats_at, ints_at, matrix_at, row

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


@serial
def _conv_block(x, past, w, first, last, out):  # noqa: ANN001, ANN202
    """Channels [first, last): x [T, C] after past [K - 1, C], w [K, C] -> out [T, C].

    Loops count from 0 over contiguous slices: only then does Numba know that no index is negative.
    """
    taps = w.shape[0]
    kept = taps - 1
    for t in range(out.shape[0]):
        y = out[t][first:last]
        for c in range(y.size):
            y[c] = f32(0.0)
        for j in range(taps):
            before = t + j - kept
            source = x[before][first:last] if before >= 0 else past[t + j][first:last]
            tap = w[j][first:last]
            for c in range(y.size):
                y[c] += source[c] * tap[c]
        for c in range(y.size):
            y[c] = y[c] * sigmoid32(y[c])
    for j in range(kept):  # the last inputs, oldest first
        before = x.shape[0] + j - kept
        source = x[before][first:last] if before >= 0 else past[x.shape[0] + j][first:last]
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
def _columns(q, k, v, decay, beta, S, out):  # noqa: ANN001, ANN202
    """All tokens of a segment for one head and up to 32 columns.

    q, k [T, Dk]; v, out [T, n]; decay, beta [T]; S [Dk, n], updated in place.
    """
    keys, columns = S.shape
    block = np.zeros((keys, NARROW), np.float32)
    for d in range(keys):
        source, target = row(S[d]), block[d]
        for c in range(columns):
            target[c] = source[c]
    values, answer = np.zeros(NARROW, np.float32), np.empty(NARROW, np.float32)
    for t in range(k.shape[0]):
        wanted, given = row(v[t]), row(out[t])
        for c in range(columns):
            values[c] = wanted[c]
        delta_narrow(
            U(block.ctypes.data), U(q[t].ctypes.data), U(k[t].ctypes.data), U(values.ctypes.data),
            U(answer.ctypes.data), decay[t], beta[t], U(keys), U(4 * NARROW),
        )  # fmt: skip
        for c in range(columns):
            given[c] = answer[c]
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
    k_skip, k_stride = 4 * kh * keys, 4 * k_heads * keys
    q = _heads(a[0] + k_skip, k_stride, start, size, keys)
    k = _heads(a[1] + k_skip, k_stride, start, size, keys)
    decay = _heads(a[5] + 4 * h, 4 * heads, start, size, 1)[:, 0]
    beta = _heads(a[6] + 4 * h, 4 * heads, start, size, 1)[:, 0]
    v_at, out_at = a[2] + h * a[4], a[13] + 4 * h * width
    if a[14] != 0:
        _in_place(q[0], k[0], floats_at(v_at + start * a[3], width), decay[0], beta[0], S,
                  floats_at(out_at + start * 4 * heads * width, width))  # fmt: skip
    else:
        n = min(width - first, NARROW)
        _columns(q, k, _heads(v_at + 4 * first, a[3], start, size, n), decay, beta,
                 S[:, first : first + n],
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
