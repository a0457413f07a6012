"""The gated delta rule: a task is a value head of a sequence and some columns of its state."""

from __future__ import annotations

import numpy as np

from apr_backend_cpu.constants import NARROW, START, STATE, STOP
from apr_backend_cpu.kernels.recurrent.delta_token import delta_run
from apr_backend_cpu.kernels.source import helper, kernel
from apr_backend_cpu.kernels.vector.exponential import exp32
from apr_backend_cpu.kernels.vector.memory import floats_at, ints_at, matrix_at, row
from apr_backend_cpu.kernels.vector.reductions import dot

NORM_EPS = np.float32(1e-6)
MOST = 32  # arguments of an instruction, at most
f32 = np.float32
U = np.uint64


@helper
def _unit_row(x, stride, heads, size, scale, out):
    """Scale a token's heads to unit length: addresses, bytes between the heads of x."""
    for h in range(heads):
        source, target = floats_at(x + h * stride, size), floats_at(out + 4 * h * size, size)
        inverse = scale / np.sqrt(dot(source, source) + NORM_EPS)
        for i in range(size):
            target[i] = source[i] * inverse


@helper
def _in_place(q, k, v, decay, beta, S, out):
    """Update the state for one token and one head, in place.

    Arguments: addresses of q and k [Dk], v and out [Dv], decay, beta; S [Dk, Dv], Dv a multiple of
    32.
    """
    keys, width = S.shape
    for c in range(0, width, NARROW):
        skip = U(4 * c)
        delta_run(
            U(S.ctypes.data) + skip,
            U(q),
            U(k),
            U(0),
            U(v) + skip,
            U(0),
            U(out) + skip,
            U(0),
            U(decay),
            U(beta),
            U(0),
            U(1),
            U(keys),
            U(4 * width),
        )


@helper
def _copy_columns(source, target, columns):
    """Copy a matrix's first columns to another; zero the rest of that one."""
    for i in range(source.shape[0]):
        original, copy = row(source[i]), row(target[i])
        for c in range(columns):
            copy[c] = original[c]
        for c in range(columns, copy.size):
            copy[c] = f32(0.0)


@helper
def _columns(q, k, qk_bytes, v, decay, beta, gate_bytes, S, out, scratch):
    """Run all tokens of a segment for one head and up to 32 columns.

    Arguments: addresses of q, k [T, Dk], decay and beta [T], with bytes between tokens; v, out
    [T, n]; S [Dk, n], updated in place.
    """
    tokens, (keys, columns) = v.shape[0], S.shape
    block = matrix_at(scratch, keys, NARROW)
    values = matrix_at(scratch + 4 * NARROW * keys, tokens, NARROW)
    answers = matrix_at(scratch + 4 * NARROW * (keys + tokens), tokens, NARROW)
    _copy_columns(S, block, columns)
    _copy_columns(v, values, columns)
    delta_run(
        U(block.ctypes.data),
        U(q),
        U(k),
        U(qk_bytes),
        U(values.ctypes.data),
        U(4 * NARROW),
        U(answers.ctypes.data),
        U(4 * NARROW),
        U(decay),
        U(beta),
        U(gate_bytes),
        U(tokens),
        U(keys),
        U(4 * NARROW),
    )
    _copy_columns(answers, out, columns)
    _copy_columns(block, S, columns)


@kernel()
def units_task(arguments, i, scratch):
    """Scale a token's q and k to unit length, and q by 1 / sqrt(Dk); exponentiate its decays.

    Arguments: q, its strides, k, its strides, Hk, Dk, log decay, Hv, unit q, unit k, decay.
    """
    a = ints_at(arguments, MOST)
    heads, size, n = a[6], a[7], a[9]
    skip = 4 * heads * size * i
    scale = f32(1.0) / f32(np.sqrt(size))
    _unit_row(a[0] + i * a[1], a[2], heads, size, scale, a[10] + skip)
    _unit_row(a[3] + i * a[4], a[5], heads, size, f32(1.0), a[11] + skip)
    log_decay, decay = floats_at(a[8] + 4 * n * i, n), floats_at(a[12] + 4 * n * i, n)
    for h in range(n):
        decay[h] = exp32(log_decay[h])


@helper
def _heads(x, stride, first, rows, cols):
    """Return a view [rows, cols] of an address, from row `first` on; `stride` in bytes."""
    return matrix_at(x + first * stride, rows, stride // 4)[:, :cols]


@kernel()
def delta_task(arguments, i, scratch):
    """Update some columns of the state of a segment's head.

    Arguments: unit q, unit k, v, its strides, decay, beta, segments, Hk, Hv, Dk, Dv, blocks per
    head, out, whether segments are single tokens.
    """
    a = ints_at(arguments, MOST)
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
        _in_place(q, k, v_at + start * a[3], decay, beta, S, out_at + start * 4 * heads * width)
    else:
        n = min(width - first, NARROW)
        _columns(
            q,
            k,
            k_bytes,
            _heads(v_at + 4 * first, a[3], start, size, n),
            decay,
            beta,
            gate_bytes,
            S[:, first : first + n],
            _heads(out_at + 4 * first, 4 * heads * width, start, size, n),
            scratch,
        )
