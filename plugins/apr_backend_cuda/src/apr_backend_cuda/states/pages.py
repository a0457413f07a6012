"""Keys and values in pages of PAGE positions (Kwon et al., "PagedAttention", 2023).

A page holds some positions of one sequence for all layers, so sequences of any length share memory
without gaps. Layers with a window share pages of their own, which go when the window has left them.
Snapshots and forks share pages with the sequence they come from; writing to a shared
page writes to a copy. Pages come from torch's allocator, which caches freed memory.

    page     u8, for each layer keys then values, both [Hkv, PAGE, D] in f16 or f32
    table    i64 [SLOTS + 1, pages]: addresses of each slot's pages, in order
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import ClassVar

import torch

from apr_backend_cuda.states.slots import NOBODY, SLOTS, Spare, check_slot
from apr_core.plugin import BackendError, KVType, Segment, State, StateKind

PAGE = 64
TYPES: dict[KVType, torch.dtype] = {"f32": torch.float32, "f16": torch.float16}


class Page:
    """Some positions of a sequence. `holders` counts the slots and snapshots that hold it."""

    __slots__ = ("data", "holders")

    def __init__(self, data: torch.Tensor) -> None:
        self.data, self.holders = data, 1


class PagePool:
    """The pages of one model: those of every open slot, for all layers with the same window."""

    def __init__(
        self, device: torch.device, kv_type: KVType, max_len: int, spare: Spare, window: int = 0
    ) -> None:
        if kv_type not in TYPES:
            raise BackendError(
                f"the cuda backend keeps keys and values in {' and '.join(TYPES)}, not {kv_type}",
                "Choose another kv_type.",
            )
        self.kv_type, self.dtype, self._device, self._spare = kv_type, TYPES[kv_type], device, spare
        self.window = window
        self.page_bytes = 0  # for all layers
        self.table = torch.zeros((SLOTS + 1, -(-max_len // PAGE)), dtype=torch.int64, device=device)
        self._pages: dict[int, dict[int, Page]] = {}  # by slot, then by number
        self._open: Counter[int] = Counter()  # how many layers have each slot open

    def add_layer(self, kv_heads: int, head_dim: int) -> int:
        """Add a layer; return its keys' byte offset in a page. Call before making pages."""
        assert not self._pages, "a layer more, though there are pages already"
        offset = self.page_bytes
        self.page_bytes += 2 * kv_heads * PAGE * head_dim * self.dtype.itemsize
        return offset

    def open(self, slot: int) -> None:
        """Open a slot for a layer."""
        check_slot(slot)
        self._open[slot] += 1
        self._pages.setdefault(slot, {})

    def close(self, slot: int) -> None:
        """Close a slot for a layer; the last one frees its pages."""
        self._open[slot] -= 1
        if not self._open[slot]:
            del self._open[slot]
            drop(self._pages.pop(slot).values())

    def held(self) -> int:
        """Return the pages of all slots; shared ones count for each slot."""
        return sum(map(len, self._pages.values()))

    def pages(self, slot: int, since: int, length: int) -> list[Page]:
        """Return the slot's pages that hold positions `since` to `length`."""
        return [self._pages[slot][i] for i in range(since // PAGE, -(-length // PAGE))]

    def first(self, slot: int) -> int:
        """Return the first position whose page the slot still has."""
        return min(self._pages[slot], default=0) * PAGE if self.window else 0

    def begin(self, position: int) -> int:
        """Return the first position of a page from which on a row at `position` looks at pages."""
        return max(0, position + 1 - self.window) // PAGE * PAGE if self.window else 0

    def reserve(self, slot: int, position: int, stop: int) -> None:
        """Allocate pages up to `stop`; those from `position` on may be written to.

        Pages that no row from `position` on looks at are dropped. Raises BackendError if the device
        has no memory left.
        """
        pages, seen = self._pages[slot], self.begin(position) // PAGE
        if self.window:
            drop(pages.pop(i) for i in [i for i in pages if i < seen])
        missing = max(seen, self.first(slot) // PAGE + len(pages))
        changed = []
        try:
            for i in range(min(position // PAGE, missing), -(-stop // PAGE)):
                if i not in pages:
                    pages[i] = self._new()
                elif pages[i].holders > 1:
                    copy = self._new()
                    copy.data.copy_(pages[i].data)
                    drop([pages[i]])
                    pages[i] = copy
                else:
                    continue
                changed.append(i)
        finally:  # even after an error: the next step relies on the slot's pages
            self._publish(slot, changed)

    def share(self, slot: int, first: int, pages: list[Page]) -> None:
        """Put pages of another holder into a slot, from its page `first` on.

        With a window it then has no others.
        """
        own, new = self._pages[slot], dict(enumerate(pages, first))
        if all(own.get(i) is page for i, page in new.items()):  # another layer has done it
            return
        hold(pages)
        drop(own.pop(i) for i in list(own) if i in new or self.window)
        own |= new
        self._publish(slot, list(new))

    def reserve_for(self, segments: tuple[Segment, ...]) -> None:
        """Reserve pages for the rows of a step."""
        for s in segments:
            if s.slot != NOBODY:
                self.reserve(s.slot, s.position, s.position + s.stop - s.start)

    def provide_spare(self) -> None:
        """Allocate memory for padding rows, which are at position 0."""
        self.table[NOBODY, 0] = self._spare.address(self.page_bytes)

    def _new(self) -> Page:
        try:
            return Page(torch.empty(self.page_bytes, dtype=torch.uint8, device=self._device))
        except torch.OutOfMemoryError as error:
            raise BackendError(
                f"the GPU has no memory left for keys and values: {self.held()} pages of "
                f"{self.page_bytes >> 10} KiB are in use",
                "Serve fewer or shorter sequences at a time (--slots, --context).",
            ) from error

    def _publish(self, slot: int, changed: list[int]) -> None:
        """Write the addresses of changed pages to the kernels' table."""
        if changed:
            first, last = changed[0], changed[-1] + 1
            pointers = [self._pages[slot][i].data.data_ptr() for i in range(first, last)]
            addresses = torch.tensor(pointers, dtype=torch.int64)
            self.table[slot, first:last].copy_(addresses, non_blocking=True)


def hold(pages: list[Page]) -> None:
    """Add a holder to these pages."""
    for page in pages:
        page.holders += 1


def drop(pages: Iterable[Page]) -> None:
    """Remove a holder from these pages."""
    for page in pages:
        page.holders -= 1


class PagedRows:
    """A layer's keys and values of positions `since` to `length`, in pages that it holds."""

    def __init__(self, pages: list[Page], since: int, length: int, row_bytes: int) -> None:
        hold(pages)
        self.pages, self.since, self.length = pages, since, length
        self.nbytes = (length - since) * row_bytes
        self._row_bytes = row_bytes

    def first(self, rows: int) -> PagedRows:
        """Return the first rows of these."""
        count = -(-(self.since + rows) // PAGE) - self.since // PAGE
        return PagedRows(self.pages[:count], self.since, self.since + rows, self._row_bytes)

    def __del__(self) -> None:
        drop(self.pages)


class PagedKV(State):
    """Keys and values of one layer, in the shared pages."""

    kind: ClassVar[StateKind] = "kv"

    def __init__(self, pool: PagePool, kv_heads: int, head_dim: int) -> None:
        self.pool, self._heads, self._dim, self.dtype = pool, kv_heads, head_dim, pool.kv_type
        self.window, self.segments = pool.window, not pool.window
        self.keys_at = pool.add_layer(kv_heads, head_dim)  # byte offset in a page
        self.values_at = (self.keys_at + pool.page_bytes) // 2
        self._row_bytes = (pool.page_bytes - self.keys_at) // PAGE

    def open(self, slot: int) -> None:
        """Start an empty sequence in the slot."""
        self.pool.open(slot)

    def close(self, slot: int) -> None:
        """Forget the slot and give its memory back."""
        self.pool.close(slot)

    def reserve(self, slot: int, length: int) -> None:
        """Make room for `length` positions, any of which may be written to."""
        self.pool.reserve(slot, 0, length)

    def bytes_at(self, length: int) -> int:
        """Return the bytes of a slot whose sequence has `length` tokens."""
        return (-(-length // PAGE) * PAGE - self.pool.begin(length - 1)) * self._row_bytes

    def nbytes(self) -> int:
        """Return the bytes held now by all slots."""
        return self.pool.held() * PAGE * self._row_bytes

    def _of(self, page: Page) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the layer's keys and values in a page, both [Hkv, PAGE, D]."""
        end = self.keys_at + PAGE * self._row_bytes
        both = page.data[self.keys_at : end].view(self.pool.dtype)
        keys, values = both.view(2, self._heads, PAGE, self._dim)
        return keys, values

    def _stretches(self, since: int, length: int) -> Iterator[tuple[int, slice, slice]]:
        """Yield (page, its positions, those of the stretch) for `since` to `length`."""
        at = since
        while at < length:
            page = at // PAGE
            stop = min(length, (page + 1) * PAGE)
            yield (
                page,
                slice(at - page * PAGE, stop - page * PAGE),
                slice(at - since, stop - since),
            )
            at = stop

    def append(
        self, slot: int, position: int, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write k, v [n, Hkv, D] at `position`; return the last L keys and values [Hkv, L, D].

        These are all so far, or those that a window still has.
        """
        length = position + k.shape[0]
        self.pool.reserve(slot, position, length)
        pages = self.pool.pages(slot, position, length)
        for page, inside, rows in self._stretches(position, length):
            for cache, new in zip(self._of(pages[page - position // PAGE]), (k, v), strict=True):
                cache[:, inside] = new[rows].swapaxes(0, 1)
        return self.filled(slot, length)

    def filled(self, slot: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return copies of the keys and values kept of the first `length`, both [Hkv, L, D]."""
        first = self.pool.first(slot)
        shape = (2, self._heads, length - first, self._dim)
        copies = torch.empty(shape, dtype=self.pool.dtype, device=self.pool.table.device)
        pages = self.pool.pages(slot, first, length)
        for page, inside, rows in self._stretches(first, length):
            for to, cache in zip(copies, self._of(pages[page - first // PAGE]), strict=True):
                to[:, rows] = cache[:, inside]
        return copies[0], copies[1]

    def snapshot(self, slot: int, length: int, since: int = 0) -> PagedRows:
        """Return keys and values of positions `since` to `length`, shared with the slot.

        With a window, from its beginning.
        """
        since = max(since, self.pool.begin(length))
        return PagedRows(self.pool.pages(slot, since, length), since, length, self._row_bytes)

    def restore(self, slot: int, snapshot: PagedRows, since: int = 0) -> None:
        """Put back a snapshot; positions before `since` are already in place."""
        since = snapshot.since
        pages, first = snapshot.pages, since // PAGE
        if since % PAGE and pages:
            self.pool.reserve(slot, since, min((first + 1) * PAGE, snapshot.length))
            inside = slice(since % PAGE, PAGE)
            own = self.pool.pages(slot, since, since + 1)[0]
            for cache, source in zip(self._of(own), self._of(pages[0]), strict=True):
                cache[:, inside] = source[:, inside]
            pages, first = pages[1:], first + 1
        self.pool.share(slot, first, pages)

    def shortened(self, snapshot: PagedRows, rows: int) -> PagedRows:
        """Return the first rows of a snapshot, not copied."""
        return snapshot.first(rows)
