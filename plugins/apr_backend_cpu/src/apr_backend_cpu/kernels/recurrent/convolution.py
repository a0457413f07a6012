"""The causal convolution with its gate; its state is the last inputs."""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from apr_backend_cpu.constants import CHANNELS, LANES, START, STATE, STOP, VECTOR
from apr_backend_cpu.kernels.source import helper, kernel, vector
from apr_backend_cpu.kernels.vector.builder import Builder
from apr_backend_cpu.kernels.vector.exponential import sigmoid, sigmoid32
from apr_backend_cpu.kernels.vector.ir import I64, V16F, Value, const
from apr_backend_cpu.kernels.vector.memory import floats_at, ints_at, matrix_at

f32 = np.float32
U = np.uint64


def _conv_vectors(b: Builder, args: tuple[Value, ...]) -> None:
    """Write silu(sum of w[j] * row j) of n times 16 channels; `rows` holds `taps` addresses."""
    rows, taps, w, w_bytes, out, n = args

    def vector(i: Value, values: list[Value]) -> list[Value]:
        skip = b.advance(ir.Constant(I64, 0), i, VECTOR)

        def tap(j: Value, sums: list[Value]) -> list[Value]:
            source = b.read(b.add(b.read(b.advance(rows, j, 8), I64), skip), V16F)
            return [b.fma(source, b.read(b.add(b.advance(w, j, w_bytes), skip), V16F), *sums)]

        total = b.count_loop(taps, [const(V16F, 0.0)], tap)[0]
        b.write(b.fmul(total, sigmoid(b, total)), b.add(out, skip))
        return values

    b.count_loop(n, [], vector)


conv_vectors = vector("conv_vectors", "pppppp", _conv_vectors)


@helper
def _conv_block(x, past, w, first, last, out, scratch):
    """Convolve channels [first, last): x [T, C] after past [K - 1, C], w [K, C] -> out [T, C]."""
    (tokens, channels), taps = x.shape, w.shape[0]
    history, size = taps - 1, last - first
    whole, skip = size // LANES, 4 * first
    stride, rows = 4 * channels, ints_at(scratch, taps)
    for t in range(tokens):
        for j in range(taps):  # the last `taps` inputs, oldest first
            before = t + j - history
            rows[j] = skip + (
                x.ctypes.data + before * stride
                if before >= 0
                else past.ctypes.data + (t + j) * stride
            )
        if whole > 0:
            conv_vectors(
                U(rows.ctypes.data),
                U(taps),
                U(w.ctypes.data) + U(skip),
                U(stride),
                U(out[t].ctypes.data) + U(skip),
                U(whole),
            )
        for c in range(whole * LANES, size):
            total = f32(0.0)
            for j in range(taps):
                total += floats_at(rows[j], size)[c] * w[j, first + c]
            out[t, first + c] = total * sigmoid32(total)
    for j in range(history):
        before = tokens + j - history
        source = x[before][first:last] if before >= 0 else past[tokens + j][first:last]
        target = past[j][first:last]
        for c in range(target.size):
            target[c] = source[c]


@kernel()
def conv_task(arguments, i, scratch):
    """Convolve 256 channels of a segment.

    Arguments: x, w [K, C], segments, C, K, blocks, out.
    """
    a = ints_at(arguments, 7)
    channels, taps, blocks = a[3], a[4], a[5]
    seg = ints_at(a[2] + 24 * (i // blocks), 3)
    first, size = i % blocks * CHANNELS, seg[STOP] - seg[START]
    skip = 4 * channels * seg[START]
    _conv_block(
        matrix_at(a[0] + skip, size, channels),
        matrix_at(seg[STATE], taps - 1, channels),
        matrix_at(a[1], taps, channels),
        first,
        min(channels, first + CHANNELS),
        matrix_at(a[6] + skip, size, channels),
        scratch,
    )
