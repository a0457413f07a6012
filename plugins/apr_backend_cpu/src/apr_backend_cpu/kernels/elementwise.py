"""Norms, gates and rotary positions. Each row is computed by itself, in a fixed order.

A function whose name ends in `_task` does one task of an instruction: `a` are the instruction's
arguments (int64: addresses, strides in bytes, counts, bits of float32), `i` is the number of the
task. Where a product needs the result in int8, the same task rounds it (`records`; 0: not needed).
"""

from __future__ import annotations

import numpy as np

from apr_backend_cpu.constants import SUPERBLOCK
from apr_backend_cpu.kernels.linear.activations import quantize_block, row_of_records
from apr_backend_cpu.kernels.source import helper, kernel
from apr_backend_cpu.kernels.vector.exponential import exp32, sigmoid32, sigmoids
from apr_backend_cpu.kernels.vector.memory import as_float, floats_at, ints_at
from apr_backend_cpu.kernels.vector.reductions import dot

f32 = np.float32
MOST = 32  # arguments of an instruction, at most


@helper
def _blocks(size):
    """Return the number of superblocks in a row."""
    return (size + SUPERBLOCK - 1) // SUPERBLOCK


@helper
def _round(x, size, records, number, scratch):
    """Write the int8 records of row `number` if they are needed."""
    if records != 0:
        blocks = _blocks(size)
        for block in range(blocks):
            quantize_block(x, size, block, records + number * row_of_records(blocks), scratch)


@helper
def _norm(x, w, eps, offset, out):
    scale = f32(1.0) / np.sqrt(dot(x, x) / f32(x.size) + eps)
    for i in range(x.size):
        out[i] = x[i] * scale * (w[i] + offset)


@kernel()
def norm_task(arguments, i, scratch):
    """Normalize a row.

    Arguments: records, x, its outer stride, inner count and stride, size, w, eps, offset, out.
    """
    a = ints_at(arguments, MOST)
    size = a[5]
    x = a[1] + i // a[3] * a[2] + i % a[3] * a[4]
    out = a[9] + 4 * size * i
    _norm(
        floats_at(x, size),
        floats_at(a[6], size),
        as_float(a[7]),
        as_float(a[8]),
        floats_at(out, size),
    )
    _round(out, size, a[0], i, scratch)


@kernel()
def add_norm_task(arguments, i, scratch):
    """Add two rows and normalize the sum.

    Arguments: records, h, y, size, w, eps, offset, sum, out.
    """
    a = ints_at(arguments, MOST)
    size = a[3]
    skip = 4 * size * i
    h, y = floats_at(a[1] + skip, size), floats_at(a[2] + skip, size)
    total = floats_at(a[7] + skip, size)
    for c in range(size):
        total[c] = h[c] + y[c]
    _norm(
        total, floats_at(a[4], size), as_float(a[5]), as_float(a[6]), floats_at(a[8] + skip, size)
    )
    _round(a[8] + skip, size, a[0], i, scratch)


@kernel()
def add_task(arguments, i, scratch):
    """Add two rows. Arguments: x, y, bytes between rows of y (0: one for all), size, out."""
    a = ints_at(arguments, MOST)
    size, skip = a[3], 4 * a[3] * i
    x, y = floats_at(a[0] + skip, size), floats_at(a[1] + i * a[2], size)
    out = floats_at(a[4] + skip, size)
    for c in range(size):
        out[c] = x[c] + y[c]


@kernel()
def scale_task(arguments, i, scratch):
    """Scale a row. Arguments: x, size, factor, out."""
    a = ints_at(arguments, MOST)
    x, out = floats_at(a[0] + 4 * a[1] * i, a[1]), floats_at(a[3] + 4 * a[1] * i, a[1])
    factor = as_float(a[2])
    for c in range(x.size):
        out[c] = x[c] * factor


@kernel()
def softcap_task(arguments, i, scratch):
    """Softcap 256 values of a row. Arguments: x, size, cap, out.

    tanh(y) is 2 sigmoid(2 y) - 1.
    """
    a = ints_at(arguments, MOST)
    blocks = _blocks(a[1])
    first = i % blocks * SUPERBLOCK
    n, skip = min(a[1] - first, SUPERBLOCK), 4 * (i // blocks * a[1] + first)
    x, out, cap = floats_at(a[0] + skip, n), floats_at(a[3] + skip, n), as_float(a[2])
    inner = floats_at(scratch, n)
    for c in range(n):
        inner[c] = f32(2.0) * x[c] / cap
    sigmoids(inner, out)
    for c in range(n):
        out[c] = (f32(2.0) * out[c] - f32(1.0)) * cap


@kernel()
def pad_task(arguments, i, scratch):
    """Copy a row and pad it with zeros. Arguments: x, its size, size of a row of out, out."""
    a = ints_at(arguments, MOST)
    x, out = floats_at(a[0] + 4 * a[1] * i, a[1]), floats_at(a[3] + 4 * a[2] * i, a[2])
    for c in range(out.size):
        out[c] = x[c] if c < x.size else f32(0.0)


@helper
def _rest(size, block):
    """Return the values of a block: 256, or fewer in a row's last one."""
    return min(size - block * SUPERBLOCK, SUPERBLOCK)


@helper
def _gated_rows(a, t, first, n):
    """Return n values of gate, up and out in row t, from `first` on."""
    skip = 4 * first
    gate, up = floats_at(a[1] + t * a[2] + skip, n), floats_at(a[3] + t * a[4] + skip, n)
    return gate, up, floats_at(a[6] + 4 * t * a[5] + skip, n)


@helper
def _round_block(a, t, block, scratch):
    """Write the record of a block of out if it is needed."""
    if a[0] != 0:
        records = a[0] + t * row_of_records(_blocks(a[5]))
        quantize_block(a[6] + 4 * t * a[5], a[5], block, records, scratch)


@kernel()
def swiglu_task(arguments, i, scratch):
    """Compute silu(gate) * up for 256 values.

    Arguments: records, gate and its bytes per row, up and its bytes per row, size, out.
    """
    a = ints_at(arguments, MOST)
    blocks = _blocks(a[5])
    t, first, n = i // blocks, i % blocks * SUPERBLOCK, _rest(a[5], i % blocks)
    gate, up, out = _gated_rows(a, t, first, n)
    weights = floats_at(scratch, n)
    sigmoids(gate, weights)
    for c in range(n):
        out[c] = gate[c] * weights[c] * up[c]
    _round_block(a, t, i % blocks, scratch)


@kernel()
def geglu_task(arguments, i, scratch):
    """Compute gelu(gate) * up; arguments as for `swiglu_task`.

    The tanh form of gelu is x sigmoid(2 u).
    """
    a = ints_at(arguments, MOST)
    blocks = _blocks(a[5])
    t, first, n = i // blocks, i % blocks * SUPERBLOCK, _rest(a[5], i % blocks)
    gate, up, out = _gated_rows(a, t, first, n)
    weights = floats_at(scratch, n)
    for c in range(n):  # 2 u = 2 sqrt(2 / pi) (x + 0.044715 x^3)
        x = gate[c]
        out[c] = f32(1.5957691216057308) * (x + f32(0.044715) * x * x * x)
    sigmoids(out, weights)
    for c in range(n):
        out[c] = gate[c] * weights[c] * up[c]
    _round_block(a, t, i % blocks, scratch)


@kernel()
def sigmoid_gate_task(arguments, i, scratch):
    """Gate 256 values of a token by a sigmoid.

    Arguments: records, x, gate, its strides per token and per head, H, D, out.
    """
    a = ints_at(arguments, MOST)
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
        quantize_block(a[7] + 4 * t * size, size, block, a[0] + t * row_of_records(blocks), scratch)


@kernel()
def rope_task(arguments, i, scratch):
    """Rotate the heads of a token.

    Arguments: x, its strides, H, D, positions, inverse frequencies, their number, out, magnitude.
    Angles are float32, as in the models' own code.
    """
    a = ints_at(arguments, MOST)
    heads, dim, n = a[3], a[4], a[7]
    position = np.float32(ints_at(a[5], i + 1)[i])
    inv_freq = floats_at(a[6], n)
    cos, sin = floats_at(scratch, n), floats_at(scratch + 4 * n, n)
    magnitude = as_float(a[9])
    for c in range(n):
        angle = position * inv_freq[c]
        cos[c], sin[c] = np.cos(angle) * magnitude, np.sin(angle) * magnitude
    for h in range(heads):
        x, out = a[0] + i * a[1] + h * a[2], a[8] + 4 * dim * (i * heads + h)
        first, second = floats_at(x, n), floats_at(x + 4 * n, n)
        turned, other = floats_at(out, n), floats_at(out + 4 * n, n)
        for c in range(n):
            turned[c] = first[c] * cos[c] - second[c] * sin[c]
        for c in range(n):
            other[c] = second[c] * cos[c] + first[c] * sin[c]
        rest, copy = floats_at(x + 8 * n, dim - 2 * n), floats_at(out + 8 * n, dim - 2 * n)
        for c in range(dim - 2 * n):
            copy[c] = rest[c]


@kernel()
def gated_norm_task(arguments, i, scratch):
    """Normalize some heads of a token and gate them by silu(z).

    Arguments: records, x, w, z, its strides, H, D, eps, out, heads per task.
    """
    a = ints_at(arguments, MOST)
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
        quantize_block(
            a[9] + 4 * t * size, size, i % tasks, a[0] + t * row_of_records(tasks), scratch
        )


@kernel()
def delta_gates_task(arguments, i, scratch):
    """Compute the decays and betas of a token.

    Arguments: a, b, their strides, H, decay rates, dt bias, log decay, beta.
    """
    a = ints_at(arguments, MOST)
    n = a[4]
    dt, b = floats_at(a[0] + i * a[1], n), floats_at(a[2] + i * a[3], n)
    rate, bias = floats_at(a[5], n), floats_at(a[6], n)
    log_decay, beta = floats_at(a[7] + 4 * n * i, n), floats_at(a[8] + 4 * n * i, n)
    for h in range(n):
        x = dt[h] + bias[h]
        soft = max(x, f32(0.0)) + np.log1p(exp32(-abs(x)))
        log_decay[h] = -rate[h] * soft
        beta[h] = sigmoid32(b[h])
