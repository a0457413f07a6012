"""Statistics of a tensor from its pieces, in float64, in one pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

SLICE = 1 << 16  # values turned to float64 at once, so that they stay in the cache


def sum_squares(values: NDArray[np.float32], shift: float = 0.0) -> float:
    """Sum of (value - shift) squared, in float64."""
    flat, total = values.reshape(-1), 0.0
    for start in range(0, flat.size, SLICE):
        part = flat[start : start + SLICE].astype(np.float64)
        part -= shift
        part *= part  # not a BLAS dot, whose threads wait for each other on slices this small
        total += float(part.sum())
    return total


@dataclass(slots=True)
class TensorStats:
    """Counts over all values; mean, spread and range over the finite ones.

    `zero_rows` counts rows (of the first dimension) that hold nothing but zeros.
    """

    count: int = 0
    nan: int = 0
    inf: int = 0
    zeros: int = 0
    rows: int = 0
    zero_rows: int = 0
    mean: float = 0.0
    minimum: float = float("inf")
    maximum: float = float("-inf")
    _squares: float = 0.0  # sum of squared distances from the mean

    @property
    def finite(self) -> int:
        """How many values are neither NaN nor infinite."""
        return self.count - self.nan - self.inf

    @property
    def std(self) -> float:
        """Standard deviation of the finite values."""
        return sqrt(self._squares / self.finite) if self.finite else 0.0

    @property
    def constant(self) -> bool:
        """Whether all finite values are the same."""
        return self.finite > 0 and self.minimum == self.maximum

    def add(self, piece: NDArray[np.float32]) -> None:
        """Take in a float32 [rows, cols] piece."""
        self.rows += piece.shape[0]
        self.count += piece.size
        finite = piece
        if not np.isfinite(piece).all():
            self.nan += int(np.isnan(piece).sum())
            self.inf += int(np.isinf(piece).sum())
            finite = piece[np.isfinite(piece)]
        nonzero = int(np.count_nonzero(piece))
        self.zeros += piece.size - nonzero
        if nonzero < piece.size:
            self.zero_rows += int((~piece.any(axis=1)).sum())
        if finite.size:
            self._merge(finite)

    def _merge(self, values: NDArray[np.float32]) -> None:
        """Combine means and squares of two sets (Chan, Golub, LeVeque 1983)."""
        after = self.finite
        before = after - values.size
        mean = float(values.mean(dtype=np.float64))
        squares = sum_squares(values, mean)
        delta = mean - self.mean
        self._squares += squares + delta * delta * before * values.size / after
        self.mean += delta * values.size / after
        self.minimum = min(self.minimum, float(values.min()))
        self.maximum = max(self.maximum, float(values.max()))

    def as_dict(self) -> dict[str, float | int | None]:
        """For JSON; what an empty tensor does not have is null."""
        some = self.finite > 0
        return {
            "mean": self.mean if some else None,
            "std": self.std if some else None,
            "min": self.minimum if some else None,
            "max": self.maximum if some else None,
            "nan": self.nan,
            "inf": self.inf,
            "zeros_share": self.zeros / self.count if self.count else None,
        }


def tensor_stats(pieces: Iterable[NDArray[np.float32]]) -> TensorStats:
    """The statistics of a tensor given in float32 [rows, cols] pieces."""
    stats = TensorStats()
    for piece in pieces:
        stats.add(piece)
    return stats
