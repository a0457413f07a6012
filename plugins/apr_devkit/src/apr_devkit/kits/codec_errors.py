"""Checks of what a codec loses: on samples of weights, and of values that are awkward."""

from __future__ import annotations

import numpy as np

from apr_core.errors import QuantizationError
from apr_devkit.kits import samples
from apr_devkit.kits.cases import gain
from apr_devkit.kits.checks import skip
from apr_devkit.kits.codec import ROWS, CodecKit, Rows
from apr_devkit.kits.samples import BELL, relative_rmse

ORDINARY = (1e-3, 1.0, 50.0)  # scales of weights and of what norms make of them
TINY = (1e-4, 1e-6, 1e-8, 1e-20, 1e-38, 1e-45)
NO_WORSE_THAN_ZEROS = 1.25  # as relative RMSE, where a scale has hardly any bits left
AGAIN = 0.5  # of the first error, for what encoding decoded values once more may lose
GAIN = 0.01  # what is lost or won on the whole
SHRINKING, STRETCHING = 1.1, 0.1  # of the squared error, where that is more: see the check


class CodecErrors(CodecKit):
    """The checks themselves."""

    gain_tolerance: float | None = GAIN

    def test_sizes_are_as_declared(self) -> None:
        """Rows take ceil(columns / block) * bytes_per_block bytes, whatever their length."""
        for cols in self.some_cols():
            for rows in (1, 2, 7):
                self.round_trip(self.bell(cols, rows=rows), f"{rows} rows of {cols}")

    def test_error_is_within_its_bound(self) -> None:
        """The error on five distributions is below what its bytes, or its author, promise."""
        for kind, bound in self.bounds().items():
            x = samples.block_sample(kind, self.block)
            self.within(bound, self.round_trip(x, kind), x, kind)

    def test_values_are_neither_shrunk_nor_stretched(self) -> None:
        """Decoded values are on the whole as large as the encoded ones: no gain hides in a bound.

        The gain is that of a least-squares fit, sum(decoded * x) / sum(x * x). It is 1 where codes
        are rounded to nearest, and 1 - error^2 where levels are the means of what they stand for,
        which shows with 3 bits and less.
        """
        tolerance = self._gain_tolerance()
        if tolerance is None:
            skip("gain_tolerance is None: it is said to change the size of values")
        x = samples.block_sample(BELL, self.block)
        decoded = self.round_trip(x, "a sample")
        found, squares = gain(decoded, x), relative_rmse(decoded, x) ** 2
        least = 1 - max(tolerance, SHRINKING * squares)
        most = 1 + max(tolerance, STRETCHING * squares)
        assert least <= found <= most, (
            f"decoded values are {found:.4f} times what was encoded, beside rounding; expected "
            f"{least:.4f} to {most:.4f}"
        )

    def _gain_tolerance(self) -> float | None:
        """What this class says, else the codec, else `GAIN`."""
        if self.gain_tolerance != GAIN:
            return self.gain_tolerance
        found: float | None = getattr(self.codec, "gain_tolerance", GAIN)
        return found

    def test_stated_error_is_no_empty_promise(self) -> None:
        """A bound that the author states is at least what half of the bytes would give."""
        if not self.stated():
            skip("it states no max_error: bounds follow from its bytes")
        halved = samples.default_bounds(self.block, self.declaration.bytes_per_block / 2)
        for kind, bound in self.stated().items():
            assert 0 <= bound <= halved[kind], (
                f"max_error of {kind} is {bound:g}; a plain format of half the bytes stays below "
                f"{halved[kind]:.4g}"
            )

    def test_error_does_not_depend_on_the_scale(self) -> None:
        """Weights ten times as large are ten times as wrong, not more."""
        for scale in ORDINARY:
            x = self.bell(samples.block_sample(BELL, self.block).shape[1], scale)
            where = f"values around {scale:g}"
            self.within(self.bounds()[BELL], self.round_trip(x, where), x, where)

    def test_rows_that_do_not_fill_a_block(self) -> None:
        """The padding of a row's last block does not spoil its values."""
        for cols in self.some_cols():
            x = self.bell(cols)
            where = f"rows of {cols} values"
            self.within(self.worst(), self.round_trip(x, where), x, where)

    def test_zeros_stay_zeros(self) -> None:
        """Rows of zeros decode to zeros."""
        for cols in (self.block, 2 * self.block + 1):
            decoded = self.round_trip(np.zeros((3, cols), np.float32), "zeros")
            largest = float(np.abs(decoded).max())
            assert largest <= np.finfo(np.float32).tiny, f"zeros decode to up to {largest:g}"

    def test_constant_rows(self) -> None:
        """Rows of one value keep it."""
        for value in (1.0, -3.5, 1e-3, -0.02, 100.0):
            x = np.full((2, 2 * self.block), value, np.float32)
            where = f"rows of {value:g}"
            self.within(self.worst(), self.round_trip(x, where), x, where)

    def test_huge_values_are_kept_or_refused(self) -> None:
        """Values up to float32's largest are kept, or refused as QuantizationError."""
        largest = float(np.finfo(np.float32).max)
        for top in (1e5, 1e10, 1e20, 1e37, largest):
            bell = self.bell(2 * self.block, rows=3).astype(np.float64)
            spike = np.where(np.arange(2 * self.block) == 3, top, 1.0)[None]
            for x64 in (bell / np.abs(bell).max() * top, np.full((1, self.block), -top), spike):
                self._kept_or_refused(x64.astype(np.float32), f"values up to {top:g}")

    def _kept_or_refused(self, x: Rows, where: str) -> None:
        if not self._refuses(x, where):
            with np.errstate(all="ignore"):
                self.within(self.worst(), self.round_trip(x, where), x, where)

    def test_tiny_values_are_no_worse_than_zeros(self) -> None:
        """Values down to float32's smallest decode to something that is no worse than zeros."""
        for scale in TINY:
            x = self.bell(2 * self.block, scale)
            where = f"values around {scale:g}"
            with np.errstate(all="ignore"):
                decoded = self.round_trip(x, where)
            self.within(NO_WORSE_THAN_ZEROS, decoded, x, where)

    def test_nan_and_infinity_are_refused(self) -> None:
        """A NaN or an infinity anywhere is a QuantizationError."""
        cols = 2 * self.block + 1
        for value in (np.nan, np.inf, -np.inf):
            for row, col in ((0, 0), (1, self.block), (-1, -1)):
                x = self.bell(cols)
                x[row, col] = value
                where = f"{value} at row {row % ROWS}, column {col % cols}"
                assert self._refuses(x, where), (
                    f"{where}: encode accepts it, expected QuantizationError"
                )

    def _refuses(self, x: Rows, where: str) -> bool:
        """Whether encode raises QuantizationError; anything else that it raises is wrong."""
        try:
            with np.errstate(all="ignore"):
                self.codec.encode(x)
        except QuantizationError:
            return True
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
            raise AssertionError(f"{where}: encode raises {found}, not QuantizationError") from None
        return False

    def test_values_from_half_precision(self) -> None:
        """Values that a checkpoint had in float16 are encoded as well as others."""
        cols = samples.block_sample(BELL, self.block).shape[1]
        x = self.bell(cols).astype(np.float16).astype(np.float32)
        self.within(self.bounds()[BELL], self.round_trip(x, "float16 values"), x, "float16 values")

    def test_encoding_again_changes_little(self) -> None:
        """Decoded values that are encoded again lose less than the first time."""
        x = samples.block_sample(BELL, self.block)
        once = self.round_trip(x, "a sample")
        first, second = relative_rmse(once, x), relative_rmse(self.round_trip(once, "again"), once)
        assert second <= AGAIN * first + 1e-6, (
            f"encoding loses {first:.4g}, encoding the result again another {second:.4g}; "
            f"expected at most {AGAIN} of the first"
        )
