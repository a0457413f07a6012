"""The kit of quantizers: sizes, errors, awkward values, and the same bytes every time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from apr_core.errors import FormatError, PluginError
from apr_core.format.dtypes import FIRST_FILE_ID, FormatSpec, number_formats
from apr_core.ops import layouts
from apr_devkit.kits import samples
from apr_devkit.kits.checks import skip
from apr_devkit.kits.codec import ROWS
from apr_devkit.kits.codec_errors import CodecErrors
from apr_devkit.kits.codec_memory import CodecMemory
from apr_devkit.kits.fresh import run_fresh
from apr_devkit.kits.samples import KINDS

LAYOUT_TOLERANCE = 2.0**-20  # of a row's largest value: a few roundings of float32
# what `decode_tensor` turns into a sentence about the file
REFUSALS = (FormatError, ValueError, IndexError, TypeError)

SHA256 = re.compile("[0-9a-f]{64}")
DIGEST = """
import sys
from importlib import import_module
from apr_devkit.kits.samples import golden_digest
module, _, attribute = sys.argv[1].partition(":")
print(golden_digest(getattr(import_module(module), attribute)(), int(sys.argv[2])))
"""


class QuantizerConformance(CodecMemory, CodecErrors):
    """Checks of one quantizer. Errors are relative RMSE.

        class TestNF4(QuantizerConformance):
            quantizer = "mine4"
            max_error = {"gaussian": 0.095}        # optional, or one number for all
            golden = "?"                           # optional: a SHA-256; the failure tells it

    Without `max_error`, here or on the codec object, bounds follow from the declared bytes: see
    `apr_devkit.kits.samples`; 0.0 is that of a format that loses nothing. `golden` may also be
    {seed: sha256}, or the path of such a JSON.

    `gain_tolerance`, here or on the codec object, is what the gain of bell-shaped values may miss
    1 by. The default, 1%, suits all that round to nearest or search for the least error. A format
    that clips the largest values on purpose states more; None leaves the check out.
    """

    golden: str | Path | Mapping[int, str] | None = None

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
