"""exp and sigmoid in float32 that LLVM can vectorize: libm's would be one call a value."""

from __future__ import annotations

import numpy as np

from apr_backend_cpu.compiling import serial

LOG2E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(0.693359375)  # ln 2 = high - low, the high part exact in few bits
LN2_LOW = np.float32(-2.12194440e-4)
LOWEST, HIGHEST = np.float32(-87.33654), np.float32(88.3762626647949)
ROUND = np.float32(12582912.0)
C = tuple(
    np.float32(c)
    for c in (
        1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3,
        4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1,
    )
)  # fmt: skip
C0, C1, C2, C3, C4, C5 = C


@serial
def exp32(x):  # noqa: ANN001, ANN201
    """exp(x) to 2 ulp (Cephes expf); 0 below -87.34, NaN for NaN."""
    clamped = min(max(x, LOWEST), HIGHEST)
    n = (clamped * LOG2E + ROUND) - ROUND
    r = clamped - n * LN2_HIGH - n * LN2_LOW
    p = C0
    p = p * r + C1
    p = p * r + C2
    p = p * r + C3
    p = p * r + C4
    p = p * r + C5
    value = p * r * r + r + np.float32(1.0)
    scale = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    value = value * scale
    value = value if x >= LOWEST else np.float32(0.0)
    return value if x == x else x


@serial
def sigmoid32(x):  # noqa: ANN001, ANN201
    """1 / (1 + exp(-x))."""
    e = exp32(-abs(x))
    positive = np.float32(1.0) / (np.float32(1.0) + e)
    return positive if x >= 0 else e * positive if x == x else x
