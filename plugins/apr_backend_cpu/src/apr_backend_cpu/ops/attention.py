"""Causal attention over the cache, or over a window of it, without a [T, T] array.

Positions are cut into parts of 256 on a fixed grid. A part and some queries of one key head give
scores, their maximum, exponentials, sums and weighted values; parts are then merged in order. So
memory does not grow with the context, and a query's result does not depend on its batch, on the
cut of the prompt or on threads. A task is some queries, or, where there are few, a part for one.

A window's cache begins at a multiple of 256 that grows. Kernels get the address at which position 0
would be.
"""

from __future__ import annotations

import weakref
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_backend_cpu.constants import (
    APPEND,
    CACHE_COLUMNS,
    CAPACITY,
    F16,
    F32,
    FIRST_PART,
    KEYS_AT,
    LANES,
    PART,
    POSITION,
    Q8,
    SEGMENT,
    START,
    STOP,
    TOKENS,
)
from apr_backend_cpu.native import address as kernel
from apr_backend_cpu.run.arrays import address, bits
from apr_backend_cpu.run.program import Program, each_time, instructions, new, strided
from apr_backend_cpu.run.recording import materialize
from apr_core.plugin import CORE_OPS, plain

Floats = NDArray[np.float32]
KINDS = {"f32": (F32, 4), "f16": (F16, 2), "q8": (Q8, 1)}  # kind, bytes of a value
ALL = 1 << 40  # positions of a window that has all
FEW = 4  # segments with fewer rows are split into parts, not queries
MOST_QUERIES = 240  # queries in a task, all of one key head


@cache
def _methods() -> NDArray[np.uint64]:
    """Return a row of methods for each kind of cache, as `constants` describes."""
    rows = np.zeros((len(KINDS), CACHE_COLUMNS), np.uint64)
    for name, (kind, item) in KINDS.items():
        some = [f"append_{name}", *(f"scores_{name}_{n}" for n in (1, 4)),
                *(f"mix_{name}_{n}{vectors}" for n in (1, 4) for vectors in (1, 4))]  # fmt: skip
        if name == "q8":
            some += [f"weigh_{name}_{n}" for n in (1, 4)]
        else:
            some += ["", "", f"dense_unpack_{name}", f"widen_{name}"]
        addresses = [kernel(n) if n else 0 for n in some]
        rows[kind, : APPEND + len(addresses)] = (kind, item, *addresses)
    return rows


def _scratch(queries: int, dim: int) -> int:
    """Return the scratch bytes of a task: queries, results, scores and roundings."""
    return queries * (3 * 4 * dim + 4 * PART + 2 * dim + 128) + 256 * dim


class _Layout:
    """Where the tokens of a step are: the same in every layer."""

    def __init__(self, step: Any) -> None:
        self.step = step
        self.segments = np.array(
            [(seg.start, seg.stop, seg.position) for seg in step.segments], np.int64
        ).reshape(-1, 3)
        sizes = self.segments[:, 1] - self.segments[:, 0]
        # for each token in segments below FEW: numbers of the segment and of the token in it
        single = [(i, t) for i in np.flatnonzero(sizes < FEW) for t in range(sizes[i])]
        self.single = np.array(single, np.int64).reshape(-1, 2)
        self.positions = self.segments[self.single[:, 0], 2] + self.single[:, 1]
        self._parts: dict[int, tuple[NDArray[np.int64], int]] = {}

    def parts(self, window: int) -> tuple[NDArray[np.int64], int]:
        """Return the first part of each single token, in the order of tasks, and how many parts."""
        if window not in self._parts:
            counts = self.positions // PART - np.maximum(0, self.positions + 1 - window) // PART + 1
            self._parts[window] = np.cumsum(counts) - counts, int(counts.sum())
        return self._parts[window]


_latest: _Layout | None = None


def _layout(step: Any) -> _Layout:
    """Return the step's layout, made when the first layer asks."""
    global _latest
    layout = _latest
    if layout is None or layout.step is not step:
        layout = _latest = _Layout(step)
    return layout


class _Segments:
    """A table with a row per segment: where its tokens are, and the caches of a layer."""

    def __init__(self, layout: _Layout, state: Any) -> None:
        self._state = state
        self.table = np.zeros((len(layout.segments), SEGMENT), np.int64)
        self.table[:, [START, STOP]] = layout.segments[:, :2]
        # keys, weakly as slots are freed, and the position of their first row
        self._seen: list[Any] = [(lambda: None, 0)] * len(self.table)

    def refresh(self, layout: _Layout) -> bool:
        """Make room in the caches; return whether any cache array changed."""
        state, moved = self._state, False
        self.table[:, POSITION] = layout.segments[:, 2]
        for i, seg in enumerate(layout.step.segments):
            state.reserve(seg.slot, seg.position + seg.stop - seg.start, seg.position)
            keys, first = state.keys[seg.slot], state.first[seg.slot]
            seen, before = self._seen[i]
            if keys is not seen() or first != before:
                skip = first * keys.strides[1]
                where = address(keys) - skip, address(state.values[seg.slot]) - skip, keys.shape[1]
                self.table[i, KEYS_AT : CAPACITY + 1] = where
                self._seen[i], moved = (weakref.ref(keys), first), True
        return moved


class _Few:
    """Tokens whose parts are tasks. The number of parts grows with the context."""

    def __init__(
        self, p: Program, layout: _Layout, numbers: tuple[int, ...], q: Floats, out: Floats
    ) -> None:
        heads, kv_heads, dim, *_, self._window = numbers
        count = len(layout.single)
        self._segments = layout.single[:, 0]
        self._table = np.zeros((count, SEGMENT), np.int64)
        self._table[:, START] = layout.segments[self._segments, 0] + layout.single[:, 1]
        self._program, self._kv_heads, self._group, self._dim = p, kv_heads, heads // kv_heads, dim
        self._workspace, self._parts = np.empty(0, np.float32), 0
        inputs, scratch = (address(q), address(self._table), count), _scratch(self._group, dim)
        more = (*numbers, 0, 0, 0, 0)
        parts = p.add("attend_few_task", 0, *inputs, *more, scratch=scratch)
        self._number = p.last
        merge = p.add("merge_task", kv_heads * count, *inputs, *more, address(out), scratch=scratch)
        self._arguments = (parts, merge)
        p.keep(self)

    def refresh(self, layout: _Layout, table: NDArray[np.int64], moved: bool) -> None:
        """Rebuild the parts of every token from the table of segments and caches."""
        self._table[:, POSITION] = layout.positions
        self._table[:, FIRST_PART], parts = layout.parts(self._window)
        if moved:
            caches = slice(KEYS_AT, CAPACITY + 1)
            self._table[:, caches] = table[self._segments, caches]
        if parts != self._parts:
            self._parts = parts
            self._grow_workspace(self._kv_heads * parts)

    def _grow_workspace(self, tasks: int) -> None:
        queries = tasks * self._group
        if self._workspace.size < queries * (self._dim + 2):
            self._workspace = np.empty(2 * queries * (self._dim + 2), np.float32)
        tops = address(self._workspace)
        for arguments in self._arguments:
            arguments[9:13] = self._parts, tops, tops + 4 * queries, tops + 8 * queries
        self._program.set_tasks(self._number, tasks)


def _queries(count: int, kv_heads: int, threads: int) -> int:
    """Return the queries per task: many, as each task unpacks keys; but several tasks a thread."""
    most = min(MOST_QUERIES, kv_heads * count // (4 * threads))
    return max(TOKENS, most // TOKENS * TOKENS)


def _attend_many(
    p: Program,
    layout: _Layout,
    table: NDArray[np.int64],
    numbers: tuple[int, ...],
    q: Floats,
    out: Floats,
) -> None:
    """Add instructions for segments whose queries are tasks."""
    heads, kv_heads, dim, *_ = numbers
    for i, (start, stop, _) in enumerate(layout.segments.tolist()):
        if stop - start < FEW:
            continue
        count = (stop - start) * (heads // kv_heads)
        most = _queries(count, kv_heads, p.threads)
        tiles = -(-count // most)
        p.add(
            "attend_many_task",
            kv_heads * tiles,
            address(q),
            address(out),
            address(table[i]),
            *numbers,
            tiles,
            most,
            scratch=_scratch(most, dim),
        )


def attention(q: Floats, k: Floats, v: Floats, state: Any, step: Any, scale: float) -> Floats:
    """Attend q [T, H, D] to the cache after appending k and v [T, Hkv, D] -> [T, H, D].

    Head sizes that are not a multiple of 16 run on the reference.
    """
    tokens, heads, dim = q.shape
    if dim % (2 * LANES if state.dtype == "q8" else LANES):
        materialize()
        answer: Floats = CORE_OPS["attention"](np, *map(plain, (q, k, v)), state, step, scale)
        return answer
    q, k, v = (strided(x, whole=True).array for x in (q, k, v))
    kv_heads, layout, out = k.shape[1], _layout(step), new(q.shape)
    segments = _Segments(layout, state)
    table, kind = segments.table, address(_methods()[KINDS[state.dtype][0]])
    numbers = (heads, kv_heads, dim, bits(scale), kind, state.window or ALL)
    with instructions(q, k, v, table, out) as p:
        p.add(
            "append_task",
            tokens,
            address(k),
            address(v),
            address(table),
            len(table),
            kv_heads,
            dim,
            kind,
        )
        _attend_many(p, layout, table, numbers, q, out)
        few = _Few(p, layout, numbers, q, out) if len(layout.single) else None

        def refresh(ids: Any, step: Any) -> None:
            layout = _layout(step)
            moved = segments.refresh(layout)
            if few:
                few.refresh(layout, table, moved)

        each_time(p, refresh, step=step)
    return out
