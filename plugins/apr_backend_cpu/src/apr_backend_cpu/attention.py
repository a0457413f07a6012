"""Causal attention over the cache, without a [T, T] array.

Positions are cut into parts of 256 on a fixed grid. For a part and some queries of one key head:
scores, their largest, exponentials, sums and weighted values; parts are then merged in order. So
memory does not grow with the context, and a query's result does not depend on its batch, on the
cut of the prompt or on threads. A task is some queries, or, where there are few, a part for one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_backend_cpu.attention_parts import (
    F16,
    F32,
    LANES,
    PART,
    Q8,
    finish,
    merge,
    part,
    row_bytes,
)
from apr_backend_cpu.attention_q8_rows import append_q8
from apr_backend_cpu.attention_tiles import append_f16, append_f32
from apr_backend_cpu.compiling import serial
from apr_backend_cpu.program import Opcode, Program, each_time, instructions, new, strided
from apr_backend_cpu.recording import plain, settle
from apr_backend_cpu.rows import address, as_float, bits, floats_at, ints_at, matrix_at
from apr_core.ops import CORE_OPS

Floats = NDArray[np.float32]
KINDS = {"f32": F32, "f16": F16, "q8": Q8}
FEW = 4  # rows of a segment; below this parts are tasks, not queries
QUERIES = 16  # of a task, all of one key head
# columns of a table of segments, and of a table of single tokens
START, STOP, KEYS_AT, VALUES_AT, CAPACITY, POSITION, FIRST_PART = range(7)
SEGMENT = 7
f32 = np.float32
U = np.uint64


@serial
def append_task(a, i):  # noqa: ANN001, ANN201
    """A token's keys and values: k, v, segments, their number, Hkv, D, kind of cache."""
    heads, dim, kind = a[4], a[5], a[6]
    stride, n = row_bytes(kind, dim), U(dim // LANES)
    number = 0
    while number + 1 < a[3] and i >= ints_at(a[2] + 8 * SEGMENT * (number + 1), SEGMENT)[START]:
        number += 1
    seg = ints_at(a[2] + 8 * SEGMENT * number, SEGMENT)
    position = seg[POSITION] + i - seg[START]
    for h in range(heads):
        offset, source = (h * seg[CAPACITY] + position) * stride, 4 * dim * (i * heads + h)
        if kind == F16:
            append_f16(U(a[0] + source), U(seg[KEYS_AT] + offset), n)
            append_f16(U(a[1] + source), U(seg[VALUES_AT] + offset), n)
        elif kind == Q8:
            append_q8(U(a[0] + source), U(seg[KEYS_AT] + offset), n)
            append_q8(U(a[1] + source), U(seg[VALUES_AT] + offset), n)
        else:
            append_f32(U(a[0] + source), U(seg[KEYS_AT] + offset), n)
            append_f32(U(a[1] + source), U(seg[VALUES_AT] + offset), n)


@serial
def many_task(a, i):  # noqa: ANN001, ANN201
    """Some queries of a key head of a segment: q, out, segment, H, Hkv, D, scale, kind, tiles.

    Queries of a key head count token by token: number n is token n // G, head n % G of its group.
    """
    heads, kv_heads, dim, kind, tiles = a[3], a[4], a[5], a[7], a[8]
    seg, group, h = ints_at(a[2], SEGMENT), heads // kv_heads, i // tiles
    first = i % tiles * QUERIES
    n = min((seg[STOP] - seg[START]) * group - first, QUERIES)
    stride = U(row_bytes(kind, dim))
    q, result, found = np.empty((n, dim), f32), np.zeros((n, dim), f32), np.empty((n, dim), f32)
    place = np.empty(n, np.int64)  # of each query, in q and in out
    for j in range(n):
        token, member = (first + j) // group, (first + j) % group
        place[j] = 4 * dim * ((seg[START] + token) * heads + h * group + member)
        q[j] = floats_at(a[0] + place[j], dim)
    scores, ones = np.empty((n, PART), f32), np.ones(PART, f32)
    tops, sums = np.full(n, f32(-np.inf)), np.zeros(n, f32)
    part_tops, part_sums, seen = np.empty(n, f32), np.empty(n, f32), np.empty(n, np.int64)
    for start in range(0, seg[POSITION] + (first + n - 1) // group + 1, PART):
        for j in range(n):
            seen[j] = seg[POSITION] + (first + j) // group + 1 - start
        offset = U(h * seg[CAPACITY] + start) * stride
        part(kind, q, U(seg[KEYS_AT]) + offset, U(seg[VALUES_AT]) + offset, stride, seen,
              as_float(a[6]), scores, ones, part_tops, part_sums, found, False)  # fmt: skip
        merge(tops, sums, result, part_tops, part_sums, found)
    for j in range(n):
        finish(sums[j], result[j], floats_at(a[1] + place[j], dim))


@serial
def few_task(a, i):  # noqa: ANN001, ANN201
    """A part for a token and a key head: q, tokens, their number, H, Hkv, D, scale, kind, parts,
    tops, sums, results."""
    heads, kv_heads, dim, kind, parts = a[3], a[4], a[5], a[7], a[8]
    group, h, number = heads // kv_heads, i // parts, i % parts
    t = 0
    while t + 1 < a[2] and number >= ints_at(a[1] + 8 * SEGMENT * (t + 1), SEGMENT)[FIRST_PART]:
        t += 1
    token = ints_at(a[1] + 8 * SEGMENT * t, SEGMENT)
    start = (number - token[FIRST_PART]) * PART
    stride = U(row_bytes(kind, dim))
    offset = U(h * token[CAPACITY] + start) * stride
    scores, ones = np.empty((group, PART), f32), np.ones(PART, f32)
    seen = np.full(group, token[POSITION] + 1 - start)
    q = matrix_at(a[0] + 4 * dim * (token[START] * heads + h * group), group, dim)
    part(kind, q, U(token[KEYS_AT]) + offset, U(token[VALUES_AT]) + offset, stride, seen,
          as_float(a[6]), scores, ones, floats_at(a[9] + 4 * group * i, group),
          floats_at(a[10] + 4 * group * i, group),
          matrix_at(a[11] + 4 * group * dim * i, group, dim), True)  # fmt: skip


@serial
def merge_task(a, i):  # noqa: ANN001, ANN201
    """A token's parts for a key head: as `few_task`, and out. Arguments 8 to 11 are shared."""
    heads, kv_heads, dim, parts = a[3], a[4], a[5], a[8]
    group, h, t = heads // kv_heads, i // a[2], i % a[2]
    token = ints_at(a[1] + 8 * SEGMENT * t, SEGMENT)
    top, total = np.full(group, f32(-np.inf)), np.zeros(group, f32)
    result = np.zeros((group, dim), f32)
    first = token[FIRST_PART]
    for number in range(first, first + token[POSITION] // PART + 1):
        at = h * parts + number
        merge(top, total, result, floats_at(a[9] + 4 * group * at, group),
               floats_at(a[10] + 4 * group * at, group),
               matrix_at(a[11] + 4 * group * dim * at, group, dim))  # fmt: skip
    out = a[12] + 4 * dim * (token[START] * heads + h * group)
    for j in range(group):
        finish(total[j], result[j], floats_at(out + 4 * dim * j, dim))


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
        parts = p.add(Opcode.ATTEND_FEW, 0, *given, 0, 0, 0, 0)
        self.number = p.last
        merge = p.add(Opcode.MERGE, kv_heads * len(single), *given, 0, 0, 0, 0, address(out))
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
            tiles = -(-size * (heads // kv_heads) // QUERIES)
            p.add(Opcode.ATTEND_MANY, kv_heads * tiles, address(q), address(out),
                  address(table[i]), heads, kv_heads, dim, scale, kind, tiles)  # fmt: skip
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
    kind = KINDS[state.dtype]
    out = new(q.shape)
    with instructions(q, k, v, table, out) as p:
        p.add(Opcode.APPEND, tokens, address(k), address(v), address(table), len(table), kv_heads,
              dim, kind)  # fmt: skip
        few = _attend(p, table, step, (heads, kv_heads, dim, bits(scale), kind), q, out)

        def refresh(ids: Any, step: Any) -> None:
            _fill(table, state, step)
            if few:
                few.refresh(table)

        each_time(p, refresh, step=step)
    return out
