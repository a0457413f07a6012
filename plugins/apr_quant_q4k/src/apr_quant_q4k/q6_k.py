"""q6_k: 256 values in 210 bytes: 16 groups of 16, value = d * scale * (q - 32), int8 scales (GGML).

Encoding: each group tries steps around max / 32 of either sign (the code -32 has no partner 32),
improved by least squares; then, with d rounded to float16, each group tries neighbouring scales,
d is fitted again to the codes, and both repeat while the squared error falls.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from apr_quant_q4k.codec import BlockCodec
from apr_quant_q4k.compiling import nearest, serial, serial_sums, threaded
from apr_quant_q4k.half import half_bits, half_value, load_half, store_half

f32 = np.float32
GROUPS, WIDTH = 16, 16
LOW, HIGH = f32(-32), f32(31)
CANDIDATES = 19
ROUNDS = 3


@serial_sums
def _fit(x, inverse):  # noqa: ANN001, ANN202
    """Least-squares step for the codes of 1/step, and the error it leaves."""
    qq, qx, xx = f32(0), f32(0), f32(0)
    for i in range(WIDTH):
        q = min(max(nearest(x[i] * inverse), LOW), HIGH)
        qq += q * q
        qx += q * x[i]
        xx += x[i] * x[i]
    if qq <= 0:
        return f32(0), xx
    step = qx / qq
    return step, xx - step * qx


@serial
def _group_step(x):  # noqa: ANN001, ANN202
    top = f32(0)
    for i in range(WIDTH):
        if abs(x[i]) > abs(top):
            top = x[i]
    if top == 0:
        return f32(0)
    best_step, best = top / LOW, f32(np.inf)
    for c in range(CANDIDATES):
        size = f32(30.2) + f32(0.2) * f32(c)
        step, error = _fit(x, -size / top)
        if step != 0 and error < best:
            best_step, best = step, error
    return best_step


@serial_sums
def _error(x, step):  # noqa: ANN001, ANN202
    inverse = f32(1.0) / step if step != 0 else f32(0)
    total = f32(0)
    for i in range(WIDTH):
        q = min(max(nearest(x[i] * inverse), LOW), HIGH)
        miss = x[i] - step * q
        total += miss * miss
    return total


@serial
def _choose(x, d, scales):  # noqa: ANN001, ANN202
    """Each group's best scale among the neighbours of the present one; the total error."""
    total = f32(0)
    for g in range(GROUPS):
        group = x[WIDTH * g : WIDTH * (g + 1)]
        best, best_scale = f32(np.inf), scales[g]
        for s in range(max(scales[g] - 2, -128), min(scales[g] + 3, 128)):
            error = _error(group, d * f32(s))
            if error < best:
                best, best_scale = error, s
        scales[g] = best_scale
        total += best
    return total


@serial_sums
def _refit(x, d, scales):  # noqa: ANN001, ANN202
    aa, ax = 0.0, 0.0
    for g in range(GROUPS):
        step = d * f32(scales[g])
        inverse = f32(1.0) / step if step != 0 else f32(0)
        qq, qx = f32(0), f32(0)
        group = x[WIDTH * g : WIDTH * (g + 1)]
        for i in range(WIDTH):
            q = min(max(nearest(group[i] * inverse), LOW), HIGH)
            qq += q * q
            qx += q * group[i]
        aa += float(scales[g]) ** 2 * qq
        ax += float(scales[g]) * qx
    return f32(ax / aa) if aa > 0 else d


@serial
def _search(x, scales):  # noqa: ANN001, ANN202
    """Fill scales (int64 [16]); returns the float16 bits of d."""
    steps = np.empty(GROUPS, np.float32)
    top = f32(0)
    for g in range(GROUPS):
        steps[g] = _group_step(x[WIDTH * g : WIDTH * (g + 1)])
        if abs(steps[g]) > abs(top):
            top = steps[g]
    bits = half_bits(top / f32(-128))  # the largest scale becomes -128, which int8 has
    if bits & 0x3FF > 0 and bits & 0x7C00 == 0:
        bits = np.uint16(bits + 1)  # subnormal: rounded up, the scales can make it precise again
    d = half_value(bits)
    for g in range(GROUPS):
        ratio = steps[g] / d if d != 0 else f32(0)
        scales[g] = int(min(max(nearest(ratio), f32(-128)), f32(127)))
    error = _choose(x, d, scales)
    trial = scales.copy()
    for _ in range(ROUNDS):
        new = half_bits(_refit(x, d, trial))
        d = half_value(new)
        if not (d != 0 and abs(d) <= f32(65504)):
            break
        found = _choose(x, d, trial)
        if found >= error:
            break
        error, bits = found, new
        scales[:] = trial
    return bits


@serial
def _encode_block(x, block):  # noqa: ANN001, ANN202
    scales, q = np.zeros(GROUPS, np.int64), np.empty(256, np.uint8)
    bits = _search(x, scales)
    d = half_value(bits)
    for g in range(GROUPS):
        step = d * f32(scales[g])
        inverse = f32(1.0) / step if step != 0 else f32(0)
        for i in range(WIDTH * g, WIDTH * (g + 1)):
            code = min(max(nearest(x[i] * inverse), LOW), HIGH)
            q[i] = np.uint8(np.int32(code) + 32)
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
def _decode_block(block, x):  # noqa: ANN001, ANN202
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


@threaded
def encode_rows(rows, out):  # noqa: ANN001, ANN201
    """rows [R, B, 256] -> out [R, B, 210]."""
    for r in prange(rows.shape[0]):
        for b in range(rows.shape[1]):
            _encode_block(rows[r, b], out[r, b])


@threaded
def decode_rows(raw, out):  # noqa: ANN001, ANN201
    """raw [R, B, 210] -> out [R, B, 256]."""
    for r in prange(raw.shape[0]):
        for b in range(raw.shape[1]):
            _decode_block(raw[r, b], out[r, b])


class Q6K(BlockCodec):
    """The codec of q6_k."""

    name, block, nbytes, largest = "q6_k", 256, 210, 2e8
    encode_rows, decode_rows = encode_rows, decode_rows
