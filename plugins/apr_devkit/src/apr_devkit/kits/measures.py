"""How far arrays are apart; and for codecs, values to encode and a yardstick of their errors.

The yardstick is the plainest codec in as many bytes. Of `bits` a value, ceil(bits) - 1 are a code,
rounded to nearest; the rest is a 16-bit scale for each group, its largest magnitude over the
largest code. (4.5 bits are codes of 4 bits and a scale for 32 values, 8.5 bits the same with codes
of 8: the simplest formats in use.) A format may have `MARGIN` times that error, on a distribution
or on the bell-shaped one, for which formats choose their levels, but none more than zeros. Rounding
that is wrong by half a step doubles the error; a wrong scale and swapped nibbles do worse.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Raw = NDArray[np.uint8]

ENOUGH = 256  # values; a gain needs as many
GAIN = 6e-3  # how much a gain may differ from 1: a codebook's levels may be rounded to 8 bits
FEW, LENIENCE = 16, 10  # values that may all happen to be small, so that errors look large


def nmse(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the normalised mean square error, mean((a - e)^2) / mean(e^2), or inf if not finite.

    Where `expected` is all zeros it is mean(a^2).
    """
    if expected.size == 0:
        return 0.0
    wanted, given = expected.astype(np.float64), actual.astype(np.float64)
    if not np.isfinite(given).all():
        return float("inf")
    return float(np.mean((given - wanted) ** 2) / (np.mean(wanted**2) or 1.0))


def gain(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the factor of `expected` in `actual`, by least squares: 1 if errors are mere rounding.

    A systematic error of a percent shows here where 8-bit rounding would hide it from `nmse`.
    """
    wanted, given = expected.astype(np.float64), actual.astype(np.float64)
    power = float(np.sum(wanted * wanted))
    return float(np.sum(given * wanted)) / power if power else 1.0


def difference(
    actual: NDArray[Any], expected: NDArray[Any], tolerance: float, off: float = GAIN
) -> str:
    """Return how an array differs from the expected one, or an empty string.

    `tolerance` limits its NMSE, `off` how much its gain may differ from 1.
    """
    if actual.shape != expected.shape:
        return f"has shape {list(actual.shape)}, expected {list(expected.shape)}"
    if actual.dtype != expected.dtype:
        return f"is {actual.dtype}, expected {expected.dtype}"
    if not np.isfinite(actual).all():
        return f"has {int((~np.isfinite(actual)).sum())} of {actual.size} values NaN or infinite"
    error = nmse(actual, expected)
    if error > tolerance * (LENIENCE if expected.size < FEW else 1):
        return f"has an NMSE of {error:.1e}, at most {tolerance:.1e} is allowed"
    factor = gain(actual, expected)
    if expected.size >= ENOUGH and abs(factor - 1) > off:
        return f"is {factor:.4f} times the expected values, beside rounding"
    return ""


def distance(actual: Floats, expected: Floats) -> float:
    """Return max |actual - expected| over the standard deviation of expected; inf if not finite."""
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return float("inf")
    return float(np.abs(actual - expected).max() / (expected.std() or 1.0))


# values to encode, and the yardstick

KINDS: dict[str, Callable[[Generator, Any], Any]] = {  # of values, made of bell-shaped ones
    "gaussian": lambda rng, bell: bell,
    "laplace": lambda rng, bell: rng.laplace(size=bell.shape),
    "outliers": lambda rng, bell: np.where(rng.random(bell.shape) < 0.002, 20 * bell, bell),
    "uniform": lambda rng, bell: rng.uniform(-1, 1, bell.shape),
    "sparse": lambda rng, bell: bell * (rng.random(bell.shape) < 0.1),
}
BELL = "gaussian"
MARGIN = 1.5
VALUES = 1 << 16  # of a sample
SCALE_BITS, LEAST_GROUP = 16, 8


def sample(kind: str, rows: int, cols: int, seed: int = 0, scale: float = 0.02) -> Floats:
    """Return seeded values of one of KINDS, as large as weights by default: f32 [rows, cols]."""
    rng = np.random.default_rng([[*KINDS].index(kind), seed])
    values: Floats = (scale * KINDS[kind](rng, rng.standard_normal((rows, cols)))).astype("f4")
    return values


def block_sample(kind: str, block: int, scale: float = 0.02) -> Floats:
    """Return a sample of about VALUES values, in rows of whole blocks: float32 [R, C]."""
    cols = block * ceil(1024 / block)
    return sample(kind, max(2, VALUES // cols), cols, scale=scale)


def relative_rmse(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return sqrt(sum of squared errors / sum of squared values)."""
    return float(nmse(actual, expected) ** 0.5)


def plain_codec(bits: float, block: int) -> tuple[int, int]:
    """Return the yardstick's code bits and group, for `bits` a value in blocks of `block`."""
    code = max(2, ceil(bits) - 1)
    group = round(SCALE_BITS / (bits - code)) if bits > code else block
    return code, min(max(group, LEAST_GROUP), max(block, LEAST_GROUP))


def plain_error(x: Floats, bits: float, block: int) -> float:
    """Return the relative RMSE of the yardstick on float32 [R, C], incomplete groups left out."""
    code, group = plain_codec(bits, block)
    whole = x[:, : x.shape[1] // group * group].astype(np.float64)
    values = whole.reshape(-1, group)  # [groups, group]
    step = np.abs(values).max(axis=1, keepdims=True) / (2 ** (code - 1) - 1)
    codes = np.rint(values / np.where(step == 0, 1, step))
    return relative_rmse(codes * step, values)


def default_bounds(block: int, nbytes: float) -> dict[str, float]:
    """Return the largest relative RMSE by kind of sample, for `block` values in `nbytes` bytes."""
    bits = 8 * nbytes / block
    errors = {kind: plain_error(block_sample(kind, block), bits, block) for kind in KINDS}
    return {kind: min(1.0, MARGIN * max(e, errors[BELL])) for kind, e in errors.items()}
