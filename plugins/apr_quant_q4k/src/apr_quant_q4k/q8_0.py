"""q8_0: 32 values in 34 bytes: d and 32 int8 codes, value = d * q (GGML)."""

from __future__ import annotations

import numpy as np
from numba import prange

from apr_quant_q4k.codec import BlockCodec
from apr_quant_q4k.compiling import nearest, serial, threaded
from apr_quant_q4k.half import half_bits, half_value, load_half, store_half

f32 = np.float32


@serial
def _encode_block(x, block):  # noqa: ANN001, ANN202
    top = f32(0)
    for i in range(32):
        top = max(top, abs(x[i]))
    bits = half_bits(top / f32(127))
    d = half_value(bits)  # codes are for the rounded step, which is the one that decodes
    inverse = f32(1.0) / d if d > 0 else f32(0)
    store_half(block, 0, bits)
    for i in range(32):
        q = min(max(nearest(x[i] * inverse), f32(-127)), f32(127))
        block[2 + i] = np.uint8(np.int32(q) & 255)


@threaded
def encode_rows(rows, out):  # noqa: ANN001, ANN201
    """rows [R, B, 32] -> out [R, B, 34]."""
    for r in prange(rows.shape[0]):
        for b in range(rows.shape[1]):
            _encode_block(rows[r, b], out[r, b])


@threaded
def decode_rows(raw, out):  # noqa: ANN001, ANN201
    """raw [R, B, 34] -> out [R, B, 32]."""
    for r in prange(raw.shape[0]):
        for b in range(raw.shape[1]):
            d = load_half(raw[r, b], 0)
            for i in range(32):
                out[r, b, i] = d * f32(np.int8(raw[r, b, 2 + i]))


class Q8_0(BlockCodec):
    """The codec of q8_0."""

    name, block, nbytes, largest = "q8_0", 32, 34, 8e6
    encode_rows, decode_rows = encode_rows, decode_rows
