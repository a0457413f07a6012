"""Streams tensors one by one from a checkpoint to bytes of their new formats.

Work is cut into blocks of rows, which a few threads encode side by side and which leave in order:
memory is bounded by the blocks in flight, not by the tensor. The same bytes come out whatever the
number of threads. Each block is decoded again to measure the error.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from apr_core.errors import QuantizationError
from apr_core.family.modelspec import Inputs
from apr_core.format import from_float32, to_float32
from apr_core.importing.checkpoint import Checkpoint
from apr_core.importing.choosing import Assignment

BLOCK_VALUES = 1 << 20

Progress = Callable[[str, int], None]  # (tensor name, source bytes done)
InputsOf = Callable[[str, int], Inputs | None]  # (tensor name, which matrix of a stack)


@dataclass(slots=True)
class ErrorTally:
    """Sums of squared values and squared errors; the relative RMSE is the root of their ratio."""

    errors: float = 0.0
    values: float = 0.0

    def add(self, errors: float, values: float) -> None:
        """Add the sums of another block."""
        self.errors += errors
        self.values += values

    @property
    def relative(self) -> float:
        """sqrt(sum of squared errors / sum of squared values); 0 for a tensor of zeros."""
        return (self.errors / self.values) ** 0.5 if self.values else 0.0


Encoded = tuple[NDArray[np.uint8], int, ErrorTally]  # a block, bytes of its source, its error


@dataclass(slots=True)
class Encoder:
    """Encodes the tensors of one checkpoint, a few blocks at a time on the pool's threads."""

    checkpoint: Checkpoint
    pool: ThreadPoolExecutor
    threads: int  # of the pool
    progress: Progress | None = None
    inputs_of: InputsOf | None = None
    tallies: dict[str, ErrorTally] = field(default_factory=dict)  # by tensor; no exact copies

    def chunks(self, a: Assignment) -> Iterator[NDArray[np.uint8]]:
        """Yield a tensor's bytes in order. Raises QuantizationError naming it, or FormatError."""
        tally = ErrorTally()
        waiting: deque[Future[Encoded]] = deque()
        for start, stop in self._blocks(a):
            waiting.append(self.pool.submit(self._encode, a, start, stop))
            if len(waiting) > self.threads:
                yield self._take(a, tally, waiting.popleft())
        while waiting:
            yield self._take(a, tally, waiting.popleft())
        if not a.is_exact:
            self.tallies[a.rule.name] = tally

    def _take(self, a: Assignment, tally: ErrorTally, job: Future[Encoded]) -> NDArray[np.uint8]:
        raw, source_bytes, error = job.result()
        tally.add(error.errors, error.values)
        if self.progress:
            self.progress(a.rule.name, source_bytes)
        return raw

    def _blocks(self, a: Assignment) -> Iterator[tuple[int, int]]:
        rows, cols = self.checkpoint.rows(a.rule.name)
        # Formats of blocks run flat over tensors of other than 2 dims: cut between blocks or not.
        whole = len(a.rule.shape) != 2 and cols % a.spec.block
        step = rows if whole else max(1, BLOCK_VALUES // max(cols, 1))
        for start in range(0, rows, step):
            yield start, min(start + step, rows)

    def _encode(self, a: Assignment, start: int, stop: int) -> Encoded:
        raw = self.checkpoint.read_raw(a.rule.name, start, stop)
        values = self.checkpoint.decode(a.rule.name, raw, stop - start)
        check_finite(a.rule.name, values, start)
        if a.is_exact:
            return raw, raw.nbytes, ErrorTally()
        try:
            encoded, decoded = self._converted(a, values, start)
        except QuantizationError as error:
            raise QuantizationError(
                f"tensor {a.rule.name!r}: {error.message}", error.hint
            ) from error
        miss = decoded.reshape(values.shape) - values
        return encoded, raw.nbytes, ErrorTally(_squares(miss), _squares(values))

    def _converted(
        self, a: Assignment, values: NDArray[np.float32], start: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return rows from `start` on in their new format, and their values decoded from that."""
        if a.encoder is None:
            native = from_float32(values, a.spec.name)
            return native, to_float32(native, a.spec.name, values.shape)
        shape, codec, encoded = a.rule.shape, a.encoder, []
        rows = values.reshape(-1, shape[-1]) if len(shape) > 1 else values.reshape(1, -1)
        matrices = len(values) if self.inputs_of and len(shape) > 2 else 1
        for i, matrix in enumerate(np.split(rows, matrices)):
            inputs = self.inputs_of(a.rule.name, start + i) if self.inputs_of else None
            encoded.append(codec.encode_for(matrix, inputs) if inputs else codec.encode(matrix))
        raw = np.ascontiguousarray(np.concatenate(encoded))
        return raw, codec.decode(raw, rows.shape[1])


def _squares(values: NDArray[np.float32]) -> float:
    return float(np.square(values).sum(dtype=np.float64))


def check_finite(name: str, values: NDArray[np.float32], first_row: int) -> None:
    """Raise QuantizationError naming the tensor and the first NaN or infinite value."""
    finite = np.isfinite(values)
    if finite.all():
        return
    row, col = (int(i) for i in np.argwhere(~finite)[0])
    raise QuantizationError(
        f"tensor {name!r}: {values[row, col]} at row {first_row + row}, column {col}",
        "The checkpoint is damaged, or was saved from a run that diverged.",
    )
