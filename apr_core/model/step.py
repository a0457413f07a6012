"""One ragged batch: which rows belong to which slot, at which position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 512  # prompt tokens a forward; a multiple of the 64-token grid of recurrent mixers


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows [start, stop) of the batch are consecutive tokens of `slot`, from `position` on."""

    slot: int
    start: int
    stop: int
    position: int


@dataclass(frozen=True, slots=True)
class Step:
    """A batch of segments. `positions` [T] int64 lives on the backend; `host_positions` here."""

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
