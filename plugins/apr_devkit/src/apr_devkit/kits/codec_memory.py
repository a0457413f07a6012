"""Checks of a codec and memory: what it reads, leaves unwritten, and hands out more than once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_devkit.kits.codec import CodecKit, Rows

KEPT = 3  # results that are kept side by side


class CodecMemory(CodecKit):
    """The checks themselves."""

    def test_input_may_be_any_view_and_is_left_alone(self) -> None:
        """Strided, transposed, read-only rows are encoded, and nothing is written to them."""
        plain = self.bell(2 * self.block + 1)
        expected = self.encoded(plain.copy(), "a sample").copy()
        wide = np.repeat(np.repeat(plain, 2, axis=0), 2, axis=1)
        locked = plain.copy()
        locked.setflags(write=False)
        views = {
            "rows one after the other": plain.copy(),
            "every second row": np.repeat(plain, 2, axis=0)[::2],
            "every second value": wide[::2, ::2],
            "columns first in memory": np.asfortranarray(plain),
            "read-only rows": locked,
        }
        for where, x in views.items():
            raw = self.encoded(x, where)
            assert np.array_equal(x, plain), f"encode changed its input ({where})"
            self.same(raw, expected, f"encoding {where}")

    def test_results_stay_as_they_are(self) -> None:
        """Encoding or decoding something else changes no earlier result: no buffer is reused."""
        codec, cols = self.codec, 2 * self.block + 1
        inputs = [np.roll(self.bell(cols), i, axis=0) for i in range(KEPT)]
        raws = [codec.encode(x).copy() for x in inputs]
        self._assert_kept("encode", [partial(codec.encode, x) for x in inputs])
        self._assert_kept("decode", [partial(codec.decode, raw, cols) for raw in raws])

    def _assert_kept(self, what: str, makes: list[Callable[[], NDArray[Any]]]) -> None:
        results: list[NDArray[Any]] = []
        copies: list[NDArray[Any]] = []
        for make in makes:
            made = make()
            shared = any(np.shares_memory(made, earlier) for earlier in results)
            assert not shared, f"two results of {what} share memory: return a new array each time"
            results.append(made)
            copies.append(made.copy())
        for made, copy in zip(results, copies, strict=True):
            self.same(made, copy, f"{what} of something else, looked at in an earlier result,")

    def test_nothing_is_left_unwritten(self) -> None:
        """What was in memory before does not get into bytes or values."""
        x = self.bell(2 * self.block + 1)
        raws, values = [], []
        for byte in (0, 255, 127):
            _fill_free_memory(byte, self._sizes(x))
            raws.append(self.encoded(x, "a sample").copy())
            _fill_free_memory(byte, self._sizes(x))
            values.append(self.decoded(raws[0], x.shape[1], "a sample").copy())
        for raw, value in zip(raws, values, strict=True):
            self.same(raw, raws[0], "encoding after other use of memory")
            self.same(value, values[0], "decoding after other use of memory")

    def _sizes(self, x: Rows) -> list[int]:
        """Bytes of the arrays a codec is likely to allocate."""
        blocks = len(x) * ceil(x.shape[1] / self.block)
        return [blocks * self.declaration.bytes_per_block, blocks * self.block * 4, x.nbytes]

    def test_decode_reads_bytes_of_a_mapped_file(self) -> None:
        """Read-only bytes at an odd address are decoded."""
        cols = 2 * self.block + 1
        raw = self.encoded(self.bell(cols), "a sample")
        odd = np.zeros(raw.size + 1, np.uint8)[1:].reshape(raw.shape)
        odd[:] = raw
        odd.setflags(write=False)
        expected = self.decoded(raw, cols, "a sample").copy()
        self.same(self.decoded(odd, cols, "mapped bytes"), expected, "decoding mapped bytes")


def _fill_free_memory(byte: int, sizes: list[int]) -> None:
    """Let the next arrays of these sizes find `byte` in memory that nobody writes."""
    kept = [np.full(size, byte, np.uint8) for size in sizes for _ in range(4)]
    kept.clear()
