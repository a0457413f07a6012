"""Activations as packed products want them: int8 with one scale a 64 values, quantized once."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from apr_backend_cpu.compiling import serial, threaded
from apr_backend_cpu.packed_linear import SUPERBLOCK

GROUP = 64
INFINITY_BITS = np.uint32(0x7F800000)
ROUND = np.float32(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer, ties to even
ROUND_BITS = np.int32(0x4B400000)


@serial
def _quantize_group(bits, x, q, sums):  # noqa: ANN001, ANN202
    """One group of 64 of one row; returns the scale, NaN if any value is not finite."""
    top = np.uint32(0)
    for i in range(64):
        top = max(top, bits[i] & np.uint32(0x7FFFFFFF))
    if top >= INFINITY_BITS:
        sums[:] = np.float32(np.nan)
        return np.float32(np.nan)
    largest = np.float32(0.0)
    for i in range(64):
        largest = max(largest, abs(x[i]))
    scale = largest / np.float32(127.0)
    inverse = np.float32(127.0) / largest if scale > 0 else np.float32(0.0)
    if not np.isfinite(inverse):  # a subnormal maximum: the group is zero for all purposes
        inverse, scale = np.float32(0.0), np.float32(0.0)
    rounded = np.empty(64, np.float32)
    for i in range(64):
        rounded[i] = x[i] * inverse + ROUND
    codes = rounded.view(np.int32)
    for i in range(64):
        q[i] = np.int8(codes[i] - ROUND_BITS)
    for g in range(4):
        total = np.int32(0)
        for i in range(16):
            total += codes[16 * g + i] - ROUND_BITS
        sums[g] = np.float32(total) * scale
    return scale


@serial
def _quantize_row(bits, x, q, scales, sums):  # noqa: ANN001, ANN202
    for g in range(x.size // 64):
        part = slice(64 * g, 64 * g + 64)
        scales[g] = _quantize_group(bits[part], x[part], q[part], sums[4 * g : 4 * g + 4])


@serial
def _quantize_rows(bits, x, q, scales, sums):  # noqa: ANN001, ANN202
    for t in range(x.shape[0]):
        _quantize_row(bits[t], x[t], q[t], scales[t], sums[t])


@threaded
def _quantize_many(bits, x, q, scales, sums):  # noqa: ANN001, ANN202
    for t in prange(x.shape[0]):
        _quantize_row(bits[t], x[t], q[t], scales[t], sums[t])


class Activations:
    """Rows [T, K] of float32, and their int8 form, made when the first packed weight asks."""

    __slots__ = ("dense", "q", "scales", "sums")

    def __init__(self, x: NDArray[np.float32]) -> None:
        self.dense = np.ascontiguousarray(x, dtype=np.float32)
        self.q: NDArray[np.int8] | None = None

    def quantize(self) -> None:
        """Fill q [T, Kp] int8, scales [T, Kp / 64] and sums [T, Kp / 16]; Kp % 256 == 0."""
        if self.q is not None:
            return
        x = self.dense
        tokens, cols = x.shape
        padded = -(-cols // SUPERBLOCK) * SUPERBLOCK
        if padded != cols:
            x = np.concatenate([x, np.zeros((tokens, padded - cols), np.float32)], axis=1)
        self.q = np.empty((tokens, padded), np.int8)
        self.scales = np.empty((tokens, padded // GROUP), np.float32)
        self.sums = np.empty((tokens, padded // 16), np.float32)
        run = _quantize_rows if tokens < 8 else _quantize_many
        run(x.view(np.uint32), x, self.q, self.scales, self.sums)
