"""q5_k: 256 values in 176 bytes: q4_k with 32 bytes of fifth bits before the nibbles (GGML)."""

from __future__ import annotations

import numpy as np

from apr_quant_q4k.loops.affine import codes, pack_scales, search, search_in_turn, unpack_scales
from apr_quant_q4k.loops.compiling import serial
from apr_quant_q4k.loops.feedback import ROWS, part_of
from apr_quant_q4k.loops.half import half_value, load_half, store_half

LEVELS = np.float32(31)


@serial
def _store(x, d_bits, m_bits, sc, mn, block):
    """Write a block with the codes nearest to its values."""
    q = np.empty(256, np.uint8)
    codes(x, half_value(d_bits), half_value(m_bits), LEVELS, sc, mn, q)
    store_half(block, 0, d_bits)
    store_half(block, 2, m_bits)
    pack_scales(sc, mn, block)
    for j in range(4):
        for i in range(32):
            low, high = q[64 * j + i], q[64 * j + 32 + i]
            block[48 + 32 * j + i] = (low & 15) | ((high & 15) << 4)
            block[16 + i] |= ((low >> 4) << (2 * j)) | ((high >> 4) << (2 * j + 1))


@serial
def _encode_block(x, count, block):
    sc, mn = np.zeros(8, np.int64), np.zeros(8, np.int64)
    d_bits, m_bits = search(x, None, count, LEVELS, sc, mn)
    _store(x, d_bits, m_bits, sc, mn, block)


@serial
def _decode_block(block, x):
    sc, mn = np.empty(8, np.int64), np.empty(8, np.int64)
    unpack_scales(block, sc, mn)
    d, dmin = load_half(block, 0), load_half(block, 2)
    for j in range(4):
        d0, m0 = d * np.float32(sc[2 * j]), dmin * np.float32(mn[2 * j])
        d1, m1 = d * np.float32(sc[2 * j + 1]), dmin * np.float32(mn[2 * j + 1])
        for i in range(32):
            byte, bits = block[48 + 32 * j + i], block[16 + i] >> (2 * j)
            x[64 * j + i] = d0 * np.float32((byte & 15) | ((bits & 1) << 4)) - m0
            x[64 * j + 32 + i] = d1 * np.float32((byte >> 4) | ((bits & 2) << 3)) - m1


@serial
def encode_blocks(values, out, start, stop, across, last):
    """Encode values [N, 256] to out [N, 176], zeroed before.

    Each `across`-th block has only `last` values.
    """
    for n in range(start, stop):
        _encode_block(values[n], last if n % across == across - 1 else 256, out[n])


@serial
def encode_for(values, out, start, stop, across, last, weights, feedback):
    """Encode as `encode_blocks`, with feedback [across, 2 * 128, 128]."""
    rows, n = len(values) // across, start
    while n < stop:
        part, row, many = part_of(n, stop, rows, ROWS)
        at, count = row * across + part, last if part == across - 1 else 256
        x = values[at : at + many * across : across].copy()
        sc, mn = np.zeros((many, 8), np.int64), np.zeros((many, 8), np.int64)
        bits = search_in_turn(x, weights[part], count, LEVELS, feedback[part], sc, mn)
        for r in range(many):
            _store(x[r], bits[r, 0], bits[r, 1], sc[r], mn[r], out[at + r * across])
        n += many


@serial
def decode_blocks(raw, out, start, stop):
    """Decode raw [N, 176] to out [N, 256]."""
    for n in range(start, stop):
        _decode_block(raw[n], out[n])
