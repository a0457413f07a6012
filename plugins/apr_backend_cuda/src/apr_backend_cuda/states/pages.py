"""Keys and values in pages of PAGE positions (Kwon et al., "PagedAttention", 2023).

A page holds some positions of one sequence for all layers, so sequences of any length share memory
without gaps. Snapshots and forks share pages with the sequence they come from; writing to a shared
page writes to a copy. Pages come from torch's allocator, which caches freed memory.

    page     u8, for each layer keys then values, both [Hkv, PAGE, D] in f16 or f32
    table    i64 [SLOTS + 1, pages]: addresses of each slot's pages, in order
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
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
    """The pages of one model: those of every open slot, for all layers."""

    def __init__(self, device: torch.device, kv_type: KVType, max_len: int, spare: Spare) -> None:
        if kv_type not in TYPES:
            raise BackendError(
                f"the cuda backend keeps keys and values in {' and '.join(TYPES)}, not {kv_type}",
                "Choose another kv_type.",
            )
        self.kv_type, self.dtype, self._device, self._spare = kv_type, TYPES[kv_type], device, spare
        self.page_bytes = 0  # for all layers
        self.table = torch.zeros((SLOTS + 1, -(-max_len // PAGE)), dtype=torch.int64, device=device)
        self._pages: dict[int, list[Page]] = {}
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
        self._pages.setdefault(slot, [])

    def close(self, slot: int) -> None:
        """Close a slot for a layer; the last one frees its pages."""
        self._open[slot] -= 1
        if not self._open[slot]:
            del self._open[slot]
            drop(self._pages.pop(slot))

    def held(self) -> int:
        """Return the pages of all slots; shared ones count for each slot."""
        return sum(map(len, self._pages.values()))

    def pages(self, slot: int, since: int, length: int) -> list[Page]:
        """Return the slot's pages that hold positions `since` to `length`."""
        return self._pages[slot][since // PAGE : -(-length // PAGE)]

    def reserve(self, slot: int, position: int, stop: int) -> None:
        """Allocate pages up to `stop`; those from `position` on may be written to.

        Raises BackendError if the device has no memory left.
        """
        pages, first, needed = self._pages[slot], position // PAGE, -(-stop // PAGE)
        changed = []
        try:
            for i in range(first, min(needed, len(pages))):
                if pages[i].holders > 1:
                    copy = self._new()
                    copy.data.copy_(pages[i].data)
                    drop([pages[i]])
                    pages[i] = copy
                    changed.append(i)
            while len(pages) < needed:
                pages.append(self._new())
                changed.append(len(pages) - 1)
        finally:  # even after an error: the next step relies on the slot's list
            self._publish(slot, changed)

    def share(self, slot: int, first: int, pages: list[Page]) -> None:
        """Put pages of another holder into a slot, from its page `first` on."""
        own = self._pages[slot]
        if own[first : first + len(pages)] == pages:  # another layer has done it
            return
        hold(pages)
        drop(own[first : first + len(pages)])
        own[first : first + len(pages)] = pages
        self._publish(slot, list(range(first, first + len(pages))))

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
            pointers = [page.data.data_ptr() for page in self._pages[slot][first:last]]
            addresses = torch.tensor(pointers, dtype=torch.int64)
            self.table[slot, first:last].copy_(addresses, non_blocking=True)


def hold(pages: list[Page]) -> None:
    """Add a holder to these pages."""
    for page in pages:
        page.holders += 1


def drop(pages: list[Page]) -> None:
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
    segments = True

    def __init__(self, pool: PagePool, kv_heads: int, head_dim: int) -> None:
        self.pool, self._heads, self._dim, self.dtype = pool, kv_heads, head_dim, pool.kv_type
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
        return -(-length // PAGE) * PAGE * self._row_bytes

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
        """Write k, v [n, Hkv, D] at `position`; return all keys and values so far [Hkv, L, D]."""
        length = position + k.shape[0]
        self.pool.reserve(slot, position, length)
        pages = self.pool.pages(slot, 0, length)
        for page, inside, rows in self._stretches(position, length):
            for cache, new in zip(self._of(pages[page]), (k, v), strict=True):
                cache[:, inside] = new[rows].swapaxes(0, 1)
        return self.filled(slot, length)

    def filled(self, slot: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return copies of the first `length` keys and values, both [Hkv, length, D]."""
        copies = torch.empty(
            (2, self._heads, length, self._dim),
            dtype=self.pool.dtype,
            device=self.pool.table.device,
        )
        pages = self.pool.pages(slot, 0, length)
        for page, inside, rows in self._stretches(0, length):
            for to, cache in zip(copies, self._of(pages[page]), strict=True):
                to[:, rows] = cache[:, inside]
        return copies[0], copies[1]

    def snapshot(self, slot: int, length: int, since: int = 0) -> PagedRows:
        """Return keys and values of positions `since` to `length`, shared with the slot."""
        return PagedRows(self.pool.pages(slot, since, length), since, length, self._row_bytes)

    def restore(self, slot: int, snapshot: PagedRows, since: int = 0) -> None:
        """Put back a snapshot; positions before `since` are already in place."""
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
