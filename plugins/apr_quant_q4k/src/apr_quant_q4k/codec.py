"""What the codecs share: checks, partial blocks at row ends, work split over threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from apr_core.plugin import FEEDBACK, FormatError, Inputs, QuantizationError, QuantizerPlugin

FLOOR = 0.01  # of the mean weight: what a calibration has hardly seen may still be there
SHARE = 1 << 16  # values worth a thread of their own


def check_values(rows: NDArray[np.float32], smallest: float, largest: float, name: str) -> None:
    """Raise QuantizationError on NaN, Inf, or a value whose scale float16 cannot hold."""
    if not rows.size:
        return
    low, high = float(rows.min()), float(rows.max())  # NaN if any value is
    if smallest <= low and high <= largest:
        return
    bad = ~np.isfinite(rows)
    if bad.any():
        first = np.unravel_index(int(bad.argmax()), rows.shape)
        raise QuantizationError(
            f"{int(bad.sum())} values are NaN or infinite, the first at row {first[0]}, "
            f"column {first[1]}",
            "The checkpoint is damaged, or was saved from a run that diverged.",
        )
    value = low if low < smallest else high
    raise QuantizationError(
        f"value {value:g} is out of range for {name}: its float16 scales hold values from "
        f"{smallest:g} to {largest:g}",
        "Use bf16 or f32 for this checkpoint.",
    )


def thread_count(values: int) -> int:
    """Return the threads worth using: Numba's setting, or one off the main thread.

    A pool that encodes several tensors at once has split the work already, and Numba's own parallel
    loops end the process there under some threading layers.
    """
    if values < 2 * SHARE or threading.current_thread() is not threading.main_thread():
        return 1
    import numba

    most: int = numba.get_num_threads()
    return min(most, values // SHARE)


def spread(
    run: Callable[..., None],
    source: NDArray[np.generic],
    out: NDArray[np.generic],
    parts: int,
    *rest: Any,
) -> None:
    """Call run(source, out, start, stop, ...) over all parts, in one piece for each thread."""
    threads = thread_count(max(source.size, out.size))
    if threads == 1:
        run(source, out, 0, parts, *rest)
        return
    cuts = [parts * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads, "codec") as pool:
        jobs = [pool.submit(run, source, out, *cut, *rest) for cut in pairwise(cuts)]
    for job in jobs:
        job.result()


def later_columns(
    feedback: NDArray[np.float32] | None, cols: int, runs: int
) -> NDArray[np.float32]:
    """Return feedback [parts, runs * 128, 128] to later columns only, of which there are `cols`.

    Raises QuantizationError if the given one is not for so many columns.
    """
    known, shape = -(-cols // FEEDBACK), (FEEDBACK, FEEDBACK)
    out = np.zeros((-(-known // runs), runs * FEEDBACK, FEEDBACK), np.float32)
    if feedback is None:
        return out
    if feedback.shape != (known, *shape):
        raise QuantizationError(
            f"error feedback for rows of {cols} values has the shape {[known, *shape]}, "
            f"found {list(feedback.shape)}"
        )
    runwise = out.reshape(-1, *shape)
    runwise[:known] = np.triu(feedback, 1)
    if cols % FEEDBACK:
        runwise[known - 1, :, cols % FEEDBACK :] = 0
    return out


def column_weights(mean_square: NDArray[np.float32], cols: int, width: int) -> NDArray[np.float32]:
    """Return weights [parts, width] of columns, on average 1 in each part; 0 beyond `cols`.

    Raises QuantizationError if the given ones are not for so many columns.
    """
    if mean_square.shape != (cols,):
        raise QuantizationError(
            f"mean squares for rows of {cols} values have the shape {[cols]}, "
            f"found {list(mean_square.shape)}"
        )
    out = np.zeros(-(-cols // width) * width)
    out[:cols] = mean_square
    parts = out.reshape(-1, width)
    inside = np.minimum(cols - width * np.arange(len(parts)), width)[:, None]
    mean = parts.sum(1, keepdims=True) / inside
    parts[:] = np.where(mean > 0, (parts / np.where(mean > 0, mean, 1) + FLOOR) / (1 + FLOOR), 1)
    out[cols:] = 0
    return parts.astype(np.float32)


class BlockCodec(QuantizerPlugin):
    """A quantizer over blocks. Its compiled loops are in the module named after the format.

    That module is imported at first use, because it imports Numba, and a model can be run without
    it. `smallest` and `largest` are values that float16 scales can always represent.
    """

    name: ClassVar[str]
    block: ClassVar[int]
    nbytes: ClassVar[int]
    smallest: ClassVar[float]
    largest: ClassVar[float]
    loops: ClassVar[str] = ""  # the module with the loops, where it is not named after the format
    kind: ClassVar[tuple[int, ...]] = ()  # what the loops take last

    @property
    def _loops(self) -> Any:
        """The module with `encode_blocks` and `decode_blocks`."""
        return import_module(f"apr_quant_q4k.loops.{self.loops or self.name}")

    def encode(self, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Encode f32 [R, C] to u8 [R, ceil(C / block) * nbytes]. Raises QuantizationError."""
        return self._encode(rows, self._loops.encode_blocks)

    def encode_for(self, rows: NDArray[np.float32], inputs: Inputs) -> NDArray[np.uint8]:
        """Encode with a weighted search and error feedback. Raises QuantizationError."""
        runs = max(self.block // FEEDBACK, 1)  # that are encoded together
        feedback = later_columns(inputs.feedback, rows.shape[1], runs)
        weights = column_weights(inputs.mean_square, rows.shape[1], runs * FEEDBACK)
        return self._encode(rows, self._loops.encode_for, weights, feedback)

    def _encode(
        self, rows: NDArray[np.float32], run: Callable[..., None], *inputs: NDArray[np.float32]
    ) -> NDArray[np.uint8]:
        rows = np.ascontiguousarray(rows, np.float32)
        check_values(rows, self.smallest, self.largest, self.name)
        count, cols = rows.shape
        across = -(-cols // self.block)
        if cols % self.block:
            rows = np.pad(rows, ((0, 0), (0, across * self.block - cols)))
        out = np.zeros((count * across, self.nbytes), np.uint8)
        last = cols - (across - 1) * self.block  # values in a row's last block
        blocks = rows.reshape(-1, self.block)
        parts = count * len(inputs[0]) if inputs else len(out)
        spread(run, blocks, out, parts, across, last, *inputs, *self.kind)
        return out.reshape(count, across * self.nbytes)

    def decode(self, raw: NDArray[np.uint8], cols: int) -> NDArray[np.float32]:
        """Decode u8 [R, row bytes] to f32 [R, cols]. Raises FormatError on a size mismatch."""
        across = -(-cols // self.block)
        if raw.ndim != 2 or raw.shape[1] != across * self.nbytes:
            raise FormatError(
                f"{self.name}: rows of {cols} values take {across * self.nbytes} bytes, found an "
                f"array of shape {list(raw.shape)}"
            )
        packed = np.ascontiguousarray(raw).reshape(-1, self.nbytes)
        out = np.empty((len(packed), self.block), np.float32)
        spread(self._loops.decode_blocks, packed, out, len(out), *self.kind)
        return out.reshape(len(raw), across * self.block)[:, :cols]
