"""float16 by its bits, rounded to nearest even; Numba has no float16 on the CPU."""

from __future__ import annotations

import numpy as np

from apr_quant_q4k.loops.compiling import serial


@serial
def half_bits(x):
    """Return the bits of the float16 nearest to a finite float32."""
    bits = np.float32(x).view(np.uint32)
    sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    if magnitude >= np.uint32(0x477FF000):  # rounds beyond 65504
        return np.uint16(sign | np.uint32(0x7C00))
    if magnitude < np.uint32(0x38800000):  # subnormal: adding 0.5 rounds at 2^-24
        value = np.float32(np.uint32(magnitude).view(np.float32) + np.float32(0.5))
        return np.uint16(sign | (np.float32(value).view(np.uint32) - np.uint32(0x3F000000)))
    odd = (magnitude >> np.uint32(13)) & np.uint32(1)
    rounded = np.uint32(magnitude + np.uint32(0xC8000FFF) + odd)
    return np.uint16(sign | (rounded >> np.uint32(13)))


@serial
def half_value(bits):
    """Return the float32 value of float16 bits."""
    sign = np.uint32(bits & np.uint16(0x8000)) << np.uint32(16)
    exponent = (np.uint32(bits) >> np.uint32(10)) & np.uint32(31)
    fraction = np.uint32(bits) & np.uint32(1023)
    if exponent == np.uint32(31):
        return np.uint32(sign | np.uint32(0x7F800000) | (fraction << np.uint32(13))).view(
            np.float32
        )
    if exponent == np.uint32(0):
        small = np.float32(fraction) * np.float32(5.9604644775390625e-08)
        return -small if sign else small
    return np.uint32(
        sign | ((exponent + np.uint32(112)) << np.uint32(23)) | (fraction << np.uint32(13))
    ).view(np.float32)


@serial
def scale_bits(largest, top):
    """Return the bits of the float16 nearest to largest / top, at most 65504.

    A subnormal that came out too small is rounded up: otherwise the largest scale would be clipped,
    while integer scales can make up for a step that is too coarse. Only 0 gives 0.
    """
    bits = min(half_bits(largest / top), np.uint16(0x7BFF))
    if bits < np.uint16(0x400) and half_value(bits) * top < largest:
        return np.uint16(bits + 1)
    return np.uint16(bits)


@serial
def store_half(block, at, bits):
    """Store two bytes, low one first."""
    block[at] = bits & np.uint16(255)
    block[at + 1] = bits >> np.uint16(8)


@serial
def load_half(block, at):
    """Load the float16 at a byte offset, as float32."""
    return half_value(np.uint16(np.uint16(block[at]) | (np.uint16(block[at + 1]) << np.uint16(8))))
