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

from apr_backend_cpu.attention_q8 import (
    mix_q8_11,
    mix_q8_14,
    mix_q8_41,
    mix_q8_44,
    scores_q8_1,
    scores_q8_4,
    weigh_q8_1,
    weigh_q8_4,
)
from apr_backend_cpu.attention_q8_rows import append_q8
from apr_backend_cpu.attention_tiles import (
    KEYS,
    append_f16,
    append_f32,
    ask_for,
    largest,
    mix_f16_11,
    mix_f16_14,
    mix_f16_41,
    mix_f16_44,
    mix_f32_11,
    mix_f32_14,
    mix_f32_41,
    mix_f32_44,
    scores_f16_1,
    scores_f16_4,
    scores_f32_1,
    scores_f32_4,
)
from apr_backend_cpu.compiling import serial
from apr_backend_cpu.exponential import exp32, exps
from apr_backend_cpu.program import Opcode, Program, each_time, instructions, new, strided
from apr_backend_cpu.recording import plain, settle
from apr_backend_cpu.reductions import dot
from apr_backend_cpu.rows import address, alive, as_float, bits, floats_at, ints_at, matrix_at
from apr_core.ops import CORE_OPS

Floats = NDArray[np.float32]
PART = 256  # positions; caches have room for whole parts
BLOCK = 32  # positions whose values stay in the first-level cache
KINDS = {"f32": 0, "f16": 1, "q8": 2}
F32, F16, Q8 = range(3)  # how a cache keeps a row of a head
FEW = 4  # rows of a segment; below this parts are tasks, not queries
QUERIES = 16  # of a task, all of one key head
LANES = 16
AHEAD = 64  # keys
# columns of a table of segments, and of a table of single tokens
START, STOP, KEYS_AT, VALUES_AT, CAPACITY, POSITION, FIRST_PART = range(7)
SEGMENT = 7
f32 = np.float32
U = np.uint64


@serial
def _row_bytes(kind, dim):  # noqa: ANN001, ANN202
    """Of one position of one head in a cache."""
    if kind == Q8:
        return dim + dim // 16
    return dim * (2 if kind == F16 else 4)


@serial
def _scores(kind, q, keys, values, stride, count, scale, scores, stream):  # noqa: ANN001, ANN202
    """q [n, D] times `count` keys at an address -> scores [n, 256].

    With `stream`, keys further on are fetched meanwhile, and the values that are needed next.
    """
    n, qp, op = U(q.shape[1] // LANES), U(q.ctypes.data), U(scores.ctypes.data)
    qs, os_ = U(4 * q.shape[1]), U(4 * PART)
    size = (U(KEYS) * stride + U(511)) // U(512)
    for first in range(0, count, KEYS):
        kp, out, i = keys + U(first) * stride, op + U(4 * first), U(0)
        if stream:
            ask_for(kp + U(AHEAD) * stride, size)
            ask_for(values + U(first) * stride, size)
        while i + U(4) <= U(q.shape[0]):
            query, to = qp + i * qs, out + i * os_
            if kind == F16:
                scores_f16_4(query, qs, kp, stride, to, os_, scale, n)
            elif kind == Q8:
                scores_q8_4(query, qs, kp, stride, to, os_, scale, n)
            else:
                scores_f32_4(query, qs, kp, stride, to, os_, scale, n)
            i += U(4)
        while i < U(q.shape[0]):
            query, to = qp + i * qs, out + i * os_
            if kind == F16:
                scores_f16_1(query, qs, kp, stride, to, os_, scale, n)
            elif kind == Q8:
                scores_q8_1(query, qs, kp, stride, to, os_, scale, n)
            else:
                scores_f32_1(query, qs, kp, stride, to, os_, scale, n)
            i += U(1)


@serial
def _mix_q8(p, ps, v, vs, op, os_, queries, dims, count, room):  # noqa: ANN001, ANN202
    """out [queries, dims] += weights times `count` 8-bit values; addresses, strides in bytes.

    `room` is for weights times scales: 16 float32 a position and block, for four queries.
    """
    block = U(32) * U(np.gcd(np.int64(dims) // 32, 8))
    size, i = U(4 * LANES) * count, U(0)
    each = size * (dims // block)  # of a query
    while i < queries:
        four = i + U(4) <= queries
        weights, out, d = p + i * ps, op + i * os_, U(0)
        if four:
            weigh_q8_4(weights, ps, v + dims, vs, room, each, count, dims // U(LANES))
        else:
            weigh_q8_1(weights, ps, v + dims, vs, room, each, count, dims // U(LANES))
        while d < dims:
            wide = block % U(4 * LANES) == U(0)
            here, values, to = room + d // block * size, v + d, out + d * U(4)
            if four and wide:
                mix_q8_44(here, each, values, vs, to, os_, count)
            elif four:
                mix_q8_41(here, each, values, vs, to, os_, count)
            elif wide:
                mix_q8_14(here, each, values, vs, to, os_, count)
            else:
                mix_q8_11(here, each, values, vs, to, os_, count)
            d += U(4 * LANES) if wide else U(LANES)
        i += U(4) if four else U(1)


@serial
def _mix_block(kind, p, ps, v, vs, op, os_, queries, dims, count):  # noqa: ANN001, ANN202
    """out [queries, dims] += weights times `count` values; addresses and strides in bytes."""
    size, i = U(2 if kind == F16 else 4), U(0)
    while i < queries:
        four = i + U(4) <= queries
        d, weights, out = U(0), p + i * ps, op + i * os_
        while d < dims:
            wide = d + U(4 * LANES) <= dims
            values, to = v + d * size, out + d * U(4)
            if kind == F16 and four and wide:
                mix_f16_44(weights, ps, values, vs, to, os_, count)
            elif kind == F16 and four:
                mix_f16_41(weights, ps, values, vs, to, os_, count)
            elif kind == F16 and wide:
                mix_f16_14(weights, ps, values, vs, to, os_, count)
            elif kind == F16:
                mix_f16_11(weights, ps, values, vs, to, os_, count)
            elif four and wide:
                mix_f32_44(weights, ps, values, vs, to, os_, count)
            elif four:
                mix_f32_41(weights, ps, values, vs, to, os_, count)
            elif wide:
                mix_f32_14(weights, ps, values, vs, to, os_, count)
            else:
                mix_f32_11(weights, ps, values, vs, to, os_, count)
            d += U(4 * LANES) if wide else U(LANES)
        i += U(4) if four else U(1)


@serial
def _exponentials(scores, seen, ones, tops, sums):  # noqa: ANN001, ANN202
    """Weights in place of scores [n, 256]; query i sees the first seen[i] of them."""
    for i in range(scores.shape[0]):
        line = scores[i]
        rest = line[max(seen[i], 0) :]
        for p in range(rest.size):
            rest[p] = f32(-np.inf)
        top = largest(U(line.ctypes.data), U(PART // LANES))
        tops[i] = top
        if top == f32(-np.inf):  # sees nothing of this part
            for p in range(PART):
                line[p] = f32(0.0)
        else:
            for p in range(PART):
                line[p] = line[p] - top
            exps(line, line)
        sums[i] = dot(line, ones)


@serial
def _part(kind, q, keys, values, stride, seen, scale, scores, ones, tops, sums, out, stream):  # noqa: ANN001, ANN202
    """One part for some queries: q, out [n, D]; addresses of its first key and value."""
    count = min(PART, max(0, seen.max()))
    _scores(kind, q, keys, values, stride, count, scale, scores, stream)
    _exponentials(scores, seen, ones, tops, sums)
    out[:] = f32(0.0)
    queries, dims = U(q.shape[0]), U(q.shape[1])
    room = np.empty(BLOCK * 4 * q.shape[1] // 2 if kind == Q8 else 0, np.float32)
    for first in range(0, count, BLOCK):
        some, here = U(min(BLOCK, count - first)), values + U(first) * stride
        weights, op = U(scores.ctypes.data) + U(4 * first), U(out.ctypes.data)
        if kind == Q8:
            _mix_q8(weights, U(4 * PART), here, stride, op, U(4) * dims, queries, dims, some,
                    U(room.ctypes.data))  # fmt: skip
        else:
            _mix_block(kind, weights, U(4 * PART), here, stride, op, U(4) * dims, queries, dims,
                       some)  # fmt: skip
    alive(room)


@serial
def _merge(tops, sums, out, part_tops, part_sums, part_out):  # noqa: ANN001, ANN202
    """Add a part to what the parts before it gave."""
    for i in range(tops.size):
        top = max(tops[i], part_tops[i])
        if top == f32(-np.inf):
            continue
        old, new = exp32(tops[i] - top), exp32(part_tops[i] - top)
        tops[i], sums[i] = top, sums[i] * old + part_sums[i] * new
        line, added = out[i], part_out[i]
        for d in range(line.size):
            line[d] = line[d] * old + added[d] * new


@serial
def _finish(total, result, out):  # noqa: ANN001, ANN202
    inverse = f32(1.0) / total
    for d in range(result.size):
        out[d] = result[d] * inverse


@serial
def append_task(a, i):  # noqa: ANN001, ANN201
    """A token's keys and values: k, v, segments, their number, Hkv, D, kind of cache."""
    heads, dim, kind = a[4], a[5], a[6]
    stride, n = _row_bytes(kind, dim), U(dim // LANES)
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
    stride = U(_row_bytes(kind, dim))
    q, result, part = np.empty((n, dim), f32), np.zeros((n, dim), f32), np.empty((n, dim), f32)
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
        _part(kind, q, U(seg[KEYS_AT]) + offset, U(seg[VALUES_AT]) + offset, stride, seen,
              as_float(a[6]), scores, ones, part_tops, part_sums, part, False)  # fmt: skip
        _merge(tops, sums, result, part_tops, part_sums, part)
    for j in range(n):
        _finish(sums[j], result[j], floats_at(a[1] + place[j], dim))


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
    stride = U(_row_bytes(kind, dim))
    offset = U(h * token[CAPACITY] + start) * stride
    scores, ones = np.empty((group, PART), f32), np.ones(PART, f32)
    seen = np.full(group, token[POSITION] + 1 - start)
    q = matrix_at(a[0] + 4 * dim * (token[START] * heads + h * group), group, dim)
    _part(kind, q, U(token[KEYS_AT]) + offset, U(token[VALUES_AT]) + offset, stride, seen,
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
        _merge(top, total, result, floats_at(a[9] + 4 * group * at, group),
               floats_at(a[10] + 4 * group * at, group),
               matrix_at(a[11] + 4 * group * dim * at, group, dim))  # fmt: skip
    for j in range(group):
        _finish(total[j], result[j],
                floats_at(a[12] + 4 * dim * (token[START] * heads + h * group + j), dim))  # fmt: skip


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
