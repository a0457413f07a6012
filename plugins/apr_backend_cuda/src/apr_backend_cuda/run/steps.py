"""What kernels need to know of a step: which rows belong to which slot, as device arrays.

Made once per step and used by every layer. They name slots, and the states' own tables say where a
slot's memory is (`states/device.py`). A recorded step has tables that stay in place and are updated
before each replay.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from apr_backend_cuda.states.pages import PagedKV, PagePool
from apr_backend_cuda.states.slots import NOBODY
from apr_core.plugin import Step

Make = Callable[[Step], NDArray[np.int32]]


class Spared(Protocol):
    """A state with a table of slots and spare memory."""

    def provide_spare(self) -> None:
        """Allocate memory for padding rows."""


class Tables:
    """The tables of one step."""

    def __init__(self, step: Step, device: torch.device) -> None:
        self.step, self.device = step, device
        self._made: dict[Any, torch.Tensor] = {}
        self._pools: list[PagePool] = []
        self._padded = any(s.slot == NOBODY for s in step.segments)

    @property
    def longest(self) -> int:
        """Rows of the longest segment."""
        return max(s.stop - s.start for s in self.step.segments)

    @property
    def end(self) -> int:
        """Tokens of the longest sequence after the step, at most."""
        return max(s.position + s.stop - s.start for s in self.step.segments)

    @property
    def segments(self) -> torch.Tensor:
        """First row, rows, position and slot of every segment: i32 [S, 4]."""
        return self._once("segments", _segments)

    @property
    def owner(self) -> torch.Tensor:
        """The segment of every row: i32 [T]."""
        return self._once("owner", _owners)

    def tiles_of(self, rows: int) -> torch.Tensor:
        """Cut segments into tiles of at most `rows`: i32 [n, 8].

        Columns: first row, rows, position, segment, the segment's rows before the tile, and slot.
        """
        return self._once(("tiles", rows), lambda step: _cut(step, rows, False)[0])

    def on_grid(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut segments at positions that are multiples of `size`.

        Returns tiles i32 [n, 8] as `tiles_of`, and where each segment's tiles begin, i32 [S + 1].
        """
        return (
            self._once(("grid", size), lambda step: _cut(step, size, True)[0]),
            self._once(("starts", size), lambda step: _cut(step, size, True)[1]),
        )

    def of_pages(self, state: PagedKV) -> torch.Tensor:
        """Return the table of a paged state, with pages for every row of the step."""
        if state.pool not in self._pools:
            self._pools.append(state.pool)
            state.pool.reserve_for(self.step.segments)
            self._spare(state.pool)
        return state.pool.table

    def of_arrays(self, state: Any, name: str) -> torch.Tensor:
        """Return the table of a state's arrays of that name."""
        self._spare(state)
        table: torch.Tensor = state.tables[name]
        return table

    def _spare(self, state: Spared) -> None:
        if self._padded and ("spare", id(state)) not in self._made:
            state.provide_spare()
            self._made["spare", id(state)] = self.segments

    def _once(self, key: Any, make: Make) -> torch.Tensor:
        if key not in self._made:
            self._made[key] = torch.from_numpy(make(self.step)).to(self.device, non_blocking=True)
        return self._made[key]


class StaticTables(Tables):
    """Tables that stay in place. `end` is the most tokens of a sequence they are for."""

    def __init__(self, step: Step, device: torch.device, end: int) -> None:
        super().__init__(step, device)
        self._padded = True  # the first step may be full and a later one not
        self._end = end
        self._fed: dict[Any, Make] = {}

    @property
    def end(self) -> int:
        """The most tokens of a sequence that these are for."""
        return self._end

    def _once(self, key: Any, make: Make) -> torch.Tensor:
        self._fed[key] = make
        return super()._once(key, make)

    def refresh(self, step: Step) -> None:
        """Load another step: copy its arrays over the first one's."""
        self.step = step
        for pool in self._pools:
            pool.reserve_for(step.segments)
        for key, make in self._fed.items():
            self._made[key].copy_(torch.from_numpy(make(step)), non_blocking=True)


def _segments(step: Step) -> NDArray[np.int32]:
    rows = [(s.start, s.stop - s.start, s.position, s.slot) for s in step.segments]
    return np.array(rows, np.int32)


def _owners(step: Step) -> NDArray[np.int32]:
    counts = [s.stop - s.start for s in step.segments]
    return np.repeat(np.arange(len(counts)), counts).astype(np.int32)


def _cut(step: Step, size: int, on_grid: bool) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    tiles: list[tuple[int, ...]] = []
    starts = [0]
    for number, s in enumerate(step.segments):
        at = s.start
        while at < s.stop:
            position = s.position + at - s.start
            rows = min(s.stop - at, size - (position % size if on_grid else 0))
            tiles.append((at, rows, position, number, at - s.start, s.slot, 0, 0))
            at += rows
        starts.append(len(tiles))
    return np.array(tiles, np.int32), np.array(starts, np.int32)


_current = threading.local()


def tables_of(step: Step, device: torch.device) -> Tables:
    """Return the tables of a step; those of the last step are cached."""
    tables: Tables | None = getattr(_current, "tables", None)
    if tables is None or tables.step is not step or tables.device != device:
        tables = _current.tables = Tables(step, device)
    return tables


@contextmanager
def using(tables: Tables) -> Iterator[None]:
    """Use these as the tables of their step within the block."""
    _current.tables = tables
    try:
        yield
    finally:
        _current.tables = None
