"""Values of a file's tensors, piece by piece: statistics, and whether they look like weights.

The bounds are wide on purpose: a freshly initialised model must pass, and so must any trained one;
what fails is a tensor that was lost, overwritten, scaled or stored in the wrong place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod, sqrt
from statistics import median

import numpy as np
from numpy.typing import NDArray

from apr_core.errors import AprError
from apr_core.family.contract import Contract, TensorRule
from apr_core.format import NATIVE, AprFile, TensorEntry, check_declared, decode_rows, quantizer_for
from apr_core.format.dtypes import LEGACY
from apr_core.registry import Registry

PIECE = 1 << 20  # values decoded at once: 4 MiB of float32 and a few temporaries of that size

SLICE = 1 << 16  # values turned to float64 at once, so that they stay in the cache

# std * sqrt(fan_in) is near 1 for the usual initialisations, 0.3 to 3 for std 0.02 at common
# widths, and stays within a factor of ten of that in training.
SPREAD = (1e-3, 1e2)
NORM_SCALE = (1e-3, 1e3)  # root mean square of what a norm multiplies by
LAYER_FACTOR = 100.0  # between a layer's std and the median of that role over the layers
ZERO_ROWS = 0.25  # share of dead outputs of a matrix
LOOKUPS = ("embedding", "lm_head")  # their rows are tokens, and unused tokens may be zero


class TensorReader:
    """The tensors of a file as float32 in pieces of bounded size."""

    def __init__(self, file: AprFile, registry: Registry) -> None:
        self.file, self.registry = file, registry
        self._find = partial(registry.make, "quantizer")
        self._reasons: dict[str, str | None] = {}

    def why_not(self, entry: TensorEntry) -> str | None:
        """Return why a tensor cannot be decoded, or None if it can."""
        if entry.format in NATIVE or entry.format in LEGACY:
            return None
        if entry.format not in self._reasons:
            self._reasons[entry.format] = self._reason(entry)
        return self._reasons[entry.format]

    def _reason(self, entry: TensorEntry) -> str | None:
        try:
            quantizer_for(entry, self._find)
            check_declared(entry, self.registry.get("quantizer", entry.format).declaration)
        except AprError as error:
            hint = error.hint.splitlines()[0] if error.hint else ""
            return f"{error.message}. {hint}".strip().removesuffix(".")
        return None

    def rows(self, entry: TensorEntry) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield (first row, float32 [rows, cols]) pieces; cols covers all dimensions but the first.

        Raises what decoding raises; ask `why_not` first.
        """
        rows, cols = (entry.shape or (1,))[0], prod(entry.shape[1:])
        raw = self.file.raw(entry.name)
        step = max(1, PIECE // max(cols, 1))
        for start in range(0, rows if cols else 0, step):
            stop = min(start + step, rows)
            yield start, decode_rows(entry, raw, start, stop, self._find).reshape(-1, cols)
        self.file.drop_pages(entry.name)

    def pieces(self, entry: TensorEntry) -> Iterator[NDArray[np.float32]]:
        """Yield pieces as `rows` does, without row numbers, bounded even where one row is huge."""
        if prod(entry.shape[1:]) > PIECE and entry.spec is not None:
            block, count = entry.spec.block, prod(entry.shape)
            if entry.format in NATIVE:
                entry = replace(entry, shape=(count,))
            elif count % block == 0 and (len(entry.shape) != 2 or entry.shape[1] % block == 0):
                entry = replace(entry, shape=(count // block, block))
        for _, piece in self.rows(entry):
            yield piece


def sum_squares(values: NDArray[np.float32], shift: float = 0.0) -> float:
    """Return the sum of (value - shift) squared, in float64."""
    flat, total = values.reshape(-1), 0.0
    for start in range(0, flat.size, SLICE):
        part = flat[start : start + SLICE].astype(np.float64)
        part -= shift
        part *= part  # not a BLAS dot, whose threads wait for each other on slices this small
        total += float(part.sum())
    return total


@dataclass(slots=True)
class TensorStats:
    """Statistics from the pieces of a tensor, in float64 and one pass.

    Counts are over all values; mean, spread and range over the finite ones. `zero_rows`
    counts rows (of the first dimension) that hold nothing but zeros.
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
        """Number of values that are neither NaN nor infinite."""
        return self.count - self.nan - self.inf

    @property
    def std(self) -> float:
        """Standard deviation of the finite values."""
        return sqrt(self._squares / self.finite) if self.finite else 0.0

    def add(self, piece: NDArray[np.float32]) -> None:
        """Add a float32 [rows, cols] piece."""
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
        """Return the statistics as a JSON object; null for what an empty tensor does not have."""
        spread = {"mean": self.mean, "std": self.std, "min": self.minimum, "max": self.maximum}
        return {
            **(spread if self.finite else dict.fromkeys(spread)),
            "nan": self.nan,
            "inf": self.inf,
            "zeros_share": self.zeros / self.count if self.count else None,
        }


def tensor_stats(pieces: Iterable[NDArray[np.float32]]) -> TensorStats:
    """Return the statistics of a tensor given in float32 [rows, cols] pieces."""
    stats = TensorStats()
    for piece in pieces:
        stats.add(piece)
    return stats


def implausible(
    contract: Contract, tensors: Mapping[str, tuple[TensorRule, TensorStats]]
) -> list[str]:
    """Return what is not plausible about the tensors, given by name, one line each."""
    problems: list[str] = []
    for name, (rule, stats) in tensors.items():
        if stats.finite:
            problems += [f"{name} {what}" for what in _one(contract, rule, stats)]
    return problems + list(_layers(tensors.values()))


def _one(contract: Contract, rule: TensorRule, stats: TensorStats) -> Iterator[str]:
    if len(rule.shape) == 2 and stats.count > 1:
        yield from _matrix(rule, stats)
    elif rule.role.endswith("norm") or ("norm" in rule.role and rule.group != "model"):
        offset = 0.0 if rule.role in contract.plain_norms else contract.norm_offset
        scale = sqrt((offset + stats.mean) ** 2 + stats.std**2)
        if not NORM_SCALE[0] <= scale <= NORM_SCALE[1]:
            yield f"multiplies by {scale:.3g} (root mean square), which no trained norm does"


def _matrix(rule: TensorRule, stats: TensorStats) -> Iterator[str]:
    if stats.minimum == stats.maximum:
        yield "is all zero" if stats.minimum == 0 else f"is {stats.minimum:g} everywhere"
        return
    if rule.role in LOOKUPS:
        return
    if stats.zero_rows > ZERO_ROWS * stats.rows:
        yield f"has {stats.zero_rows} of {stats.rows} rows all zero"
    spread = stats.std * sqrt(rule.shape[1])
    if not SPREAD[0] <= spread <= SPREAD[1]:
        yield (
            f"has standard deviation {stats.std:.3g} at fan-in {rule.shape[1]}: times its root "
            f"{spread:.3g}, expected {SPREAD[0]:g} to {SPREAD[1]:g}"
        )


def _layers(tensors: Iterable[tuple[TensorRule, TensorStats]]) -> Iterator[str]:
    """Yield matrices whose spread is far from that of the same role in other layers."""
    roles: dict[str, list[tuple[TensorRule, float]]] = defaultdict(list)
    for rule, stats in tensors:
        if rule.layer is not None and len(rule.shape) == 2 and stats.std > 0:
            roles[rule.role].append((rule, stats.std))
    for members in roles.values():
        middle = median(std for _, std in members)
        for rule, std in members if len(members) >= 3 else []:
            if not 1 / LAYER_FACTOR <= std / middle <= LAYER_FACTOR:
                yield f"{rule.name} has standard deviation {std:.3g}, other layers {middle:.3g}"
