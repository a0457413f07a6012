"""Values to quantize, and how large an error a format of so many bytes may have.

The yardstick is the plainest codec that fits into the same bytes: of `bits` a value, it spends
ceil(bits) - 1 on a code, and what is left pays for a 16-bit scale for every so many values. The
scale is a group's largest magnitude over the largest code; codes are rounded to nearest. (4.5 bits
are codes of 4 bits and a scale for 32 values, 8.5 bits the same with codes of 8: the simplest
formats in use.) A format may be `MARGIN` times as wrong as that, on a distribution or on the
bell-shaped one, for which formats choose their levels. Half a step of wrong rounding doubles the
error, and a scale that is wrong by a step or nibbles that are swapped do worse: all are caught.
Never may it be worse than to write zeros. A format that spends its bits otherwise, such as floats
of 8 bits, states its own `max_error`.
"""

from __future__ import annotations

import hashlib
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

KINDS = ("gaussian", "laplace", "outliers", "uniform", "sparse")
BELL = KINDS[0]
MARGIN = 1.5
VALUES = 1 << 16  # of a sample
SCALE_BITS = 16
LEAST_GROUP = 8
GOLDEN_ROWS, GOLDEN_BLOCKS = 4, 3


def sample(kind: str, rows: int, cols: int, seed: int = 0) -> NDArray[np.float32]:
    """Seeded values of one of KINDS at the scale of weights: float32 [rows, cols]."""
    rng = np.random.default_rng([KINDS.index(kind), seed])
    shape = (rows, cols)
    x = rng.standard_normal(shape)
    if kind == "laplace":
        x = rng.laplace(size=shape)
    elif kind == "outliers":
        x = np.where(rng.random(shape) < 0.002, 20 * x, x)
    elif kind == "uniform":
        x = rng.uniform(-1, 1, shape)
    elif kind == "sparse":
        x = x * (rng.random(shape) < 0.1)
    return (0.02 * x).astype(np.float32)


def block_sample(kind: str, block: int) -> NDArray[np.float32]:
    """A sample of about VALUES values, in rows of whole blocks: float32 [R, C]."""
    cols = block * ceil(1024 / block)
    return sample(kind, max(2, VALUES // cols), cols)


def relative_rmse(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """sqrt(sum of squared errors / sum of squared values); of zeros, 0 if there is no error."""
    wanted = np.asarray(expected, np.float64)
    squares = float(np.square(wanted).sum())
    errors = float(np.square(np.asarray(actual, np.float64) - wanted).sum())
    return float(np.sqrt(errors / squares)) if squares else float(errors > 0)


def plain_codec(bits: float, block: int) -> tuple[int, int]:
    """The yardstick's code bits and group, for a format of `bits` a value in blocks of `block`."""
    code = max(2, ceil(bits) - 1)
    group = round(SCALE_BITS / (bits - code)) if bits > code else block
    return code, min(max(group, LEAST_GROUP), max(block, LEAST_GROUP))


def plain_error(x: NDArray[np.float32], bits: float, block: int) -> float:
    """Relative RMSE of the yardstick on float32 [R, C]; the end of a row that fills no group is
    left out."""
    code, group = plain_codec(bits, block)
    whole = x[:, : x.shape[1] // group * group].astype(np.float64)
    values = whole.reshape(-1, group)  # [groups, group]
    step = np.abs(values).max(axis=1, keepdims=True) / (2 ** (code - 1) - 1)
    codes = np.rint(values / np.where(step == 0, 1, step))
    return relative_rmse(codes * step, values)


def default_bounds(block: int, nbytes: float) -> dict[str, float]:
    """The largest relative RMSE allowed on each of KINDS, for `block` values in `nbytes` bytes."""
    bits = 8 * nbytes / block
    errors = {kind: plain_error(block_sample(kind, block), bits, block) for kind in KINDS}
    return {kind: min(1.0, MARGIN * max(e, errors[BELL])) for kind, e in errors.items()}


def golden_input(block: int, seed: int = 0) -> NDArray[np.float32]:
    """Values made by integer sums alone, so the same bits everywhere: float32 [4, 3 * block]."""
    rows, cols = GOLDEN_ROWS, GOLDEN_BLOCKS * block
    raw = np.random.PCG64(seed).random_raw(rows * cols)
    parts = [((raw >> np.uint64(16 * k)) & np.uint64(0xFFFF)).astype(np.int64) for k in range(4)]
    bells = (sum(parts) - 2 * 0xFFFF).reshape(rows, cols)  # type: ignore[union-attr]
    bells[:, ::61] *= 9
    values: NDArray[np.float32] = bells.astype(np.float32) / np.float32(1 << 21)
    return values


def golden_digest(codec: Any, block: int, seed: int = 0) -> str:
    """SHA-256 of the bytes a codec makes of `golden_input`, in hexadecimal."""
    return digest(codec.encode(golden_input(block, seed)))


def digest(raw: NDArray[np.uint8]) -> str:
    """SHA-256 of an array's bytes, in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(raw).tobytes()).hexdigest()
