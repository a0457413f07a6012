"""Causal attention over the cache, without a [T, T] array.

Positions are cut into parts of 256 on a fixed grid. For a part and some queries of one key head:
scores, their largest, exponentials, sums and weighted values; parts are then merged in order. So
memory does not grow with the context, and a query's result does not depend on its batch, on the
cut of the prompt or on threads. A task is some queries, or, where there are few, a part for one.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_backend_cpu.constants import (
    APPEND,
    CACHE_COLUMNS,
    F16,
    F32,
    FIRST_PART,
    LANES,
    PART,
    POSITION,
    Q8,
    SEGMENT,
    START,
)
from apr_backend_cpu.native import address as kernel
from apr_backend_cpu.run.arrays import address, bits
from apr_backend_cpu.run.program import Program, each_time, instructions, new, strided
from apr_backend_cpu.run.recording import plain, settle
from apr_backend_cpu.run.threads import threads_in_use
from apr_core.ops import CORE_OPS

Floats = NDArray[np.float32]
KINDS = {"f32": (F32, 4), "f16": (F16, 2), "q8": (Q8, 1)}  # and bytes of a value
FEW = 4  # rows of a segment; below this parts are tasks, not queries
MOST_QUERIES = 144  # of a task, all of one key head


@cache
def _methods() -> NDArray[np.uint64]:
    """A row for each kind of cache, as `constants` says."""
    rows = np.zeros((len(KINDS), CACHE_COLUMNS), np.uint64)
    for name, (kind, item) in KINDS.items():
        some = [f"append_{name}", *(f"scores_{name}_{n}" for n in (1, 4)),
                *(f"mix_{name}_{n}{vectors}" for n in (1, 4) for vectors in (1, 4))]  # fmt: skip
        if name == "q8":
            some += [f"weigh_{name}_{n}" for n in (1, 4)]
        else:
            some += ["", "", f"dense_unpack_{name}", f"widen_{name}"]
        found = [kernel(n) if n else 0 for n in some]
        rows[kind, : APPEND + len(found)] = (kind, item, *found)
    return rows


def _scratch(queries: int, dim: int) -> int:
    """Bytes that a task with so many queries keeps: the queries and results, scores, roundings."""
    return queries * (3 * 4 * dim + 4 * PART + 2 * dim + 128) + 256 * dim


def _fill(table: NDArray[np.int64], state: Any, step: Any) -> None:
    """A row a segment; makes room in the caches."""
    for i, seg in enumerate(step.segments):
        state.reserve(seg.slot, seg.position + seg.stop - seg.start)
        keys, values = state.keys[seg.slot], state.values[seg.slot]
        table[i, :FIRST_PART] = (
            seg.start, seg.stop, address(keys), address(values), keys.shape[1], seg.position,
        )  # fmt: skip


class _Few:
    """Tokens whose parts are tasks. The number of parts grows with the context."""

    def __init__(
        self, p: Program, single: NDArray[np.int64], numbers: tuple[int, ...], q: Floats,
        out: Floats,
    ) -> None:  # fmt: skip
        heads, kv_heads, dim, scale, kind = numbers
        self.single = single  # [tokens, 2]: number of the segment, token within it
        self.tokens = np.zeros((len(single), SEGMENT), np.int64)
        self.program, self.kv_heads, self.group, self.dim = p, kv_heads, heads // kv_heads, dim
        self.room = np.empty(0, np.float32)
        given = (address(q), address(self.tokens), len(single), heads, kv_heads, dim, scale, kind)
        parts = p.add("attend_few_task", 0, *given, 0, 0, 0, 0, scratch=_scratch(self.group, dim))
        self.number = p.last
        merge = p.add(
            "merge_task",
            kv_heads * len(single),
            *given,
            0,
            0,
            0,
            0,
            address(out),
            scratch=_scratch(self.group, dim),
        )
        self.arguments = (parts, merge)
        p.keep(self)

    def refresh(self, table: NDArray[np.int64]) -> None:
        """The parts of every token, where segments stand as `table` says."""
        self.tokens[:] = table[self.single[:, 0]]
        self.tokens[:, START] += self.single[:, 1]
        self.tokens[:, POSITION] += self.single[:, 1]
        counts = self.tokens[:, POSITION] // PART + 1
        self.tokens[:, FIRST_PART] = np.cumsum(counts) - counts
        parts = int(counts.sum())
        tasks = self.kv_heads * parts
        queries = tasks * self.group
        if self.room.size < queries * (self.dim + 2):
            self.room = np.empty(2 * queries * (self.dim + 2), np.float32)
        tops = address(self.room)
        for arguments in self.arguments:
            arguments[8:12] = parts, tops, tops + 4 * queries, tops + 8 * queries
        self.program.set_tasks(self.number, tasks)


def _queries(count: int, kv_heads: int) -> int:
    """Queries of a task: many, as keys are unpacked for each task; but several tasks a thread."""
    most = MOST_QUERIES
    while most > 2 * LANES and kv_heads * count < 4 * threads_in_use() * most:
        most //= 2
    return most


def _attend(p: Program, table: NDArray[np.int64], step: Any, numbers: tuple[int, ...],
            q: Floats, out: Floats) -> _Few | None:  # fmt: skip
    """Instructions for all segments; returns the tokens of short ones."""
    heads, kv_heads, dim, scale, kind = numbers
    single = []
    for i, seg in enumerate(step.segments):
        size = seg.stop - seg.start
        if size < FEW:
            single += [(i, t) for t in range(size)]
        else:
            most = _queries(size * (heads // kv_heads), kv_heads)
            tiles = -(-size * (heads // kv_heads) // most)
            p.add("attend_many_task", kv_heads * tiles, address(q), address(out),
                  address(table[i]), heads, kv_heads, dim, scale, kind, tiles, most,
                  scratch=_scratch(most, dim))  # fmt: skip
    return _Few(p, np.array(single), numbers, q, out) if single else None


def attention(q: Floats, k: Floats, v: Floats, state: Any, step: Any, scale: float) -> Floats:
    """q [T, H, D], k and v [T, Hkv, D] -> [T, H, D]; appends k and v to the cache first.

    Head sizes that are no multiple of 16 run on the reference.
    """
    tokens, heads, dim = q.shape
    if dim % (2 * LANES if state.dtype == "q8" else LANES):
        settle()
        answer: Floats = CORE_OPS["attention"](np, *map(plain, (q, k, v)), state, step, scale)
        return answer
    q, k, v = (strided(x, whole=True).array for x in (q, k, v))
    kv_heads, table = k.shape[1], np.zeros((len(step.segments), SEGMENT), np.int64)
    kind = address(_methods()[KINDS[state.dtype][0]])
    out = new(q.shape)
    with instructions(q, k, v, table, out) as p:
        p.add("append_task", tokens, address(k), address(v), address(table), len(table), kv_heads,
              dim, kind)  # fmt: skip
        few = _attend(p, table, step, (heads, kv_heads, dim, bits(scale), kind), q, out)

        def refresh(ids: Any, step: Any) -> None:
            _fill(table, state, step)
            if few:
                few.refresh(table)

        each_time(p, refresh, step=step)
    return out
