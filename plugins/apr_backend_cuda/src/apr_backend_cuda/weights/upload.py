"""Uploading bytes from the host to the device: in pieces, through two staging buffers.

While one piece is sent, the next is read from the file. Pinned memory is sent directly, on a
separate stream; pieces are processed on the current stream. Nothing of the file is kept, and the
device needs no more extra memory than two pieces and the repacking of one. On the CPU, which has
no streams, the same pieces are copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

PIECE = 32 << 20  # bytes: sent in about a millisecond, so that launches cost little in comparison
READERS = 4  # threads that copy a piece from the file: one alone is slower than the bus
WORTHWHILE = 1 << 20  # bytes from which several threads copy
Take = Callable[
    [torch.Tensor, int], None
]  # (rows [n, row bytes] on the device, the first's number)


class Uploader:
    """Sends rows to a device. `piece` is how many bytes are staged at a time.

    A row is sent whole, even if it is longer. After `close`, everything sent is on the device.
    """

    def __init__(self, device: torch.device, piece: int = PIECE) -> None:
        self.device, self.piece = device, piece
        lane = _Stream if device.type == "cuda" else _Straight
        self._slots = (_Slot(), _Slot())
        self._lane: _Stream | _Straight = lane(device)
        self._turn = 0
        self._readers = ThreadPoolExecutor(READERS, "apr-upload")

    def rows(self, rows: NDArray[Any], take: Take) -> None:
        """Send rows [R, ...] of any type and pass them on as bytes, some at a time.

        `take` is called with u8 [n, row bytes] on the device and the number of the first row. It
        must finish with them on the current stream, as the memory is then reused for other rows.
        """
        if not rows.size:
            return
        row_bytes = rows[:1].nbytes
        each = max(1, self.piece // row_bytes)
        for first in range(0, len(rows), each):
            part = rows[first : first + each]
            slot = self._slots[self._turn]
            self._turn = 1 - self._turn
            slot.make_room(min(each, len(rows)) * row_bytes, self._lane)
            self._lane.wait_until_sent(slot)
            staged = slot.staged[: part.nbytes]
            self._read(part, staged.numpy().view(part.dtype).reshape(part.shape))
            self._lane.send(slot, part.nbytes)
            take(slot.there[: part.nbytes].view(len(part), row_bytes), first)
            self._lane.taken(slot)

    def _read(self, rows: NDArray[Any], into: NDArray[Any]) -> None:
        if rows.nbytes < WORTHWHILE:
            np.copyto(into, rows)
            return
        bounds = [len(rows) * i // READERS for i in range(READERS + 1)]
        parts = [slice(*pair) for pair in pairwise(bounds)]
        list(self._readers.map(lambda part: np.copyto(into[part], rows[part]), parts))

    def close(self) -> None:
        """Wait until everything is on the device, and free the buffers."""
        self._lane.finish()
        self._readers.shutdown()
        self._slots = (_Slot(), _Slot())


@contextmanager
def uploader(device: torch.device, piece: int = PIECE) -> Iterator[Uploader]:
    """Yield an uploader, closed on exit."""
    sender = Uploader(device, piece)
    try:
        yield sender
    finally:
        sender.close()


class _Slot:
    """A buffer on each side, and the events of transfers still in progress."""

    def __init__(self) -> None:
        self.staged = self.there = torch.empty(0, dtype=torch.uint8)
        self.sent: torch.cuda.Event | None = None  # the device has read the staged bytes
        self.taken: torch.cuda.Event | None = None  # the bytes on the device were used

    def make_room(self, nbytes: int, lane: _Stream | _Straight) -> None:
        """Make buffers of at least `nbytes`, which may replace the old ones."""
        if len(self.staged) < nbytes:
            lane.wait_until_sent(self)
            self.staged, self.there = lane.buffers(nbytes)
            lane.taken(self)  # reused memory: its stream may not be done with it


class _Straight:
    """Copies at once, for a device that is the CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def buffers(self, nbytes: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a buffer on the host and one on the device."""
        return (
            torch.empty(nbytes, dtype=torch.uint8),
            torch.empty(nbytes, dtype=torch.uint8, device=self._device),
        )

    def wait_until_sent(self, slot: _Slot) -> None:
        """Do nothing: copies are immediate."""

    def send(self, slot: _Slot, nbytes: int) -> None:
        """Copy the staged bytes."""
        slot.there[:nbytes].copy_(slot.staged[:nbytes])

    def taken(self, slot: _Slot) -> None:
        """Do nothing: copies are immediate."""

    def finish(self) -> None:
        """Do nothing: copies are immediate."""


class _Stream:
    """Copies on a separate stream, ordered with the current one by events."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def buffers(self, nbytes: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a pinned buffer on the host and one on the device."""
        return (
            torch.empty(nbytes, dtype=torch.uint8, pin_memory=True),
            torch.empty(nbytes, dtype=torch.uint8, device=self._device),
        )

    def wait_until_sent(self, slot: _Slot) -> None:
        """Wait until the staged bytes may be overwritten."""
        if slot.sent is not None:
            slot.sent.synchronize()

    def send(self, slot: _Slot, nbytes: int) -> None:
        """Copy once the device buffer is free; the current stream waits for the copy."""
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._side):
            if slot.taken is not None:
                self._side.wait_event(slot.taken)
            slot.there[:nbytes].copy_(slot.staged[:nbytes], non_blocking=True)
            slot.sent = self._side.record_event()
        current.wait_event(slot.sent)

    def taken(self, slot: _Slot) -> None:
        """Mark the device buffer as used: the next copy waits for the current stream's work."""
        slot.taken = torch.cuda.current_stream(self._device).record_event()

    def finish(self) -> None:
        """Wait for both streams."""
        self._side.synchronize()
        torch.cuda.current_stream(self._device).synchronize()
