"""What the bytes mean, in NumPy: decoders that the compiled ones must equal bit for bit.

Each takes u8 [N, bytes per block] and gives f32 [N, block]. Every product and difference is rounded
to float32 in the order written here, which is the order of GGML and of the `gguf` package.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apr_quant_q4k.hooks import IQ4_NL

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def _half(raw: Bytes) -> Floats:
    """Convert float16 bytes u8 [N, 2] to f32 [N, 1]."""
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def _scales_and_minimums(packed: Bytes) -> tuple[Floats, Floats]:
    """Unpack u8 [N, 12] to two f32 [N, 8] of 6-bit numbers."""
    low, middle, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=1)
    minimums = np.concatenate([middle & 63, (high >> 4) | ((middle >> 6) << 4)], axis=1)
    return scales.astype(np.float32), minimums.astype(np.float32)


def _affine(raw: Bytes, codes: Bytes) -> Floats:
    """Return d * scale * code - dmin * minimum, codes u8 [N, 8, 32]."""
    scales, minimums = _scales_and_minimums(raw[:, 4:16])
    steps, offsets = _half(raw[:, :2]) * scales, _half(raw[:, 2:4]) * minimums
    values = steps[:, :, None] * codes.astype(np.float32) - offsets[:, :, None]
    return values.reshape(len(raw), 256)


def _nibbles(packed: Bytes) -> Bytes:
    """Unpack u8 [N, 128] to u8 [N, 8, 32]: low, then high nibbles of each 32 bytes."""
    pairs = packed.reshape(len(packed), 4, 1, 32) >> np.array([0, 4], np.uint8)[:, None]
    return (pairs & np.uint8(15)).reshape(len(packed), 8, 32)


def q4_k(raw: Bytes) -> Floats:
    """Decode 144 bytes: d, dmin, 12 of scales and minimums, 128 of nibbles."""
    return _affine(raw, _nibbles(raw[:, 16:]))


def q5_k(raw: Bytes) -> Floats:
    """Decode 176 bytes: q4_k with 32 bytes between; bit g is the fifth bit of group g's codes."""
    fifth = (raw[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & np.uint8(1)
    return _affine(raw, _nibbles(raw[:, 48:]) | (fifth << np.uint8(4)))


def q6_k(raw: Bytes) -> Floats:
    """Decode 210 bytes: 128 of low nibbles, 64 of high bit pairs, 16 int8 scales, d.

    Nibbles and pairs are in halves of 128 values.
    """
    count = len(raw)
    low = raw[:, :128].reshape(count, 2, 1, 64) >> np.array([0, 4], np.uint8)[:, None]
    high = raw[:, 128:192].reshape(count, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None]
    codes = (low & 15).reshape(count, 2, 4, 32) | ((high & 3) << 4)
    scales = np.ascontiguousarray(raw[:, 192:208]).view(np.int8).astype(np.float32)
    steps = _half(raw[:, 208:]) * scales
    centred = codes.reshape(count, 16, 16).astype(np.float32) - np.float32(32)
    return (steps[:, :, None] * centred).reshape(count, 256)


def q8_0(raw: Bytes) -> Floats:
    """Decode 34 bytes: d, 32 int8 codes."""
    return _half(raw[:, :2]) * raw[:, 2:].view(np.int8).astype(np.float32)


LEVELS = np.array(IQ4_NL, np.float32)


def _halves(packed: Bytes) -> Bytes:
    """Unpack u8 [N, 16] to u8 [N, 32]: all low nibbles, then all high ones."""
    return np.concatenate([packed & np.uint8(15), packed >> np.uint8(4)], axis=1)


def _fifth(raw: Bytes) -> Bytes:
    """Unpack u8 [N, 4] to u8 [N, 32]: bit i of the word, as 0 or 16."""
    return np.unpackbits(raw, axis=1, bitorder="little") << np.uint8(4)


def q4_0(raw: Bytes) -> Floats:
    """Decode 18 bytes: d, 16 of nibbles; values d * (q - 8)."""
    return _half(raw[:, :2]) * (_halves(raw[:, 2:]).astype(np.float32) - np.float32(8))


def q4_1(raw: Bytes) -> Floats:
    """Decode 20 bytes: d, m, 16 of nibbles; values d * q + m."""
    return _half(raw[:, :2]) * _halves(raw[:, 4:]).astype(np.float32) + _half(raw[:, 2:4])


def q5_0(raw: Bytes) -> Floats:
    """Decode 22 bytes: d, 4 of fifth bits, 16 of nibbles; values d * (q - 16)."""
    codes = _halves(raw[:, 6:]) | _fifth(raw[:, 2:6])
    return _half(raw[:, :2]) * (codes.astype(np.float32) - np.float32(16))


def q5_1(raw: Bytes) -> Floats:
    """Decode 24 bytes: d, m, 4 of fifth bits, 16 of nibbles; values d * q + m."""
    codes = _halves(raw[:, 8:]) | _fifth(raw[:, 4:8])
    return _half(raw[:, :2]) * codes.astype(np.float32) + _half(raw[:, 2:4])


def iq4_nl(raw: Bytes) -> Floats:
    """Decode 18 bytes: d, 16 of nibbles; values d * LEVELS[q]."""
    return _half(raw[:, :2]) * LEVELS[_halves(raw[:, 2:])]
