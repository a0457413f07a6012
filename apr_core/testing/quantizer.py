"""The kit of quantizers: sizes, errors, awkward values, and the same bytes every time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from apr_core import layouts
from apr_core.errors import FormatError, PluginError, QuantizationError
from apr_core.format.dtypes import FIRST_FILE_ID, FormatSpec, number_formats
from apr_core.testing import samples
from apr_core.testing.cases import gain
from apr_core.testing.checks import skip
from apr_core.testing.codec import ROWS, Rows
from apr_core.testing.codec_memory import CodecMemory
from apr_core.testing.fresh import run_fresh
from apr_core.testing.samples import BELL, KINDS, relative_rmse

ORDINARY = (1e-3, 1.0, 50.0)  # scales of weights and of what norms make of them
TINY = (1e-4, 1e-6, 1e-8, 1e-20, 1e-38, 1e-45)
NO_WORSE_THAN_ZEROS = 1.25  # as relative RMSE, where a scale has hardly any bits left
AGAIN = 0.5  # of the first error, for what encoding decoded values once more may lose
GAIN = 0.01  # what is lost or won on the whole
SHRINKING, STRETCHING = 1.1, 0.1  # of the squared error, where that is more: see the check
LAYOUT_TOLERANCE = 2.0**-20  # of a row's largest value: a few roundings of float32
# what `decode_tensor` turns into a sentence about the file
REFUSALS = (FormatError, ValueError, IndexError, TypeError)

SHA256 = re.compile("[0-9a-f]{64}")
DIGEST = """
import sys
from importlib import import_module
from apr_core.testing.samples import golden_digest
module, _, attribute = sys.argv[1].partition(":")
print(golden_digest(getattr(import_module(module), attribute)(), int(sys.argv[2])))
"""


class QuantizerConformance(CodecMemory):
    """Checks of one quantizer. Errors are relative RMSE.

        class TestNF4(QuantizerConformance):
            quantizer = "mine4"
            max_error = {"gaussian": 0.095}        # optional, or one number for all
            golden = "?"                           # optional: a SHA-256; the failure tells it

    Without `max_error`, here or on the codec object, bounds follow from the declared bytes: see
    `apr_core.testing.samples`; 0.0 is that of a format that loses nothing. `golden` may also be
    {seed: sha256}, or the path of such a JSON.

    `gain_tolerance`, here or on the codec object, is what the gain of bell-shaped values may miss
    1 by. The default, 1%, suits all that round to nearest or search for the least error. A format
    that clips the largest values on purpose states more; None leaves the check out.
    """

    golden: str | Path | Mapping[int, str] | None = None
    gain_tolerance: float | None = GAIN

    def test_sizes_are_as_declared(self) -> None:
        """Rows take ceil(columns / block) * bytes_per_block bytes, whatever their length."""
        for cols in self.some_cols():
            for rows in (1, 2, 7):
                self.round_trip(self.bell(cols, rows=rows), f"{rows} rows of {cols}")

    def test_format_id_is_free(self) -> None:
        """The declared APR id is its own, or there is none and each file gives it one."""
        d = self.declaration
        number = d.dtype_id
        assert number is None or 0 <= number < FIRST_FILE_ID, (
            f"dtype_id {number}: ids from {FIRST_FILE_ID} up belong to files; declare None"
        )
        try:
            number_formats([FormatSpec(d.name, number, d.block, d.bytes_per_block)])
        except FormatError as error:
            raise AssertionError(error.message) from None

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

    def test_the_same_bytes_every_time(self) -> None:
        """Encoding twice, and by another object, gives the same bytes."""
        x = self.bell(3 * self.block - 1)
        first = self.encoded(x, "a sample").copy()
        self.same(self.encoded(x, "a sample"), first, "encoding twice")
        self.same(self.load()().encode(x), first, "encoding by a second object")

    def test_the_same_bytes_on_any_thread(self) -> None:
        """Threads that encode and decode side by side get what one thread gets."""
        inputs = [self.bell(self.block + 64 * i) for i in range(8)]
        expected = [self.encoded(x, "a sample").copy() for x in inputs]
        values = [
            self.decoded(raw, x.shape[1], "a sample").copy()
            for x, raw in zip(inputs, expected, strict=True)
        ]
        codec = self.codec
        with ThreadPoolExecutor(4) as pool:
            raws = list(pool.map(codec.encode, inputs))
            backs = list(pool.map(lambda x, r: codec.decode(r, x.shape[1]), inputs, expected))
        for raw, one, back, value in zip(raws, expected, backs, values, strict=True):
            self.same(raw, one, "encoding on another thread")
            self.same(back, value, "decoding on another thread")

    def test_the_same_bytes_in_another_process(self) -> None:
        """Another process, whose strings hash differently, encodes to the same bytes."""
        here = samples.golden_digest(self.codec, self.block)
        for seed in (1, 2):
            there = run_fresh(DIGEST, self.declaration.target, str(self.block), hash_seed=seed)
            assert there == here, f"another process made {there}, this one {here}"

    def test_rows_are_independent(self) -> None:
        """The same bytes and values come out however the rows are cut into chunks."""
        x = self.bell(2 * self.block + 1)
        whole = self.encoded(x, "a sample").copy()
        values = self.decoded(whole, x.shape[1], "a sample").copy()
        for step in (1, 2, 5):
            for cut in _cuts(step):
                where = f"rows {cut.start} to {min(cut.stop, ROWS)} alone"
                self.same(self.encoded(x[cut], where), whole[cut], f"encoding {where}")
                self.same(
                    self.decoded(whole[cut], x.shape[1], where), values[cut], f"decoding {where}"
                )

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

    def test_bytes_of_another_length_are_refused(self) -> None:
        """Too many or too few bytes for the columns are an error, not values."""
        cols = 2 * self.block
        raw = self.encoded(self.bell(cols), "a sample")
        wrong = {"a byte less": raw[:, :-1], "a byte more": np.pad(raw, ((0, 0), (0, 1)))}
        for what, part in wrong.items():
            try:
                self.codec.decode(part, cols)
            except REFUSALS:
                continue
            raise AssertionError(f"decode accepts rows with {what} than {cols} values take")

    def test_layout_means_what_decode_does(self) -> None:
        """The declared layout fits the block and decodes to the codec's values."""
        d = self.declaration
        if d.layout is None:
            skip("it declares no layout")
        try:
            layouts.check(d.layout, d.block, d.bytes_per_block)
        except PluginError as error:
            raise AssertionError(error.message) from None
        for kind in KINDS:
            x = samples.block_sample(kind, self.block)[:, :-1]
            raw = self.encoded(x, kind)
            own = self.decoded(raw, x.shape[1], kind)
            meant = layouts.decode(d.layout, d.block, d.bytes_per_block, raw, x.shape[1])
            largest = np.maximum(np.abs(own).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
            miss = float((np.abs(own - meant) / largest).max())
            assert miss <= LAYOUT_TOLERANCE, (
                f"{kind}: the layout's values differ from decode's by {miss:.3g} of a row's largest"
            )

    def test_golden_bytes(self) -> None:
        """A fixed input encodes to the bytes that were recorded."""
        recorded = self._golden()
        for seed, expected in recorded.items():
            found = samples.golden_digest(self.codec, self.block, int(seed))
            assert found == expected, f"seed {seed} encodes to {found}, recorded is {expected}"

    def _golden(self) -> Mapping[Any, str]:
        """{seed: SHA-256}, however they were given."""
        given = self.golden
        if not given:
            skip("no golden bytes are recorded")
        if isinstance(given, str) and SHA256.fullmatch(given):
            return {0: given}
        if isinstance(given, str | Path):
            assert Path(given).is_file(), (
                f"golden {str(given)!r} is neither a SHA-256 nor a file; today's bytes have "
                f"{samples.golden_digest(self.codec, self.block)}"
            )
            found: Mapping[str, str] = json.loads(Path(given).read_text("utf-8"))
            return found
        return given


def _cuts(step: int) -> Iterator[slice]:
    for start in range(0, ROWS, step):
        yield slice(start, start + step)
