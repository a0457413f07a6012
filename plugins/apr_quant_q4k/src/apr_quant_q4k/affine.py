"""Search for q4_k and q5_k: values are d * sc * q - dmin * mn, with sc and mn of 6 bits.

1. For each group of 32, a line through the values: candidates for the step around (max - min) /
   levels, each improved by least squares; the offset is never positive.
2. d and dmin from the largest scale and offset, rounded to float16.
3. With d and dmin fixed, every group tries the neighbours of its (sc, mn) and keeps the best codes;
   then d and dmin are fitted by least squares to those codes, and step 3 repeats.
The error is the plain sum of squares. Every comparison uses the rounded d and dmin.
"""

from __future__ import annotations

import numpy as np

from apr_quant_q4k.compiling import nearest, serial, serial_sums
from apr_quant_q4k.half import half_bits, half_value

f32 = np.float32
GROUPS, WIDTH = 8, 32
CANDIDATES = 21
ROUNDS = 3


@serial_sums
def _line(x, low, inverse, levels):  # noqa: ANN001, ANN202
    """Least-squares (step, offset <= 0, error) for the codes that (low, 1/step) gives."""
    sq, sqq, sqx, sx, sxx = f32(0), f32(0), f32(0), f32(0), f32(0)
    for i in range(WIDTH):
        q = nearest((x[i] - low) * inverse)
        q = min(max(q, f32(0)), levels)
        sq += q
        sqq += q * q
        sqx += q * x[i]
        sx += x[i]
        sxx += x[i] * x[i]
    det = f32(WIDTH) * sqq - sq * sq
    if det <= 0:
        return f32(0), min(sx / f32(WIDTH), f32(0)), f32(np.inf)
    step = (f32(WIDTH) * sqx - sx * sq) / det
    offset = (sqq * sx - sq * sqx) / det
    if offset > 0:
        offset = f32(0)
        step = sqx / sqq
    return step, offset, sxx - step * sqx - offset * sx


@serial_sums
def _extremes(x):  # noqa: ANN001, ANN202
    low, high = x[0], x[0]
    for i in range(WIDTH):
        low = min(low, x[i])
        high = max(high, x[i])
    return low, high


@serial
def _fit_group(x, levels):  # noqa: ANN001, ANN202
    """(step >= 0, minus offset >= 0) of one group."""
    low, high = _extremes(x)
    low = min(low, f32(0))
    if high <= low:
        return f32(0), -low
    span = high - low
    best_step, best_offset = span / levels, low
    best = f32(np.inf)
    for c in range(CANDIDATES):
        delta = f32(-1.0) + f32(0.1) * f32(c)
        step, offset, error = _line(x, low, (levels + delta) / span, levels)
        if step > 0:
            step, offset, error = _line(x, offset, f32(1.0) / step, levels)
        if step > 0 and error < best:
            best_step, best_offset, best = step, offset, error
    return best_step, -best_offset


@serial_sums
def _group_error(x, step, offset, levels):  # noqa: ANN001, ANN202
    """Squared error of the best codes for value = step * q - offset."""
    inverse = f32(1.0) / step if step > 0 else f32(0)
    error = f32(0)
    for i in range(WIDTH):
        q = nearest((x[i] + offset) * inverse)
        q = min(max(q, f32(0)), levels)
        miss = x[i] - (step * q - offset)
        error += miss * miss
    return error


@serial
def _choose(x, d, dmin, levels, sc, mn):  # noqa: ANN001, ANN202
    """Each group's best (sc, mn) among the neighbours of the present ones; the total error."""
    total = f32(0)
    for g in range(GROUPS):
        group = x[WIDTH * g : WIDTH * (g + 1)]
        best, best_s, best_m = f32(np.inf), sc[g], mn[g]
        for s in range(max(sc[g] - 1, 0), min(sc[g] + 2, 64)):
            for m in range(max(mn[g] - 1, 0), min(mn[g] + 2, 64)):
                error = _group_error(group, d * f32(s), dmin * f32(m), levels)
                if error < best:
                    best, best_s, best_m = error, s, m
        sc[g], mn[g] = best_s, best_m
        total += best
    return total


@serial_sums
def _refit(x, d, dmin, levels, sc, mn):  # noqa: ANN001, ANN202
    """Least-squares d and dmin for the codes that the present ones give."""
    aa, ab, bb, ax, bx = 0.0, 0.0, 0.0, 0.0, 0.0
    for g in range(GROUPS):
        step, offset = d * f32(sc[g]), dmin * f32(mn[g])
        inverse = f32(1.0) / step if step > 0 else f32(0)
        sq, sqq, sqx, sx = f32(0), f32(0), f32(0), f32(0)
        group = x[WIDTH * g : WIDTH * (g + 1)]
        for i in range(WIDTH):
            q = nearest((group[i] + offset) * inverse)
            q = min(max(q, f32(0)), levels)
            sq += q
            sqq += q * q
            sqx += q * group[i]
            sx += group[i]
        s, m = float(sc[g]), float(mn[g])
        aa += s * s * sqq
        ab += s * m * sq
        bb += m * m * WIDTH
        ax += s * sqx
        bx += m * sx
    det = aa * bb - ab * ab
    if det > 1e-9 * aa * bb:
        return f32((ax * bb - ab * bx) / det), f32((ab * ax - aa * bx) / det)
    return (f32(ax / aa) if aa > 0 else d), dmin


@serial
def search(x, levels, sc, mn):  # noqa: ANN001, ANN201
    """Fill sc, mn (int64 [8]) for 256 values; returns the float16 bits of d and dmin."""
    steps, offsets = np.empty(GROUPS, np.float32), np.empty(GROUPS, np.float32)
    for g in range(GROUPS):
        steps[g], offsets[g] = _fit_group(x[WIDTH * g : WIDTH * (g + 1)], levels)
    d_bits, m_bits = half_bits(steps.max() / f32(63)), half_bits(offsets.max() / f32(63))
    d, dmin = half_value(d_bits), half_value(m_bits)
    for g in range(GROUPS):
        sc[g] = min(63, int(steps[g] / d + f32(0.5))) if d > 0 else 0
        mn[g] = min(63, int(offsets[g] / dmin + f32(0.5))) if dmin > 0 else 0
    error = _choose(x, d, dmin, levels, sc, mn)
    trial_sc, trial_mn = sc.copy(), mn.copy()
    for _ in range(ROUNDS):
        new_d, new_m = _refit(x, d, dmin, levels, trial_sc, trial_mn)
        if not (new_d > 0 and new_m >= 0 and new_d < f32(65504) and new_m < f32(65504)):
            break
        trial_d, trial_m = half_bits(new_d), half_bits(new_m)
        d, dmin = half_value(trial_d), half_value(trial_m)
        trial = _choose(x, d, dmin, levels, trial_sc, trial_mn)
        if trial >= error:
            break
        error, d_bits, m_bits = trial, trial_d, trial_m
        sc[:], mn[:] = trial_sc, trial_mn
    return d_bits, m_bits


@serial
def codes(x, d, dmin, levels, sc, mn, out):  # noqa: ANN001, ANN201
    """The codes 0..levels of 256 values."""
    for g in range(GROUPS):
        step, offset = d * f32(sc[g]), dmin * f32(mn[g])
        inverse = f32(1.0) / step if step > 0 else f32(0)
        for i in range(WIDTH * g, WIDTH * (g + 1)):
            q = nearest((x[i] + offset) * inverse)
            out[i] = np.uint8(min(max(q, f32(0)), levels))


@serial
def pack_scales(sc, mn, block):  # noqa: ANN001, ANN201
    """Eight 6-bit scales and eight 6-bit minimums into bytes 4..15."""
    for j in range(4):
        block[4 + j] = sc[j] | ((sc[j + 4] >> 4) << 6)
        block[8 + j] = mn[j] | ((mn[j + 4] >> 4) << 6)
        block[12 + j] = (sc[j + 4] & 15) | ((mn[j + 4] & 15) << 4)


@serial
def unpack_scales(block, sc, mn):  # noqa: ANN001, ANN201
    """The opposite of `pack_scales`."""
    for j in range(4):
        sc[j] = block[4 + j] & 63
        mn[j] = block[8 + j] & 63
        sc[j + 4] = (block[12 + j] & 15) | ((block[4 + j] >> 6) << 4)
        mn[j + 4] = (block[12 + j] >> 4) | ((block[8 + j] >> 6) << 4)
