"""Search for q4_k and q5_k: values are d * sc * q - dmin * mn, with sc and mn of 6 bits.

1. For each group of 32, a line through the values: candidates for the step around (max - min) /
   levels, each improved by least squares; the offset is never positive.
2. d and dmin from the largest step and offset, rounded to float16: two guesses.
3. With d and dmin fixed, every group tries the neighbours of its (sc, mn) and keeps the best codes;
   then d and dmin are fitted by least squares to those codes, and this repeats while it helps. The
   better of the two searches is kept.

The error is the sum of squares, weighed by `w` unless that is None. Every comparison uses the
rounded d and dmin. Only the first `count` values of a block are real: the others are padding, and
nothing reads them.
"""

from __future__ import annotations

import numpy as np

from apr_quant_q4k.loops.compiling import serial
from apr_quant_q4k.loops.feedback import round_blocks
from apr_quant_q4k.loops.half import half_bits, half_value, scale_bits
from apr_quant_q4k.search.lanes import nearest
from apr_quant_q4k.search.line_search import best_pair, fit_line
from apr_quant_q4k.search.sums import code_sums_32, extent

f32 = np.float32
GROUPS, WIDTH = 8, 32
ROUNDS = 2
# The largest scale and minimum in each of the two searches: different grids for all groups.
STARTS = ((f32(63), f32(60)), (f32(58), f32(63)))


@serial
def _fit_group(x, w, start, count, levels):
    """Return (step >= 0, offset >= 0) of one group."""
    low, span, y, yy = extent(x, w, start, count)
    if span <= 0:
        return f32(0), -low
    error, step, offset = fit_line(x, w, start, count, low, span, y, yy, levels)
    if error < f32(np.inf):
        return step, max(-offset, f32(0))
    return span / levels, -low


@serial
def _choose(x, w, count, d, dmin, levels, sc, mn):
    """Choose each group's best (sc, mn) among neighbours of the present ones; return the error."""
    total = f32(0)
    for g in range((count + WIDTH - 1) // WIDTH):
        inside = min(count - WIDTH * g, WIDTH)
        error, s, m = best_pair(x, w, WIDTH * g, inside, d, dmin, f32(sc[g]), f32(mn[g]), levels)
        sc[g], mn[g] = int(s), int(m)
        total += error
    return total


@serial
def _refit(x, w, count, d, dmin, levels, sc, mn):
    """Return least-squares d and dmin for the codes given by the present d, dmin, sc and mn."""
    aa, ab, bb, ax, bx = 0.0, 0.0, 0.0, 0.0, 0.0
    for g in range((count + WIDTH - 1) // WIDTH):
        inside = min(count - WIDTH * g, WIDTH)
        step, offset = d * f32(sc[g]), dmin * f32(mn[g])
        q, qq, qx, sx, size = code_sums_32(x, w, WIDTH * g, inside, step, offset, f32(0), levels)
        s, m = float(sc[g]), float(mn[g])
        aa += s * s * qq
        ab += s * m * q
        bb += m * m * size
        ax += s * qx
        bx += m * sx
    det = aa * bb - ab * ab
    if det > 1e-9 * aa * bb:
        return f32((ax * bb - ab * bx) / det), f32((ab * ax - aa * bx) / det)
    return (f32(ax / aa) if aa > 0 else d), dmin


@serial
def _take(trial_sc, trial_mn, sc, mn):
    """Copy scales and minimums. Numba compiles loops much faster than assignments to slices."""
    for g in range(GROUPS):
        sc[g], mn[g] = trial_sc[g], trial_mn[g]


@serial
def _refine(x, w, count, levels, d_bits, m_bits, sc, mn):
    """Return (error, bits of d, bits of dmin) after step 3; sc and mn change with them."""
    d, dmin = half_value(d_bits), half_value(m_bits)
    error = _choose(x, w, count, d, dmin, levels, sc, mn)
    trial_sc, trial_mn = sc.copy(), mn.copy()
    for _ in range(ROUNDS):
        new_d, new_m = _refit(x, w, count, d, dmin, levels, trial_sc, trial_mn)
        if not (new_d > 0 and new_m >= 0 and new_d < f32(65504) and new_m < f32(65504)):
            break
        trial_d, trial_m = half_bits(new_d), half_bits(new_m)
        d, dmin = half_value(trial_d), half_value(trial_m)
        trial = _choose(x, w, count, d, dmin, levels, trial_sc, trial_mn)
        if trial >= error:
            break
        error, d_bits, m_bits = trial, trial_d, trial_m
        _take(trial_sc, trial_mn, sc, mn)
    return error, d_bits, m_bits


@serial
def search(x, w, count, levels, sc, mn):
    """Fill sc, mn (int64 [8]) for `count` values; return the float16 bits of d and dmin."""
    steps, offsets = np.zeros(GROUPS, np.float32), np.zeros(GROUPS, np.float32)
    for g in range((count + WIDTH - 1) // WIDTH):
        inside = min(count - WIDTH * g, WIDTH)
        steps[g], offsets[g] = _fit_group(x, w, WIDTH * g, inside, levels)
    best, best_d, best_m = f32(np.inf), np.uint16(0), np.uint16(0)
    trial_sc, trial_mn = np.empty(GROUPS, np.int64), np.empty(GROUPS, np.int64)
    for top_sc, top_mn in STARTS:
        d_bits, m_bits = scale_bits(steps.max(), top_sc), scale_bits(offsets.max(), top_mn)
        d, dmin = half_value(d_bits), half_value(m_bits)
        for g in range(GROUPS):
            trial_sc[g] = min(63, int(steps[g] / d + f32(0.5))) if d > 0 else 0
            trial_mn[g] = min(63, int(offsets[g] / dmin + f32(0.5))) if dmin > 0 else 0
        error, d_bits, m_bits = _refine(x, w, count, levels, d_bits, m_bits, trial_sc, trial_mn)
        if error < best:
            best, best_d, best_m = error, d_bits, m_bits
            _take(trial_sc, trial_mn, sc, mn)
    return best_d, best_m


@serial
def search_in_turn(x, w, count, levels, feedback, sc, mn):
    """Fill sc, mn [N, 8] for blocks x [N, 256]; return the bits of d and dmin [N, 2].

    The values become what error feedback makes them.
    """
    bits = np.empty((len(x), 2), np.uint16)
    steps, offsets = np.empty(sc.shape, np.float32), np.empty(sc.shape, np.float32)
    for n in range(len(x)):
        bits[n, 0], bits[n, 1] = search(x[n], w, count, levels, sc[n], mn[n])
        d, dmin = half_value(bits[n, 0]), half_value(bits[n, 1])
        for g in range(GROUPS):
            steps[n, g], offsets[n, g] = d * f32(sc[n, g]), dmin * f32(mn[n, g])
    round_blocks(x, count, steps, offsets, f32(0), levels, feedback)
    return bits


@serial
def codes(x, d, dmin, levels, sc, mn, out):
    """Write the codes 0..levels of 256 values."""
    for g in range(GROUPS):
        step, offset = d * f32(sc[g]), dmin * f32(mn[g])
        inverse = f32(1.0) / step if step > 0 else f32(0)
        for i in range(WIDTH * g, WIDTH * (g + 1)):
            q = nearest((x[i] + offset) * inverse)
            out[i] = np.uint8(min(max(q, f32(0)), levels))


@serial
def pack_scales(sc, mn, block):
    """Pack eight 6-bit scales and eight 6-bit minimums into bytes 4..15."""
    for j in range(4):
        block[4 + j] = sc[j] | ((sc[j + 4] >> 4) << 6)
        block[8 + j] = mn[j] | ((mn[j + 4] >> 4) << 6)
        block[12 + j] = (sc[j + 4] & 15) | ((mn[j + 4] & 15) << 4)


@serial
def unpack_scales(block, sc, mn):
    """Unpack what `pack_scales` packed."""
    for j in range(4):
        sc[j] = block[4 + j] & 63
        mn[j] = block[8 + j] & 63
        sc[j + 4] = (block[12 + j] & 15) | ((block[4 + j] >> 6) << 4)
        mn[j + 4] = (block[12 + j] >> 4) | ((block[8 + j] >> 6) << 4)
