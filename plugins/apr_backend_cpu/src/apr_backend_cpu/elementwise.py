"""Norms, gates and rotary positions. Each row is computed by itself, in a fixed order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from apr_backend_cpu.compiling import serial, threaded
from apr_backend_cpu.exponential import exp32, sigmoid32
from apr_backend_cpu.reductions import dot
from apr_backend_cpu.rows import row

Floats = NDArray[np.float32]
SMALL = 1 << 15  # values; below this the threads' start costs more than they save
f32 = np.float32


@serial
def _norm_row(x, w, eps, offset, out):  # noqa: ANN001, ANN202
    scale = f32(1.0) / np.sqrt(dot(x, x) / f32(x.size) + eps)
    for i in range(x.size):
        out[i] = x[i] * scale * (w[i] + offset)


@serial
def _norm_rows(x, w, eps, offset, out):  # noqa: ANN001, ANN202
    for t in range(x.shape[0]):
        _norm_row(x[t], w, eps, offset, out[t])


@threaded
def _norm_many(x, w, eps, offset, out):  # noqa: ANN001, ANN202
    for t in prange(x.shape[0]):
        _norm_row(x[t], w, eps, offset, out[t])


def rms_norm(x: Floats, w: Floats, eps: float, offset: float) -> Floats:
    """x / sqrt(mean(x^2) + eps) * (offset + w) over the last axis."""
    rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
    out = np.empty_like(rows)
    run = _norm_rows if rows.size < SMALL else _norm_many
    run(rows, w, f32(eps), f32(offset), out)
    return out.reshape(x.shape)


@serial
def _add_norm_rows(h, y, w, eps, offset, total, out):  # noqa: ANN001, ANN202
    for t in range(h.shape[0]):
        for i in range(h.shape[1]):
            total[t, i] = h[t, i] + y[t, i]
        _norm_row(total[t], w, eps, offset, out[t])


@threaded
def _add_norm_many(h, y, w, eps, offset, total, out):  # noqa: ANN001, ANN202
    for t in prange(h.shape[0]):
        for i in range(h.shape[1]):
            total[t, i] = h[t, i] + y[t, i]
        _norm_row(total[t], w, eps, offset, out[t])


def add_rms_norm(
    h: Floats, y: Floats, w: Floats, eps: float, offset: float
) -> tuple[Floats, Floats]:
    """(h + y, rms_norm(h + y)) of contiguous [T, D] rows."""
    total, out = np.empty_like(h), np.empty_like(h)
    run = _add_norm_rows if h.size < SMALL else _add_norm_many
    run(h, y, w, f32(eps), f32(offset), total, out)
    return total, out


@serial
def _swiglu_row(gate, up):  # noqa: ANN001, ANN202
    for i in range(gate.size):
        gate[i] = gate[i] * sigmoid32(gate[i]) * up[i]


@threaded
def swiglu_rows(gate, up):  # noqa: ANN001, ANN201
    """gate = silu(gate) * up, [T, F] rows, in place."""
    if gate.size < SMALL:
        for t in range(gate.shape[0]):
            _swiglu_row(gate[t], up[t])
    else:
        for t in prange(gate.shape[0]):
            _swiglu_row(gate[t], up[t])


def swiglu(gate: Floats, up: Floats) -> Floats:
    """silu(gate) * up of [T, F] rows."""
    out = np.array(gate, np.float32, order="C")
    swiglu_rows(out, np.ascontiguousarray(up))
    return out


@serial
def _sigmoid_gate_row(x, gate, out):  # noqa: ANN001, ANN202
    for h in range(x.shape[0]):
        source, gates, target = row(x[h]), row(gate[h]), out[h]
        for i in range(target.size):
            target[i] = source[i] * sigmoid32(gates[i])


@threaded
def _sigmoid_gate(x, gate, out):  # noqa: ANN001, ANN202
    if out.size < SMALL:
        for t in range(x.shape[0]):
            _sigmoid_gate_row(x[t], gate[t], out[t])
    else:
        for t in prange(x.shape[0]):
            _sigmoid_gate_row(x[t], gate[t], out[t])


def sigmoid_gate(x: Floats, gate: Floats) -> Floats:
    """x * sigmoid(gate), [T, H, D]."""
    out = np.empty(x.shape, np.float32)
    _sigmoid_gate(x, gate, out)
    return out


@serial
def _rope_row(x, position, inv_freq, out):  # noqa: ANN001, ANN202
    """One token: x, out [H, D]. Angles are float32, as in the models' own code."""
    n = inv_freq.size
    cos, sin = np.empty(n, np.float32), np.empty(n, np.float32)
    for i in range(n):
        angle = np.float32(position) * inv_freq[i]
        cos[i], sin[i] = np.cos(angle), np.sin(angle)
    for h in range(x.shape[0]):
        a, b, rest = row(x[h, :n]), row(x[h, n : 2 * n]), row(x[h, 2 * n :])
        first, second, kept = out[h][:n], out[h][n : 2 * n], out[h][2 * n :]
        for i in range(n):
            first[i] = a[i] * cos[i] - b[i] * sin[i]
        for i in range(n):
            second[i] = b[i] * cos[i] + a[i] * sin[i]
        for i in range(kept.size):
            kept[i] = rest[i]


@threaded
def _rope(x, positions, inv_freq, out):  # noqa: ANN001, ANN202
    if out.size < SMALL:
        for t in range(x.shape[0]):
            _rope_row(x[t], positions[t], inv_freq, out[t])
    else:
        for t in prange(x.shape[0]):
            _rope_row(x[t], positions[t], inv_freq, out[t])


def rope(x: Floats, positions: NDArray[np.int64], inv_freq: Floats) -> Floats:
    """NeoX rotary embedding of the first 2 * len(inv_freq) dims; x [T, H, D]."""
    out = np.empty(x.shape, np.float32)
    _rope(x, positions, inv_freq, out)
    return out


@serial
def _gated_norm_row(x, w, z, eps, out):  # noqa: ANN001, ANN202
    for h in range(x.shape[0]):
        scale = f32(1.0) / np.sqrt(dot(x[h], x[h]) / f32(x.shape[1]) + eps)
        for i in range(x.shape[1]):
            out[h, i] = x[h, i] * scale * w[i] * (z[h, i] * sigmoid32(z[h, i]))


@serial
def _gated_norm_rows(x, w, z, eps, out):  # noqa: ANN001, ANN202
    for t in range(x.shape[0]):
        _gated_norm_row(x[t], w, z[t], eps, out[t])


@threaded
def _gated_norm_many(x, w, z, eps, out):  # noqa: ANN001, ANN202
    for t in prange(x.shape[0]):
        _gated_norm_row(x[t], w, z[t], eps, out[t])


def gated_rms_norm(x: Floats, w: Floats, z: Floats, eps: float) -> Floats:
    """w * x / sqrt(mean(x^2) + eps) * silu(z) over the last axis of [T, H, D]."""
    out = np.empty_like(x)
    run = _gated_norm_rows if x.size < SMALL else _gated_norm_many
    run(np.ascontiguousarray(x), w, np.ascontiguousarray(z), f32(eps), out)
    return out


@serial
def _delta_gates(a, b, rate, dt_bias, log_decay, beta):  # noqa: ANN001, ANN202
    for t in range(a.shape[0]):
        for h in range(a.shape[1]):
            x = a[t, h] + dt_bias[h]
            soft = max(x, f32(0.0)) + np.log1p(exp32(-abs(x)))
            log_decay[t, h] = -rate[h] * soft
            beta[t, h] = sigmoid32(b[t, h])


def delta_gates(a: Floats, b: Floats, A_log: Floats, dt_bias: Floats) -> Any:
    """log decay -exp(A_log) * softplus(a + dt_bias) and beta sigmoid(b), [T, Hv] each."""
    log_decay, beta = np.empty_like(a), np.empty_like(b)
    _delta_gates(a, b, np.exp(A_log), dt_bias, log_decay, beta)
    return log_decay, beta
