"""q4_k: 256 values in 144 bytes: d, dmin, 12 bytes of scales, 128 bytes of nibbles (GGML)."""

from __future__ import annotations

import numpy as np
from numba import prange

from apr_quant_q4k.affine import codes, pack_scales, search, unpack_scales
from apr_quant_q4k.codec import BlockCodec
from apr_quant_q4k.compiling import serial, threaded
from apr_quant_q4k.half import half_value, load_half, store_half

LEVELS = np.float32(15)


@serial
def _encode_block(x, block):  # noqa: ANN001, ANN202
    sc, mn, q = np.zeros(8, np.int64), np.zeros(8, np.int64), np.empty(256, np.uint8)
    d_bits, m_bits = search(x, LEVELS, sc, mn)
    codes(x, half_value(d_bits), half_value(m_bits), LEVELS, sc, mn, q)
    store_half(block, 0, d_bits)
    store_half(block, 2, m_bits)
    pack_scales(sc, mn, block)
    for j in range(4):
        for i in range(32):
            block[16 + 32 * j + i] = q[64 * j + i] | (q[64 * j + 32 + i] << 4)


@serial
def _decode_block(block, x):  # noqa: ANN001, ANN202
    sc, mn = np.empty(8, np.int64), np.empty(8, np.int64)
    unpack_scales(block, sc, mn)
    d, dmin = load_half(block, 0), load_half(block, 2)
    for j in range(4):
        d0, m0 = d * np.float32(sc[2 * j]), dmin * np.float32(mn[2 * j])
        d1, m1 = d * np.float32(sc[2 * j + 1]), dmin * np.float32(mn[2 * j + 1])
        for i in range(32):
            byte = block[16 + 32 * j + i]
            x[64 * j + i] = d0 * np.float32(byte & 15) - m0
            x[64 * j + 32 + i] = d1 * np.float32(byte >> 4) - m1


@threaded
def encode_rows(rows, out):  # noqa: ANN001, ANN201
    """rows [R, B, 256] -> out [R, B, 144]."""
    for r in prange(rows.shape[0]):
        for b in range(rows.shape[1]):
            _encode_block(rows[r, b], out[r, b])


@threaded
def decode_rows(raw, out):  # noqa: ANN001, ANN201
    """raw [R, B, 144] -> out [R, B, 256]."""
    for r in prange(raw.shape[0]):
        for b in range(raw.shape[1]):
            _decode_block(raw[r, b], out[r, b])


class Q4K(BlockCodec):
    """The codec of q4_k."""

    name, block, nbytes, largest = "q4_k", 256, 144, 3e7
    encode_rows, decode_rows = encode_rows, decode_rows
