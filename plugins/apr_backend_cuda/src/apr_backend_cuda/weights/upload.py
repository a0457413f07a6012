"""Bytes of the host on their way to the device: in pieces, through two staging buffers.

While one piece is sent, the next is read from the file. Pinned memory is sent without a detour, by
a stream of its own; what is made of a piece is made on the stream that everything else runs on.
Nothing of the file is kept, and no more of the device is taken than two pieces and what becomes of
one while it is repacked. On the processor, where there are no streams, the same pieces are copied.
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

PIECE = 32 << 20  # bytes: sent in about a millisecond, so that launches cost little beside it
READERS = 4  # threads that copy a piece out of the file: one alone is slower than the bus
WORTHWHILE = 1 << 20  # bytes that are copied by several
Take = Callable[
    [torch.Tensor, int], None
]  # (rows [n, row bytes] on the device, the first's number)


class Uploader:
    """Sends rows to a device. `piece` is how many bytes are staged at a time.

    One row is sent whole, even if it is longer. Close it: what was sent is there afterwards.
    """

    def __init__(self, device: torch.device, piece: int = PIECE) -> None:
        self.device, self.piece = device, piece
        lane = _Stream if device.type == "cuda" else _Straight
        self._slots = (_Slot(), _Slot())
        self._lane: _Stream | _Straight = lane(device)
        self._turn = 0
        self._readers = ThreadPoolExecutor(READERS, "apr-upload")

    def rows(self, rows: NDArray[Any], take: Take) -> None:
        """Send rows [R, anything], of any type, and hand them on as bytes, some at a time.

        `take` is called with u8 [n, row bytes] on the device and the number of the first row. It
        has to be done with them on the current stream: the memory is used for other rows then.
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
        """Wait until everything is there, and give the buffers back."""
        self._lane.finish()
        self._readers.shutdown()
        self._slots = (_Slot(), _Slot())


@contextmanager
def uploader(device: torch.device, piece: int = PIECE) -> Iterator[Uploader]:
    """An uploader that is closed in the end."""
    made = Uploader(device, piece)
    try:
        yield made
    finally:
        made.close()


class _Slot:
    """A buffer on each side, and what of it is still under way."""

    def __init__(self) -> None:
        self.staged = self.there = torch.empty(0, dtype=torch.uint8)
        self.sent: torch.cuda.Event | None = None  # the staged bytes were read by the device
        self.taken: torch.cuda.Event | None = None  # the bytes there were made use of

    def make_room(self, nbytes: int, lane: _Stream | _Straight) -> None:
        """Buffers of at least so many bytes, which may be others than before."""
        if len(self.staged) < nbytes:
            lane.wait_until_sent(self)
            self.staged, self.there = lane.buffers(nbytes)
            lane.taken(self)  # memory that was somebody's: its stream may not be done with it


class _Straight:
    """Copies at once, where the device is the processor."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def buffers(self, nbytes: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(on the host, on the device)."""
        return (
            torch.empty(nbytes, dtype=torch.uint8),
            torch.empty(nbytes, dtype=torch.uint8, device=self._device),
        )

    def wait_until_sent(self, slot: _Slot) -> None:
        """Nothing is ever under way."""

    def send(self, slot: _Slot, nbytes: int) -> None:
        """Copy the staged bytes."""
        slot.there[:nbytes].copy_(slot.staged[:nbytes])

    def taken(self, slot: _Slot) -> None:
        """Nothing is ever under way."""

    def finish(self) -> None:
        """Nothing is ever under way."""


class _Stream:
    """Copies on a stream of its own, ordered with the current one by events."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def buffers(self, nbytes: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(on the host, pinned; on the device)."""
        return (
            torch.empty(nbytes, dtype=torch.uint8, pin_memory=True),
            torch.empty(nbytes, dtype=torch.uint8, device=self._device),
        )

    def wait_until_sent(self, slot: _Slot) -> None:
        """Until then the staged bytes may not be overwritten."""
        if slot.sent is not None:
            slot.sent.synchronize()

    def send(self, slot: _Slot, nbytes: int) -> None:
        """Once the bytes there are not needed any more, copy; the current stream waits for it."""
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._side):
            if slot.taken is not None:
                self._side.wait_event(slot.taken)
            slot.there[:nbytes].copy_(slot.staged[:nbytes], non_blocking=True)
            slot.sent = self._side.record_event()
        current.wait_event(slot.sent)

    def taken(self, slot: _Slot) -> None:
        """What the current stream was given to do with the bytes there comes before their end."""
        slot.taken = torch.cuda.current_stream(self._device).record_event()

    def finish(self) -> None:
        """Wait for both streams."""
        self._side.synchronize()
        torch.cuda.current_stream(self._device).synchronize()
