"""Norms, gates and rotary positions. Each row is computed by itself, in a fixed order.

A function that ends in `_task` does one task of an instruction: `a` are the instruction's arguments
(int64: addresses, strides in bytes, counts, bits of float32), `i` is the number of the task. Where
a result is wanted in int8 for a product, the same task rounds it (`records`, 0: not wanted).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_backend_cpu.activations import SUPERBLOCK, quantize_block, row_of_records
from apr_backend_cpu.compiling import serial
from apr_backend_cpu.exponential import exp32, sigmoid32, sigmoids
from apr_backend_cpu.program import Opcode, constant, instructions, new, strided
from apr_backend_cpu.reductions import dot
from apr_backend_cpu.rows import address, as_float, bits, floats_at, ints_at

Floats = NDArray[np.float32]
f32 = np.float32


@serial
def _blocks(size):  # noqa: ANN001, ANN202
    """Superblocks of a row."""
    return (size + SUPERBLOCK - 1) // SUPERBLOCK


@serial
def _round(x, size, records, number):  # noqa: ANN001, ANN202
    """The records of the number-th row, at an address, if they are wanted."""
    if records != 0:
        blocks = _blocks(size)
        for block in range(blocks):
            quantize_block(x, size, block, records + number * row_of_records(blocks))


@serial
def _norm(x, w, eps, offset, out):  # noqa: ANN001, ANN202
    scale = f32(1.0) / np.sqrt(dot(x, x) / f32(x.size) + eps)
    for i in range(x.size):
        out[i] = x[i] * scale * (w[i] + offset)


@serial
def norm_task(a, i):  # noqa: ANN001, ANN201
    """A row: records, x, its outer stride, inner count and stride, size, w, eps, offset, out."""
    size = a[5]
    x = a[1] + i // a[3] * a[2] + i % a[3] * a[4]
    out = a[9] + 4 * size * i
    _norm(floats_at(x, size), floats_at(a[6], size), as_float(a[7]), as_float(a[8]),
          floats_at(out, size))  # fmt: skip
    _round(out, size, a[0], i)


@serial
def add_norm_task(a, i):  # noqa: ANN001, ANN201
    """A row: records, h, y, size, w, eps, offset, sum, out."""
    size = a[3]
    skip = 4 * size * i
    h, y = floats_at(a[1] + skip, size), floats_at(a[2] + skip, size)
    total = floats_at(a[7] + skip, size)
    for c in range(size):
        total[c] = h[c] + y[c]
    _norm(total, floats_at(a[4], size), as_float(a[5]), as_float(a[6]),
          floats_at(a[8] + skip, size))  # fmt: skip
    _round(a[8] + skip, size, a[0], i)


def rms_norm(x: Floats, w: Floats, eps: float, offset: float) -> Floats:
    """x / sqrt(mean(x^2) + eps) * (offset + w) over the last axis."""
    s = strided(x)
    out = new(x.shape)
    with instructions(s.array, w, out) as p:
        p.add(Opcode.NORM, s.rows, 0, s.address, s.outer, s.count, s.inner, s.size, address(w),
              bits(eps), bits(offset), address(out))  # fmt: skip
        p.rounds(out, s.size)
    return out


def add_rms_norm(
    h: Floats, y: Floats, w: Floats, eps: float, offset: float
) -> tuple[Floats, Floats]:
    """(h + y, rms_norm(h + y)) of contiguous [T, D] rows."""
    h, y = strided(h, whole=True).array, strided(y, whole=True).array
    total, out = new(h.shape), new(h.shape)
    with instructions(h, y, w, total, out) as p:
        p.add(Opcode.ADD_NORM, h.shape[0], 0, address(h), address(y), h.shape[1], address(w),
              bits(eps), bits(offset), address(total), address(out))  # fmt: skip
        p.rounds(out, h.shape[1])
    return total, out


@serial
def add_task(a, i):  # noqa: ANN001, ANN201
    """A row: x, y, bytes between rows of y (0: one for all), size, out."""
    size, skip = a[3], 4 * a[3] * i
    x, y = floats_at(a[0] + skip, size), floats_at(a[1] + i * a[2], size)
    out = floats_at(a[4] + skip, size)
    for c in range(size):
        out[c] = x[c] + y[c]


def add(x: Floats, y: Floats) -> Floats:
    """x + y of contiguous rows [T, N]; y may be one row [N] for all."""
    x, y = strided(x, whole=True).array, y if y.ndim == 1 else strided(y, whole=True).array
    size, out = x.shape[-1], new(x.shape)
    with instructions(x, y, out) as p:
        p.add(Opcode.ADD, x.size // size, address(x), address(y), 4 * size * (y.ndim > 1), size,
              address(out))  # fmt: skip
    return out


@serial
def swiglu_task(a, i):  # noqa: ANN001, ANN201
    """256 values of a row: records, gate, up, size, out."""
    size, blocks = a[3], _blocks(a[3])
    t, block = i // blocks, i % blocks
    first = block * SUPERBLOCK
    n, skip = min(size - first, SUPERBLOCK), 4 * (t * size + first)
    gate, up, out = floats_at(a[1] + skip, n), floats_at(a[2] + skip, n), floats_at(a[4] + skip, n)
    weights = np.empty(n, np.float32)
    sigmoids(gate, weights)
    for c in range(n):
        out[c] = gate[c] * weights[c] * up[c]
    if a[0] != 0:
        quantize_block(a[4] + 4 * t * size, size, block, a[0] + t * row_of_records(blocks))


def swiglu(gate: Floats, up: Floats) -> Floats:
    """silu(gate) * up of [T, F] rows."""
    gate, up = strided(gate, whole=True).array, strided(up, whole=True).array
    tokens, size = gate.shape
    out = new(gate.shape)
    with instructions(gate, up, out) as p:
        p.add(Opcode.SWIGLU, tokens * -(-size // SUPERBLOCK), 0, address(gate), address(up), size,
              address(out))  # fmt: skip
        p.rounds(out, size)
    return out


@serial
def sigmoid_gate_task(a, i):  # noqa: ANN001, ANN201
    """256 values of a token: records, x, gate, its strides a token and a head, H, D, out."""
    dim, size = a[6], a[5] * a[6]
    blocks = _blocks(size)
    t, block = i // blocks, i % blocks
    at, end = block * SUPERBLOCK, min(size, block * SUPERBLOCK + SUPERBLOCK)
    while at < end:  # a block may end within a head
        h, d = at // dim, at % dim
        n, skip = min(dim - d, end - at), 4 * (t * size + at)
        x, out = floats_at(a[1] + skip, n), floats_at(a[7] + skip, n)
        sigmoids(floats_at(a[2] + t * a[3] + h * a[4] + 4 * d, n), out)
        for c in range(n):
            out[c] = x[c] * out[c]
        at += n
    if a[0] != 0:
        quantize_block(a[7] + 4 * t * size, size, block, a[0] + t * row_of_records(blocks))


def sigmoid_gate(x: Floats, gate: Floats) -> Floats:
    """x * sigmoid(gate), [T, H, D]."""
    x, g = strided(x, whole=True).array, strided(gate)
    tokens, heads, dim = x.shape
    out = new(x.shape)
    with instructions(x, g.array, out) as p:
        p.add(Opcode.SIGMOID_GATE, tokens * -(-heads * dim // SUPERBLOCK), 0, address(x),
              g.address, g.outer, g.inner, heads, dim, address(out))  # fmt: skip
        p.rounds(out, heads * dim)
    return out


@serial
def rope_task(a, i):  # noqa: ANN001, ANN201
    """A token: x, its strides, H, D, positions, inverse frequencies, their number, out.

    Angles are float32, as in the models' own code.
    """
    heads, dim, n = a[3], a[4], a[7]
    position = np.float32(ints_at(a[5], i + 1)[i])
    inv_freq = floats_at(a[6], n)
    cos, sin = np.empty(n, np.float32), np.empty(n, np.float32)
    for c in range(n):
        angle = position * inv_freq[c]
        cos[c], sin[c] = np.cos(angle), np.sin(angle)
    for h in range(heads):
        x, out = a[0] + i * a[1] + h * a[2], a[8] + 4 * dim * (i * heads + h)
        first, second = floats_at(x, n), floats_at(x + 4 * n, n)
        turned, other = floats_at(out, n), floats_at(out + 4 * n, n)
        for c in range(n):
            turned[c] = first[c] * cos[c] - second[c] * sin[c]
        for c in range(n):
            other[c] = second[c] * cos[c] + first[c] * sin[c]
        rest, kept = floats_at(x + 8 * n, dim - 2 * n), floats_at(out + 8 * n, dim - 2 * n)
        for c in range(dim - 2 * n):
            kept[c] = rest[c]


def rope(x: Floats, positions: NDArray[np.int64], inv_freq: Floats) -> Floats:
    """NeoX rotary embedding of the first 2 * len(inv_freq) dims; x [T, H, D]."""
    s = strided(x)
    out = new(x.shape)
    with instructions(s.array, inv_freq, positions, out) as p:
        p.add(Opcode.ROPE, x.shape[0], s.address, s.outer, s.inner, x.shape[1], s.size,
              address(positions), address(inv_freq), inv_freq.size, address(out))  # fmt: skip
    return out


@serial
def gated_norm_task(a, i):  # noqa: ANN001, ANN201
    """Heads of a token: records, x, w, z, its strides, H, D, eps, out, heads a task."""
    heads, dim, some = a[6], a[7], a[10]
    tasks = (heads + some - 1) // some
    t, first = i // tasks, i % tasks * some
    w, eps = floats_at(a[2], dim), as_float(a[8])
    for h in range(first, min(heads, first + some)):
        skip = 4 * dim * (t * heads + h)
        x, out = floats_at(a[1] + skip, dim), floats_at(a[9] + skip, dim)
        z = floats_at(a[3] + t * a[4] + h * a[5], dim)
        scale = f32(1.0) / np.sqrt(dot(x, x) / f32(dim) + eps)
        sigmoids(z, out)
        for c in range(dim):
            out[c] = x[c] * scale * w[c] * (z[c] * out[c])
    if a[0] != 0:
        size = heads * dim
        quantize_block(a[9] + 4 * t * size, size, i % tasks, a[0] + t * row_of_records(tasks))


def gated_rms_norm(x: Floats, w: Floats, z: Floats, eps: float) -> Floats:
    """w * x / sqrt(mean(x^2) + eps) * silu(z) over the last axis of [T, H, D]."""
    x, gate = strided(x, whole=True).array, strided(z)
    tokens, heads, dim = x.shape
    some = max(1, SUPERBLOCK // dim)  # heads a superblock
    out = new(x.shape)
    with instructions(x, w, gate.array, out) as p:
        p.add(Opcode.GATED_NORM, tokens * -(-heads // some), 0, address(x), address(w),
              gate.address, gate.outer, gate.inner, heads, dim, bits(eps), address(out),
              some)  # fmt: skip
        if SUPERBLOCK % dim == 0:
            p.rounds(out, heads * dim)
    return out


@serial
def delta_gates_task(a, i):  # noqa: ANN001, ANN201
    """A token: a, b, their strides, H, decay rates, dt bias, log decay, beta."""
    n = a[4]
    given, b = floats_at(a[0] + i * a[1], n), floats_at(a[2] + i * a[3], n)
    rate, bias = floats_at(a[5], n), floats_at(a[6], n)
    log_decay, beta = floats_at(a[7] + 4 * n * i, n), floats_at(a[8] + 4 * n * i, n)
    for h in range(n):
        x = given[h] + bias[h]
        soft = max(x, f32(0.0)) + np.log1p(exp32(-abs(x)))
        log_decay[h] = -rate[h] * soft
        beta[h] = sigmoid32(b[h])


def delta_gates(a: Floats, b: Floats, A_log: Floats, dt_bias: Floats) -> Any:
    """log decay -exp(A_log) * softplus(a + dt_bias) and beta sigmoid(b), [T, Hv] each."""
    x, y = strided(a), strided(b)
    rates = constant(A_log, np.exp)
    log_decay, beta = new(a.shape), new(b.shape)
    with instructions(x.array, y.array, rates, dt_bias, log_decay, beta) as p:
        p.add(Opcode.DELTA_GATES, a.shape[0], x.address, x.outer, y.address, y.outer, x.size,
              address(rates), address(dt_bias), address(log_decay), address(beta))  # fmt: skip
    return log_decay, beta
