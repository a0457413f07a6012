"""Activations as packed products want them: int8 with integer sub-scales, quantized once.

A row is cut into superblocks of 256 values, x = d * s_j * q with q int8, one float32 d a
superblock and one integer s_j from 1 to 16 for each 32 values. All that a product sums over a
superblock is then an integer, and integers can be summed in any order.

A superblock is a record of 512 bytes, offsets as below; sums are over q.
"""

from __future__ import annotations

import numpy as np
from numba import carray
from numpy.typing import NDArray

from apr_backend_cpu.compiling import serial
from apr_backend_cpu.rows import U, floats_at, pointer

SUPERBLOCK, GROUP = 256, 32
RECORD = 512
AT_Q = 0  # 256 int8
AT_SCALE16 = 256  # 16 int32: s_j of each 16 values
AT_SUM16 = 320  # 16 int16: s_j times the sum of each 16 values, at most 16 * 16 * 127 < 2^15
AT_SCALE32, AT_SUM32 = 352, 384  # 8 int32 each: s_j, and s_j times the sum of 32 values
AT_SHIFT32 = 416  # 8 int32: -128 times the sum of 32 values
AT_GROUP_D, AT_D = 448, 480  # 8 float32: d * s_j; then d

STEPS = np.float32(16.0)  # of s_j
INFINITY_BITS = np.uint32(0x7F800000)
ROUND = np.float32(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer, ties to even
ROUND_BITS = np.int32(0x4B400000)


@serial
def _largest(x):  # noqa: ANN001, ANN202
    """The largest magnitude of a slice, as bits: a NaN is larger than infinity."""
    top = np.uint32(0)
    for i in range(x.size):
        top = max(top, x[i] & np.uint32(0x7FFFFFFF))
    return top


@serial
def _round_group(x, inverse, codes, q):  # noqa: ANN001, ANN202
    """32 values to int8; `codes` int32 [32] gets them too."""
    for i in range(GROUP):
        scaled = min(max(x[i] * inverse, np.float32(-127.0)), np.float32(127.0)) + ROUND
        codes[i] = np.int32(np.float32(scaled).view(np.int32) - ROUND_BITS)
    for i in range(GROUP):
        q[i] = np.int8(codes[i])


@serial
def _sums(codes, j, scale, shorts, ints):  # noqa: ANN001, ANN202
    """Scales and sums of the j-th group of 32, into the record's integers."""
    total32 = np.int32(0)
    for g in range(2):
        part = codes[16 * g : 16 * g + 16]
        total = np.int32(0)
        for i in range(16):
            total += part[i]
        ints[AT_SCALE16 // 4 + 2 * j + g] = scale
        shorts[AT_SUM16 // 2 + 2 * j + g] = np.int16(scale * total)
        total32 += total
    ints[AT_SCALE32 // 4 + j] = scale
    ints[AT_SUM32 // 4 + j] = scale * total32
    ints[AT_SHIFT32 // 4 + j] = np.int32(-128) * total32


@serial
def _superblock(x, bits, q, shorts, ints, floats):  # noqa: ANN001, ANN202
    """One record from 256 values; d is NaN if any of them is not finite."""
    codes = np.zeros(GROUP, np.int32)
    tops = np.zeros(SUPERBLOCK // GROUP, np.uint32)
    for j in range(SUPERBLOCK // GROUP):
        tops[j] = _largest(bits[GROUP * j : GROUP * j + GROUP])
    tops_f = tops.view(np.float32)
    top = tops.max()
    unit = tops_f.max() / np.float32(127.0 * 16.0)
    finite = top < INFINITY_BITS
    if not finite or not np.isfinite(np.float32(1.0) / unit):  # zero or subnormal: zero, then
        unit = np.float32(0.0)
    for j in range(SUPERBLOCK // GROUP):
        scale, inverse = np.int32(1), np.float32(0.0)
        if unit > 0:
            wanted = np.ceil(tops_f[j] / (unit * np.float32(127.0)))
            scale = np.int32(min(max(wanted, np.float32(1.0)), STEPS))
            inverse = np.float32(1.0) / (unit * np.float32(scale))
        part = slice(GROUP * j, GROUP * j + GROUP)
        _round_group(x[part] if finite else np.zeros(GROUP, np.float32), inverse, codes, q[part])
        _sums(codes, j, scale, shorts, ints)
        d = unit * np.float32(scale)
        floats[AT_GROUP_D // 4 + j] = d if finite else np.float32(np.nan)
    floats[AT_D // 4] = unit if finite else np.float32(np.nan)


@serial
def quantize_superblock(x, count, record):  # noqa: ANN001, ANN201
    """The record at an address from `count` of 256 values at another; the rest are zeros."""
    if count < SUPERBLOCK:
        values = np.zeros(SUPERBLOCK, np.float32)
        given = floats_at(x, count)
        for i in range(count):
            values[i] = given[i]
        _at(U(values.ctypes.data), record)
    else:
        _at(U(x), record)


@serial
def _at(x, record):  # noqa: ANN001, ANN202
    """The record at an address from 256 values at another."""
    _superblock(
        carray(pointer(x), (SUPERBLOCK,), np.float32),
        carray(pointer(x), (SUPERBLOCK,), np.uint32),
        carray(pointer(U(record)), (RECORD,), np.int8),
        carray(pointer(U(record)), (RECORD // 2,), np.int16),
        carray(pointer(U(record)), (RECORD // 4,), np.int32),
        carray(pointer(U(record)), (RECORD // 4,), np.float32),
    )


@serial
def quantize_block(x, size, block, records):  # noqa: ANN001, ANN201
    """The block-th record of a row: addresses of its `size` values and of its first record."""
    first = block * SUPERBLOCK
    count = min(size - first, SUPERBLOCK)
    quantize_superblock(x + 4 * first, count, records + RECORD * block)


@serial
def quantize_task(a, i):  # noqa: ANN001, ANN201
    """Task of QUANTIZE: one superblock of one row. x, row stride, columns, records, superblocks."""
    t, block = i // a[4], i % a[4]
    quantize_block(a[0] + t * a[1], a[2], block, a[3] + t * a[4] * RECORD)


@serial
def quantize_rows(x, records):  # noqa: ANN001, ANN201
    """x [T, K] -> records [T, superblocks, 512]."""
    for t in range(x.shape[0]):
        for block in range(records.shape[1]):
            quantize_block(np.int64(x[t].ctypes.data), x.shape[1], block,
                           np.int64(records[t].ctypes.data))  # fmt: skip


def quantize(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The records [T, superblocks, 512] of contiguous rows [T, K]."""
    records = np.empty((x.shape[0], -(-x.shape[1] // SUPERBLOCK), RECORD), np.uint8)
    quantize_rows(x, records)
    return records
