"""q8_0: 32 values in 34 bytes: d and 32 int8 codes, value = d * q (GGML)."""

from __future__ import annotations

import numpy as np

from apr_quant_q4k.loops.compiling import serial
from apr_quant_q4k.loops.half import half_bits, half_value, load_half, store_half
from apr_quant_q4k.search.lanes import nearest

f32 = np.float32
BLOCK = 32


@serial
def _step_bits(top):
    """Return bits of the float16 step, rounded up if subnormal and the largest value would clip."""
    bits = half_bits(top / f32(127))
    d = half_value(bits)
    if bits < np.uint16(0x400) and top - f32(127) * d > f32(0.5) * d:
        return np.uint16(bits + 1)
    return np.uint16(bits)


@serial
def _encode_block(x, block):
    top = f32(0)
    for i in range(BLOCK):
        top = max(top, abs(x[i]))
    bits = _step_bits(top)
    d = half_value(bits)  # codes are for the rounded step, which decoding uses
    inverse = f32(1.0) / d if d > 0 else f32(0)
    store_half(block, 0, bits)
    for i in range(BLOCK):
        q = min(max(nearest(x[i] * inverse), f32(-127)), f32(127))
        block[2 + i] = np.uint8(np.int32(q) & 255)


@serial
def encode_blocks(values, out, start, stop, across, last):
    """Encode values [N, 32] to out [N, 34]; zeros after a row's `last` values do no harm."""
    for n in range(start, stop):
        _encode_block(values[n], out[n])


@serial
def decode_blocks(raw, out, start, stop):
    """Decode raw [N, 34] to out [N, 32]."""
    for n in range(start, stop):
        d = load_half(raw[n], 0)
        for i in range(BLOCK):
            out[n, i] = d * f32(np.int8(raw[n, 2 + i]))
