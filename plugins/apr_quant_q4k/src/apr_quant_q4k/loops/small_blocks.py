"""q4_0, q4_1, q5_0, q5_1 and iq4_nl: blocks of 32 values with a step, and a minimum or none (GGML).

A block has d, in some formats m, in those of 5 bits 32 fifth bits, and nibbles: the low ones are
values 0 to 15, the high ones 16 to 31. Values are d * (q - 8) in q4_0, d * (q - 16) in q5_0,
d * q + m in q4_1 and q5_1, d * LEVELS[q] in iq4_nl.

The search tries several first steps (`search.block_search`). Only the first `count` values of a
block are real.
"""

from __future__ import annotations

import numpy as np

from apr_quant_q4k.loops.compiling import serial
from apr_quant_q4k.loops.feedback import LEVELS, ROWS, RUN, part_of, round_in_turn
from apr_quant_q4k.loops.half import half_bits, half_value, load_half, store_half
from apr_quant_q4k.search.block_search import best_line, best_step
from apr_quant_q4k.search.lanes import nearest
from apr_quant_q4k.search.uneven import best_step_of_levels, level_code

f32 = np.float32
BLOCK, HALF = 32, 16
PARTS = RUN // BLOCK  # of a run
SYMMETRIC, AFFINE, CODEBOOK = 0, 1, 2


@serial
def _code(scaled, kind, levels):
    """Return the code of a value over its step; of the affine kinds, less the minimum before."""
    if kind == CODEBOOK:
        return level_code(scaled)
    zero = f32((levels + 1) // 2) if kind == SYMMETRIC else f32(0)
    return int(min(max(nearest(scaled) + zero, f32(0)), f32(levels)))


@serial
def _level(code, kind, levels):
    """Return the number that a code stands for."""
    if kind == CODEBOOK:
        return LEVELS[code]
    return f32(code) - f32((levels + 1) // 2) if kind == SYMMETRIC else f32(code)


@serial
def _weight(w, i):
    """Return a value's weight."""
    return f32(1) if w is None else w[i]


@serial
def _error(x, w, count, d, m, kind, levels):
    """Return the sum of squared errors with the best codes for d and m."""
    total = f32(0)
    if d == 0 and m == 0:
        for i in range(count):
            total += _weight(w, i) * x[i] * x[i]
        return total
    inverse = f32(1.0) / d if d != 0 else f32(0)
    for i in range(count):
        miss = x[i] - (d * _level(_code((x[i] - m) * inverse, kind, levels), kind, levels) + m)
        total += _weight(w, i) * miss * miss
    return total


@serial
def _step(x, w, count, kind, levels):
    """Return the bits of d for formats without a minimum."""
    top = f32(0)
    for i in range(count):
        if abs(x[i]) > abs(top):
            top = x[i]
    if top == 0:
        return np.uint16(0)
    if kind == CODEBOOK:
        error, d = best_step_of_levels(x, w, 0, count, top)
    else:
        low = -f32((levels + 1) // 2)
        error, d = best_step(x, w, 0, count, top, low, low + f32(levels))
    better = error < _error(x, w, count, f32(0), f32(0), kind, levels)
    return half_bits(d) if better else np.uint16(0)


@serial
def _step_and_minimum(x, w, count, levels):
    """Return the bits of d and of m."""
    low, high = x[0], x[0]
    for i in range(count):
        low, high = min(low, x[i]), max(high, x[i])
    best_d, best_m = np.uint16(0), np.uint16(0)
    best = _error(x, w, count, f32(0), f32(0), AFFINE, levels)
    d, m = half_bits((high - low) / f32(levels)), half_bits(low)
    error = _error(x, w, count, half_value(d), half_value(m), AFFINE, levels)
    if error < best:
        best, best_d, best_m = error, d, m
    if high > low:
        error, step, minimum = best_line(x, w, 0, count, low, high, f32(levels))
        if error < best:
            best_d, best_m = half_bits(step), half_bits(minimum)
    return best_d, best_m


@serial
def _scales(x, w, count, kind, levels):
    """Return the bits of d and of m."""
    if kind == AFFINE:
        return _step_and_minimum(x, w, count, levels)
    return _step(x, w, count, kind, levels), np.uint16(0)


@serial
def _store(x, d_bits, m_bits, block, kind, levels):
    """Write a block with the codes nearest to its values."""
    store_half(block, 0, d_bits)
    at = 2
    if kind == AFFINE:
        store_half(block, 2, m_bits)
        at = 4
    d, m = half_value(d_bits), half_value(m_bits)
    inverse = f32(1.0) / d if d != 0 else f32(0)
    fifth = at
    if levels == 31:
        at += 4
    for i in range(HALF):
        low = _code((x[i] - m) * inverse, kind, levels)
        high = _code((x[i + HALF] - m) * inverse, kind, levels)
        block[at + i] = (low & 15) | ((high & 15) << 4)
        if levels == 31:
            block[fifth + i // 8] |= np.uint8((low >> 4) << (i % 8))
            block[fifth + 2 + i // 8] |= np.uint8((high >> 4) << (i % 8))


@serial
def _decode_block(block, x, kind, levels):
    d, m, at = load_half(block, 0), f32(0), 2
    if kind == AFFINE:
        m, at = load_half(block, 2), 4
    fifth = at
    if levels == 31:
        at += 4
    for i in range(HALF):
        low, high = np.int64(block[at + i]) & 15, np.int64(block[at + i]) >> 4
        if levels == 31:
            low |= ((np.int64(block[fifth + i // 8]) >> (i % 8)) & 1) << 4
            high |= ((np.int64(block[fifth + 2 + i // 8]) >> (i % 8)) & 1) << 4
        first, second = d * _level(low, kind, levels), d * _level(high, kind, levels)
        x[i] = first + m if kind == AFFINE else first  # -0.0 + 0.0 would lose the sign
        x[i + HALF] = second + m if kind == AFFINE else second


@serial
def _encode_runs(y, w, blocks, last, feedback, out, across, kind, levels):
    """Encode the runs of several rows: up to four blocks, the last one of `last` values.

    y [rows, 128] changes. Blocks of the next row are `across` further on in out [N, bytes].
    """
    rows = len(y)
    bits = np.empty((rows, 2), np.uint16)
    steps, offsets = np.empty((rows, PARTS), np.float32), np.empty((rows, PARTS), np.float32)
    low, high, uneven = _level(0, kind, levels), _level(levels, kind, levels), kind == CODEBOOK
    for k in range(blocks):
        count, first = last if k == blocks - 1 else BLOCK, BLOCK * k
        for r in range(rows):
            x = y[r, first : first + BLOCK]
            bits[r, 0], bits[r, 1] = _scales(x, w[first : first + BLOCK], count, kind, levels)
            steps[r, k], offsets[r, k] = half_value(bits[r, 0]), -half_value(bits[r, 1])
        round_in_turn(
            y, (first + count,), first, first + BLOCK, steps, offsets, BLOCK, low, high, feedback,
            uneven,
        )  # fmt: skip
        for r in range(rows):
            x = y[r, first : first + BLOCK]
            _store(x, bits[r, 0], bits[r, 1], out[r * across + k], kind, levels)


@serial
def encode_blocks(values, out, start, stop, across, last, kind, levels):
    """Encode values [N, 32] to out [N, bytes], zeros before; a row's last block has `last`."""
    for n in range(start, stop):
        count = last if n % across == across - 1 else BLOCK
        d_bits, m_bits = _scales(values[n], None, count, kind, levels)
        _store(values[n], d_bits, m_bits, out[n], kind, levels)


@serial
def encode_for(values, out, start, stop, across, last, weights, feedback, kind, levels):
    """Encode as `encode_blocks`, with feedback [runs, 128, 128]: up to four blocks are one part."""
    rows, n = len(values) // across, start
    while n < stop:
        run, row, many = part_of(n, stop, rows, 2 * ROWS)
        first, blocks = row * across + PARTS * run, min(PARTS, across - PARTS * run)
        y = np.zeros((many, RUN), np.float32)
        for r in range(many):
            for i in range(BLOCK * blocks):
                y[r, i] = values[first + r * across + i // BLOCK, i % BLOCK]
        inside = last if PARTS * run + blocks == across else BLOCK
        _encode_runs(
            y, weights[run], blocks, inside, feedback[run], out[first:], across, kind, levels
        )
        n += many


@serial
def decode_blocks(raw, out, start, stop, kind, levels):
    """Decode raw [N, bytes] to out [N, 32]."""
    for n in range(start, stop):
        _decode_block(raw[n], out[n], kind, levels)
