"""Native numbers to and from float32, and the two legacy encodings of APR v2 to float32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from apr_core.errors import QuantizationError

DTYPES = {
    "f32": "<f4", "f16": "<f2", "f64": "<f8", "i32": "<i4", "i64": "<i8", "i8": "i1", "u8": "u1",
}  # fmt: skip
FLOATS = ("f32", "f16", "bf16", "f64")


def to_float32(raw: NDArray[np.uint8], dtype: str, shape: Sequence[int]) -> NDArray[np.float32]:
    """Bytes of a native dtype as float32 of the given shape. f32 is a view, not a copy.

    f64, i32 and i64 round to nearest even; f64 beyond float32 becomes infinite.
    """
    if dtype == "bf16":
        wide = raw.view("<u2").astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)
    values = raw.view(DTYPES[dtype])
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32, copy=False).reshape(shape)


def from_float32(values: NDArray[np.float32], dtype: str) -> NDArray[np.uint8]:
    """Float32 to the bytes of f32, f16, bf16 or f64, rounded to nearest even.

    NaN and Inf are kept. Raises QuantizationError where a finite value would become infinite,
    and for integer dtypes, which hold no float exactly.
    """
    if dtype not in FLOATS:
        raise QuantizationError(f"{dtype} cannot hold float values; expected {', '.join(FLOATS)}")
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    with np.errstate(over="ignore"):
        raw = _bf16(flat) if dtype == "bf16" else flat.astype(DTYPES[dtype]).view(np.uint8)
    if dtype in ("f16", "bf16"):
        _check_overflow(flat, raw, dtype)
    return raw


def _bf16(flat: NDArray[np.float32]) -> NDArray[np.uint8]:
    bits = flat.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    nan = np.isnan(flat)
    if nan.any():  # a NaN must not round to infinity
        rounded = np.where(nan, (bits >> 16) | np.uint32(0x40), rounded)
    return rounded.astype("<u2").view(np.uint8)


def _check_overflow(flat: NDArray[np.float32], raw: NDArray[np.uint8], dtype: str) -> None:
    exponent = 0x7C00 if dtype == "f16" else 0x7F80  # Inf without its sign bit
    lost = ((raw.view("<u2") & 0x7FFF) == exponent) & np.isfinite(flat)
    if lost.any():
        raise QuantizationError(
            f"value {float(flat[lost][0]):g} is beyond {dtype}",
            "Use f32 for this checkpoint." if dtype == "bf16" else "Use bf16 or f32 instead.",
        )


def legacy_to_float32(
    raw: NDArray[np.uint8], format: str, start: int, stop: int
) -> NDArray[np.float32]:
    """Elements [start, stop) of a tensor in the legacy formats of APR v2 (facts in the docs).

    apr_q8: one f32 scale, then int8 values. apr_q4: per 32 values an f16 scale and 16 bytes, value
    2j in the low nibble of byte j, 2j + 1 in the high one; value = (nibble - 8) * scale.
    """
    if format == "apr_q8":
        scale = raw[:4].view("<f4")[0]
        return raw[4 + start : 4 + stop].view(np.int8).astype(np.float32) * np.float32(scale)
    first, last = start // 32, -(-stop // 32)
    blocks = raw[first * 18 : last * 18].reshape(-1, 18)
    scales = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    # Other readers take a NaN, infinite or subnormal scale as zero; agree with them.
    scales = np.where(np.isfinite(scales) & (np.abs(scales) >= 2.0**-14), scales, 0)
    nibbles = np.stack([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=-1).reshape(-1, 32)
    values: NDArray[np.float32] = ((nibbles.astype(np.float32) - 8) * scales).reshape(-1)
    return values[start - first * 32 : stop - first * 32]
