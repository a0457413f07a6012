"""Rows of an embedding, decoded to float32. The steps are those of the formats' own decoders."""

from __future__ import annotations

import numpy as np
from numba import carray

from apr_backend_cpu.constants import SUPERBLOCK
from apr_backend_cpu.kernels.source import Builder, helper, kernel, vector
from apr_backend_cpu.kernels.vector.ir import I16, Value, from_half, load
from apr_backend_cpu.kernels.vector.memory import U, floats_at, ints_at, pointer

f32 = np.float32
Q8_BLOCK, Q8_BYTES = 32, 34


def _half_at(b: Builder, args: tuple[Value, ...]) -> Value:
    """The float16 at an address."""
    return from_half(b, load(b, args[0], I16))


half_at = vector("half_at", "p", _half_at, "f", inline=True)


@helper
def _bytes_at(address, size):
    return carray(pointer(U(address)), (size,), np.uint8)


@helper
def _row(arguments, i, nbytes):
    """Of task i: its row of the matrix as bytes, the address of these, and its result.

    Arguments: ids, data, bytes a row, columns, out.
    """
    a = ints_at(arguments, 5)
    at = a[1] + ints_at(a[0], i + 1)[i] * a[2]
    return _bytes_at(at, a[2]), at, floats_at(a[4] + 4 * a[3] * i, a[3])


@helper
def _scale_and_minimum(block, g):
    """The 6-bit scale and minimum of group g of q4_k and q5_k, whose 12 bytes begin at 4."""
    if g < 4:
        return np.int64(block[4 + g]) & 63, np.int64(block[8 + g]) & 63
    low, high = np.int64(block[8 + g]), np.int64(block[g])
    return (low & 15) | ((high >> 6) << 4), (low >> 4) | ((np.int64(block[4 + g]) >> 6) << 4)


@helper
def _affine(arguments, i, nbytes, fifth):
    """Row i of q4_k (`fifth` 0) or q5_k, whose fifth bits begin at byte 16."""
    row, at, out = _row(arguments, i, nbytes)
    for n in range((out.size + SUPERBLOCK - 1) // SUPERBLOCK):
        block, codes = row[n * nbytes :], 48 if fifth else 16
        d, dmin = half_at(U(at + n * nbytes)), half_at(U(at + n * nbytes + 2))
        for g in range(8):
            scale, minimum = _scale_and_minimum(block, g)
            step, low = d * f32(scale), dmin * f32(minimum)
            first = SUPERBLOCK * n + 32 * g
            for c in range(max(0, min(32, out.size - first))):
                byte = np.int64(block[codes + g // 2 * 32 + c])
                code = byte >> 4 if g % 2 else byte & 15
                if fifth:
                    code |= (np.int64(block[16 + c]) >> g & 1) << 4
                out[first + c] = step * f32(code) - low


@kernel()
def embed_q4_k_task(arguments, i, scratch):
    """A row of q4_k: arguments as `_row`."""
    _affine(arguments, i, 144, 0)


@kernel()
def embed_q5_k_task(arguments, i, scratch):
    """A row of q5_k: arguments as `_row`."""
    _affine(arguments, i, 176, 1)


@kernel()
def embed_q6_k_task(arguments, i, scratch):
    """A row of q6_k: arguments as `_row`."""
    row, at, out = _row(arguments, i, 210)
    for c in range(out.size):
        n, j = c // SUPERBLOCK, c % SUPERBLOCK
        half, k = j // 128, j % 128
        block = row[n * 210 :]
        byte = np.int64(block[64 * half + k % 64])
        low = byte >> 4 if k >= 64 else byte & 15
        high = np.int64(block[128 + 32 * half + k % 32]) >> (k // 32 * 2) & 3
        step = half_at(U(at + n * 210 + 208)) * f32(np.int8(block[192 + j // 16]))
        out[c] = step * (f32(low | high << 4) - f32(32))


@kernel()
def embed_q8_0_task(arguments, i, scratch):
    """A row of q8_0: arguments as `_row`."""
    row, at, out = _row(arguments, i, Q8_BYTES)
    for c in range(out.size):
        n, j = c // Q8_BLOCK, c % Q8_BLOCK
        out[c] = half_at(U(at + n * Q8_BYTES)) * f32(np.int8(row[n * Q8_BYTES + 2 + j]))


@kernel()
def embed_f32_task(arguments, i, scratch):
    """A row of float32: arguments as `_row`."""
    _, at, out = _row(arguments, i, 4)
    source = floats_at(at, out.size)
    for c in range(out.size):
        out[c] = source[c]


@kernel()
def embed_f16_task(arguments, i, scratch):
    """A row of float16: arguments as `_row`."""
    _, at, out = _row(arguments, i, 2)
    for c in range(out.size):
        out[c] = half_at(U(at + 2 * c))


@kernel()
def embed_bf16_task(arguments, i, scratch):
    """A row of bfloat16: arguments as `_row`."""
    _, at, out = _row(arguments, i, 2)
    source = carray(pointer(U(at)), (out.size,), np.uint16)
    for c in range(out.size):
        out[c] = np.uint32(np.uint32(source[c]) << np.uint32(16)).view(np.float32)
