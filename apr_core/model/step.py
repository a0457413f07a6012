"""One ragged batch: which rows belong to which slot, at which position; and its logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.ops.binding import Array, BackendPlugin, SamplingMetadata

Choice = int | NDArray[np.float32]  # a token, or the logits [vocab] to take it from
SampleFunction = Callable[[Array, Sequence[SamplingMetadata | None]], list[int | None]]


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows [start, stop) of the batch are consecutive tokens of `slot`, from `position` on."""

    slot: int
    start: int
    stop: int
    position: int


@dataclass(frozen=True, slots=True)
class Step:
    """A batch of segments. `positions` [T] int64 is on the backend, `host_positions` here."""

    segments: tuple[Segment, ...]
    positions: Any
    host_positions: NDArray[np.int64]

    @property
    def n_rows(self) -> int:
        """Rows in the batch, over all segments."""
        return self.segments[-1].stop

    @property
    def last_rows(self) -> list[int]:
        """The row of each segment's last token."""
        return [seg.stop - 1 for seg in self.segments]


def make_step(parts: Sequence[tuple[int, int, int]], upload: Any = None) -> Step:
    """Lay out (slot, token count, first position) parts one after the other."""
    segments, start = [], 0
    for slot, count, position in parts:
        segments.append(Segment(slot, start, start + count, position))
        start += count
    positions = np.concatenate(
        [np.arange(s.position, s.position + s.stop - s.start, dtype=np.int64) for s in segments]
    )
    return Step(tuple(segments), upload(positions) if upload else positions, positions)


class LastLogits:
    """Logits [parts, vocab] of each part's last token; only what is needed leaves the backend.

    A backend with `sample` keeps them; from others they are downloaded at once. Use them before the
    next step, which may overwrite them.
    """

    def __init__(self, backend: BackendPlugin, logits: Array) -> None:
        self._backend = backend
        self._sample: SampleFunction | None = backend.sample if backend.has("sample") else None
        self._rows = logits if self._sample else backend.download(logits)

    def of(self, part: int, count: int = 1) -> LastLogits:
        """Return one part's logits `count` times, so that as many tokens can be taken from them."""
        one = copy(self)
        one._rows = self._rows[part : part + 1] if count == 1 else self._rows[[part] * count]
        return one

    def wait(self) -> None:
        """Wait until the logits are there: a device may still be at work on the step."""
        if self._sample:
            self._backend.download(self._rows[-1:, :1])

    def download(self) -> NDArray[np.float32]:
        """Return all logits on the host: float32 [parts, vocab]."""
        rows: NDArray[np.float32]
        rows = self._backend.download(self._rows) if self._sample else self._rows
        return rows

    def sample(self, sampling: Iterable[SamplingMetadata | None]) -> list[Choice]:
        """Sample each row: return its token, or the row [vocab] to take the token from.

        Rows are returned where there is no metadata, or the backend leaves it to the host. It is
        not iterated if the backend samples nothing at all.
        """
        if self._sample is None:
            return list(self._rows)
        wanted = list(sampling)
        if all(metadata is None for metadata in wanted):
            return list(self.download())
        tokens = self._sample(self._rows, wanted)
        left = [i for i, token in enumerate(tokens) if token is None]
        rows: Iterator[NDArray[np.float32]] = iter(())
        if left:
            undecided = self._rows if len(left) == len(tokens) else self._rows[left]
            rows = iter(self._backend.download(undecided))
        return [next(rows) if token is None else int(token) for token in tokens]
