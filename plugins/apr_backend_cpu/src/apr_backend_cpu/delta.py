"""The causal convolution and the gated delta rule.

The rule runs token by token for prefill as for decode. A task is one value head and 16 columns of
its state, which stay in the first-level cache for the whole segment, so the recurrence costs less
than the chunked form's extra products (benchmarks/gated_delta.py), and its result does not depend
on where a prompt was cut.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from apr_backend_cpu.compiling import serial, threaded
from apr_backend_cpu.delta_token import COLUMNS, delta_token
from apr_backend_cpu.exponential import exp32, sigmoid32
from apr_backend_cpu.reductions import dot

Floats = NDArray[np.float32]
CHANNELS = 256  # of a convolution task
NORM_EPS = np.float32(1e-6)
f32 = np.float32
U = np.uint64


@serial
def _conv_block(rows, w, first, last, out):  # noqa: ANN001, ANN202
    """Channels [first, last): rows [K - 1 + T, C], w [K, C] -> out [T, C].

    Loops count from 0 over contiguous slices: only then does Numba know that no index is negative.
    """
    taps = w.shape[0]
    for t in range(out.shape[0]):
        y = out[t][first:last]
        x, tap = rows[t][first:last], w[0][first:last]
        for c in range(y.size):
            y[c] = x[c] * tap[c]
        for j in range(1, taps - 1):
            x, tap = rows[t + j][first:last], w[j][first:last]
            for c in range(y.size):
                y[c] += x[c] * tap[c]
        x, tap = rows[t + taps - 1][first:last], w[taps - 1][first:last]
        for c in range(y.size):
            total = y[c] + x[c] * tap[c]
            y[c] = total * sigmoid32(total)


@threaded
def _conv_many(rows, w, out):  # noqa: ANN001, ANN202
    channels = out.shape[1]
    for block in prange((channels + CHANNELS - 1) // CHANNELS):
        first = block * CHANNELS
        _conv_block(rows, w, first, min(channels, first + CHANNELS), out)


def causal_conv1d(x: Floats, w: Floats, state: Any, step: Any) -> Floats:
    """silu of the depthwise causal convolution: x [T, C], w [C, 1, K], state [K - 1, C]."""
    taps = np.ascontiguousarray(w[:, 0, :].T)  # [K, C]
    out = np.empty_like(x)
    for seg in step.segments:
        past = state.get("conv", seg.slot)
        rows = np.concatenate([past, x[seg.start : seg.stop]])  # [K - 1 + n, C]
        part = out[seg.start : seg.stop]
        if seg.stop - seg.start < 4:
            _conv_block(rows, taps, 0, x.shape[1], part)
        else:
            _conv_many(rows, taps, part)
        past[...] = rows[seg.stop - seg.start :]
    return out


@serial
def _unit_rows(x, scale, out):  # noqa: ANN001, ANN202
    for t in range(x.shape[0]):
        for h in range(x.shape[1]):
            inverse = scale / np.sqrt(dot(x[t, h], x[t, h]) + NORM_EPS)
            for i in range(x.shape[2]):
                out[t, h, i] = x[t, h, i] * inverse


@serial
def _columns(q, k, v, decay, beta, S, out):  # noqa: ANN001, ANN202
    """All tokens of a segment for one head and up to 16 columns.

    q, k [T, Dk]; v, out [T, n]; decay, beta [T]; S [Dk, n], updated in place.
    """
    keys, columns = S.shape
    block = np.zeros((keys, COLUMNS), np.float32)
    block[:, :columns] = S
    values, answer = np.zeros(COLUMNS, np.float32), np.empty(COLUMNS, np.float32)
    for t in range(k.shape[0]):
        for c in range(columns):
            values[c] = v[t, c]
        delta_token(
            U(block.ctypes.data), U(q[t].ctypes.data), U(k[t].ctypes.data), U(values.ctypes.data),
            U(answer.ctypes.data), decay[t], beta[t], U(keys),
        )  # fmt: skip
        for c in range(columns):
            out[t, c] = answer[c]
    S[:] = block[:, :columns]


@threaded
def _delta(q, k, v, log_decay, beta, S, out):  # noqa: ANN001, ANN202
    tokens, heads, width = v.shape
    repeats = heads // k.shape[1]
    blocks = (width + COLUMNS - 1) // COLUMNS
    decay = np.empty((heads, tokens), np.float32)
    for h in range(heads):
        for t in range(tokens):
            decay[h, t] = exp32(log_decay[t, h])
    for task in prange(heads * blocks):
        h, first = task // blocks, (task % blocks) * COLUMNS
        last = min(width, first + COLUMNS)
        _columns(q[:, h // repeats], k[:, h // repeats], v[:, h, first:last], decay[h],
                 beta[:, h], S[h, :, first:last], out[:, h, first:last])  # fmt: skip


def gated_delta(
    q: Floats, k: Floats, v: Floats, log_decay: Floats, beta: Floats, state: Any, step: Any
) -> Floats:
    """Gated delta rule: q, k [T, Hk, Dk]; v [T, Hv, Dv]; state `delta` [Hv, Dk, Dv] a slot."""
    unit_q, unit_k = np.empty(q.shape, np.float32), np.empty(k.shape, np.float32)
    _unit_rows(q, f32(q.shape[-1] ** -0.5), unit_q)
    _unit_rows(k, f32(1.0), unit_k)
    out = np.empty(v.shape, np.float32)
    for seg in step.segments:
        rows = slice(seg.start, seg.stop)
        S = state.get("delta", seg.slot)
        _delta(unit_q[rows], unit_k[rows], v[rows], log_decay[rows], beta[rows], S, out[rows])
    return out
