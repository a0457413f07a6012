"""The causal convolution and the gated delta rule.

The rule runs token by token for prefill as for decode: state that stays in the first-level cache
makes the recurrence cheaper than the chunked form's extra products (benchmarks/gated_delta.py), and
its result does not depend on where a prompt was cut. A task is one value head of one sequence and
32 columns of its state, copied together for the whole segment; a single token goes over the whole
head in place, which reads and writes the state once, in order.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from apr_backend_cpu.compiling import serial, threaded
from apr_backend_cpu.delta_token import NARROW, WIDE, delta_narrow, delta_wide
from apr_backend_cpu.exponential import exp32, sigmoid32
from apr_backend_cpu.reductions import dot
from apr_backend_cpu.rows import address, cube_at, row

Floats = NDArray[np.float32]
CHANNELS = 256  # of a convolution task
FEW = 4  # rows; below this threads cost more than they save
NORM_EPS = np.float32(1e-6)
f32 = np.float32
U = np.uint64


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


@threaded
def _conv(x, past, w, out):  # noqa: ANN001, ANN202
    channels = out.shape[1]
    if out.shape[0] < FEW:
        _conv_block(x, past, w, 0, channels, out)
    else:
        for block in prange((channels + CHANNELS - 1) // CHANNELS):
            first = block * CHANNELS
            _conv_block(x, past, w, first, min(channels, first + CHANNELS), out)


_transposed: dict[int, tuple[weakref.ref[Floats], Floats]] = {}


def _taps(w: Floats) -> Floats:
    """w [C, 1, K] as [K, C], kept as long as w lives."""
    found = _transposed.get(id(w))
    if found is None or found[0]() is not w:
        number = id(w)
        forget = weakref.ref(w, lambda _: _transposed.pop(number, None))
        found = _transposed[number] = forget, np.ascontiguousarray(w[:, 0, :].T)
    return found[1]


def causal_conv1d(x: Floats, w: Floats, state: Any, step: Any) -> Floats:
    """silu of the depthwise causal convolution: x [T, C], w [C, 1, K], state [K - 1, C]."""
    taps = _taps(w)
    x = np.ascontiguousarray(x)
    out = np.empty_like(x)
    for seg in step.segments:
        rows = slice(seg.start, seg.stop)
        _conv(x[rows], state.get("conv", seg.slot), taps, out[rows])
    return out


@serial
def _unit_row(x, scale, out):  # noqa: ANN001, ANN202
    for h in range(x.shape[0]):
        source, target = row(x[h]), out[h]
        inverse = scale / np.sqrt(dot(source, source) + NORM_EPS)
        for i in range(source.size):
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


@threaded
def _units(q, k, log_decay, unit_q, unit_k, decay):  # noqa: ANN001, ANN202
    """Normalised q and k [T, Hk, Dk], q scaled by 1 / sqrt(Dk), and decays [T, Hv]."""
    scale = f32(1.0) / f32(np.sqrt(q.shape[2]))
    if q.shape[0] < FEW:
        for t in range(q.shape[0]):
            _unit_row(q[t], scale, unit_q[t])
            _unit_row(k[t], f32(1.0), unit_k[t])
            for h in range(decay.shape[1]):
                decay[t, h] = exp32(log_decay[t, h])
    else:
        for t in prange(q.shape[0]):
            _unit_row(q[t], scale, unit_q[t])
            _unit_row(k[t], f32(1.0), unit_k[t])
            for h in range(decay.shape[1]):
                decay[t, h] = exp32(log_decay[t, h])


@threaded
def _delta(q, k, v, log_decay, beta, starts, states, out):  # noqa: ANN001, ANN202
    """All segments: rows starts[i] to starts[i + 1] go with the state at address states[i]."""
    heads, width = v.shape[1], v.shape[2]
    repeats = heads // k.shape[1]
    unit_q, unit_k = np.empty(q.shape, np.float32), np.empty(k.shape, np.float32)
    decay = np.empty(log_decay.shape, np.float32)
    _units(q, k, log_decay, unit_q, unit_k, decay)
    blocks = (width + NARROW - 1) // NARROW
    shape = (heads, k.shape[2], width)
    for task in prange(states.size * heads * blocks):
        i, h, first = task // (heads * blocks), task // blocks % heads, task % blocks * NARROW
        start, stop, kh = starts[i], starts[i + 1], task // blocks % heads // repeats
        S = cube_at(states[i], shape)[h]
        if stop - start == 1 and width % WIDE == 0:
            if first == 0:
                _in_place(unit_q[start, kh], unit_k[start, kh], v[start, h], decay[start, h],
                          beta[start, h], S, out[start, h])  # fmt: skip
        else:
            last = min(width, first + NARROW)
            _columns(unit_q[start:stop, kh], unit_k[start:stop, kh], v[start:stop, h, first:last],
                     decay[start:stop, h], beta[start:stop, h], S[:, first:last],
                     out[start:stop, h, first:last])  # fmt: skip


def gated_delta(
    q: Floats, k: Floats, v: Floats, log_decay: Floats, beta: Floats, state: Any, step: Any
) -> Floats:
    """Gated delta rule: q, k [T, Hk, Dk]; v [T, Hv, Dv]; state `delta` [Hv, Dk, Dv] a slot."""
    out = np.empty(v.shape, np.float32)
    starts = np.array([seg.start for seg in step.segments] + [step.n_rows])
    states = np.array([address(state.get("delta", seg.slot)) for seg in step.segments], np.uint64)
    _delta(q, k, v, log_decay, beta, starts, states, out)
    return out
