"""q6_k: 256 values in 210 bytes: value = d * scale * (q - 32), 16 groups of 16 (GGML).

Scales are int8. Encoding: d from the group that needs the largest step, rounded to float16: two
guesses. Each group tries the integer scales from max / 32 on, and those from max / 31 on with the
other sign (the code -32 has no partner 32), and keeps the one with the least squared error. Then d
is fitted by least squares to those codes, each group tries the neighbours of its scale, and both
repeat while the error falls. The better of the two searches is kept. Only the first `count` values
of a block are real: the others are padding, and nothing reads them.
"""

from __future__ import annotations

import numpy as np

from apr_quant_q4k.loops.compiling import serial
from apr_quant_q4k.loops.feedback import ROWS, part_of, round_blocks
from apr_quant_q4k.loops.half import half_bits, half_value, load_half, scale_bits, store_half
from apr_quant_q4k.search.lanes import nearest
from apr_quant_q4k.search.scale_search import best_scale
from apr_quant_q4k.search.sums import code_sums_16, peak

f32 = np.float32
GROUPS, WIDTH = 16, 16
LOW, HIGH = f32(-32), f32(31)
ROUNDS = 2
STARTS = (f32(122), f32(112))  # the largest scale at first, with room for a larger one


@serial
def _first_scales(x, w, count, tops, d, scales):
    """Choose each group's best scale near those that map its largest value to -32 or 31."""
    total = f32(0)
    for g in range((count + WIDTH - 1) // WIDTH):
        inside = min(count - WIDTH * g, WIDTH)
        minus = nearest(tops[g] / (LOW * d)) if d != 0 else f32(0)
        plus = nearest(tops[g] / (HIGH * d)) if d != 0 else f32(0)
        if minus < 0:  # eight scales, from the nearest one away from 0
            minus -= f32(7)
        if plus < 0:
            plus -= f32(7)
        error, scale = best_scale(x, w, WIDTH * g, inside, d, minus, plus)
        scales[g] = int(scale)
        total += error
    return total


@serial
def _choose(x, w, count, d, scales):
    """Choose each group's best scale around the present one; return the total error."""
    total = f32(0)
    for g in range((count + WIDTH - 1) // WIDTH):
        inside = min(count - WIDTH * g, WIDTH)
        present = f32(scales[g])
        error, scale = best_scale(x, w, WIDTH * g, inside, d, present - f32(8), present)
        scales[g] = int(scale)
        total += error
    return total


@serial
def _refit(x, w, count, d, scales):
    """Return the least-squares d for the codes given by the present d and scales."""
    aa, ax = 0.0, 0.0
    for g in range((count + WIDTH - 1) // WIDTH):
        inside = min(count - WIDTH * g, WIDTH)
        step = d * f32(scales[g])
        _, qq, qx, _, _ = code_sums_16(x, w, WIDTH * g, inside, step, f32(0), LOW, HIGH)
        aa += float(scales[g]) ** 2 * qq
        ax += float(scales[g]) * qx
    return f32(ax / aa) if aa > 0 else d


@serial
def _take(trial, scales):
    """Copy scales. Numba compiles a loop much faster than an assignment to a slice."""
    for g in range(GROUPS):
        scales[g] = trial[g]


@serial
def _refine(x, w, count, tops, bits, scales):
    """Return (error, bits of d) of the search that starts from d; fill scales."""
    d = half_value(bits)
    error = _first_scales(x, w, count, tops, d, scales)
    trial = scales.copy()
    for _ in range(ROUNDS):
        new = half_bits(_refit(x, w, count, d, trial))
        d = half_value(new)
        if not (d > 0 and d <= f32(65504)):
            break
        trial_error = _choose(x, w, count, d, trial)
        if trial_error >= error:
            break
        error, bits = trial_error, new
        _take(trial, scales)
    return error, bits


@serial
def _search(x, w, count, scales):
    """Fill scales (int64 [16]); return the float16 bits of d >= 0."""
    tops, top = np.zeros(GROUPS, np.float32), f32(0)
    for g in range((count + WIDTH - 1) // WIDTH):
        tops[g] = peak(x, WIDTH * g, min(count - WIDTH * g, WIDTH))
        top = max(top, abs(tops[g]))
    best, best_bits, trial = f32(np.inf), np.uint16(0), np.zeros(GROUPS, np.int64)
    for largest_scale in STARTS:
        error, bits = _refine(x, w, count, tops, scale_bits(top / f32(32), largest_scale), trial)
        if error < best:
            best, best_bits = error, bits
            _take(trial, scales)
    return best_bits


@serial
def _codes(x, d, scales, q):
    """Write the codes 0..63 of 256 values."""
    for g in range(GROUPS):
        step = d * f32(scales[g])
        inverse = f32(1.0) / step if step != 0 else f32(0)
        for i in range(WIDTH * g, WIDTH * (g + 1)):
            code = min(max(nearest(x[i] * inverse), LOW), HIGH)
            q[i] = np.uint8(np.int32(code) + 32)


@serial
def _store(x, bits, scales, block):
    """Write a block with the codes nearest to its values."""
    q = np.empty(256, np.uint8)
    _codes(x, half_value(bits), scales, q)
    for g in range(GROUPS):
        block[192 + g] = np.uint8(scales[g] & 255)
    store_half(block, 208, bits)
    for h in range(2):
        for i in range(32):
            a, b, c, e = (
                q[128 * h + i], q[128 * h + 32 + i], q[128 * h + 64 + i], q[128 * h + 96 + i]
            )  # fmt: skip
            block[64 * h + i] = (a & 15) | ((c & 15) << 4)
            block[64 * h + 32 + i] = (b & 15) | ((e & 15) << 4)
            block[128 + 32 * h + i] = (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((e >> 4) << 6)


@serial
def _encode_block(x, count, block):
    scales = np.zeros(GROUPS, np.int64)
    _store(x, _search(x, None, count, scales), scales, block)


@serial
def _decode_block(block, x):
    d = load_half(block, 208)
    for h in range(2):
        for i in range(32):
            low, high = block[64 * h + i], block[64 * h + 32 + i]
            bits = block[128 + 32 * h + i]
            x[128 * h + i] = f32((low & 15) | ((bits & 3) << 4))
            x[128 * h + 32 + i] = f32((high & 15) | (((bits >> 2) & 3) << 4))
            x[128 * h + 64 + i] = f32((low >> 4) | (((bits >> 4) & 3) << 4))
            x[128 * h + 96 + i] = f32((high >> 4) | ((bits >> 6) << 4))
    for g in range(GROUPS):
        step = d * f32(np.int8(block[192 + g]))
        for i in range(WIDTH * g, WIDTH * (g + 1)):
            x[i] = step * (x[i] - f32(32))


@serial
def encode_blocks(values, out, start, stop, across, last):
    """Encode values [N, 256] to out [N, 210]; each `across`-th block has only `last` values."""
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
        bits, scales = np.empty(many, np.uint16), np.zeros((many, GROUPS), np.int64)
        steps = np.empty((many, GROUPS), np.float32)
        for r in range(many):
            bits[r] = _search(x[r], weights[part], count, scales[r])
            for g in range(GROUPS):
                steps[r, g] = half_value(bits[r]) * f32(scales[r, g])
        round_blocks(x, count, steps, np.zeros_like(steps), LOW, HIGH, feedback[part])
        for r in range(many):
            _store(x[r], bits[r], scales[r], out[at + r * across])
        n += many


@serial
def decode_blocks(raw, out, start, stop):
    """Decode raw [N, 210] to out [N, 256]."""
    for n in range(start, stop):
        _decode_block(raw[n], out[n])
