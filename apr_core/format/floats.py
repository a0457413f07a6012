"""Native numbers to and from float32, exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from apr_core.errors import QuantizationError

DTYPES = {
    "f32": "<f4", "f16": "<f2", "f64": "<f8", "i32": "<i4", "i64": "<i8", "i8": "i1", "u8": "u1",
}  # fmt: skip
F16_MAX = 65504.0


def to_float32(raw: NDArray[np.uint8], dtype: str, shape: Sequence[int]) -> NDArray[np.float32]:
    """Bytes of a native dtype as float32 of the given shape. f32 is a view, not a copy."""
    if dtype == "bf16":
        wide = raw.view("<u2").astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)
    values = raw.view(DTYPES[dtype])
    return values.astype(np.float32, copy=False).reshape(shape)


def from_float32(values: NDArray[np.float32], dtype: str) -> NDArray[np.uint8]:
    """Float32 to the bytes of f32, f16 or bf16, rounded to nearest even.

    Raises QuantizationError where a finite value is beyond f16.
    """
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    if dtype == "bf16":
        return _bf16(flat)
    if dtype == "f16" and flat.size:
        top = float(np.abs(flat, out=np.empty_like(flat)).max())
        if np.isfinite(top) and top >= F16_MAX + 16:  # from here on it rounds to infinity
            raise QuantizationError(
                f"value {top:g} is beyond f16, whose largest is {F16_MAX:g}",
                "Use bf16 or f32 for this checkpoint.",
            )
    return flat.astype(DTYPES[dtype]).view(np.uint8)


def _bf16(flat: NDArray[np.float32]) -> NDArray[np.uint8]:
    bits = flat.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    quiet = (bits >> 16) | np.uint32(0x40)  # a NaN must not round to infinity
    return np.where(np.isnan(flat), quiet, rounded).astype("<u2").view(np.uint8)
