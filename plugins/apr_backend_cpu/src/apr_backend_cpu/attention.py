"""Causal attention over the cache, without a [T, T] array.

Positions are cut into parts of 256 on a fixed grid. For a part and some queries of one key head:
scores, their largest, exponentials, sums and weighted values; parts are then merged in order. So
memory does not grow with the context, and a query's result does not depend on its batch, on the
cut of the prompt or on threads. Few queries spread their parts over the threads, many themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

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
from apr_backend_cpu.compiling import serial, threaded
from apr_backend_cpu.exponential import exp32
from apr_backend_cpu.reductions import dot
from apr_backend_cpu.rows import address
from apr_core.ops import CORE_OPS

Floats = NDArray[np.float32]
PART = 256  # positions; caches have room for whole parts
BLOCK = 32  # positions whose values stay in the first-level cache
FEW = 4  # rows; below this parts are shared out, not rows
QUERIES = 16  # of a task, all of one key head
LANES = 16
AHEAD = 64  # keys
f32 = np.float32
U = np.uint64


@serial
def _scores(half, q, keys, values, stride, count, scale, scores, stream):  # noqa: ANN001, ANN202
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
            if half:
                scores_f16_4(qp + i * qs, qs, kp, stride, out + i * os_, os_, scale, n)
            else:
                scores_f32_4(qp + i * qs, qs, kp, stride, out + i * os_, os_, scale, n)
            i += U(4)
        while i < U(q.shape[0]):
            if half:
                scores_f16_1(qp + i * qs, qs, kp, stride, out + i * os_, os_, scale, n)
            else:
                scores_f32_1(qp + i * qs, qs, kp, stride, out + i * os_, os_, scale, n)
            i += U(1)


@serial
def _mix_block(half, p, ps, v, vs, op, os_, queries, dims, count):  # noqa: ANN001, ANN202
    """out [queries, dims] += weights times `count` values; addresses and strides in bytes."""
    size, i = U(2 if half else 4), U(0)
    while i < queries:
        four = i + U(4) <= queries
        d, weights, out = U(0), p + i * ps, op + i * os_
        while d < dims:
            wide = d + U(4 * LANES) <= dims
            values, to = v + d * size, out + d * U(4)
            if half and four and wide:
                mix_f16_44(weights, ps, values, vs, to, os_, count)
            elif half and four:
                mix_f16_41(weights, ps, values, vs, to, os_, count)
            elif half and wide:
                mix_f16_14(weights, ps, values, vs, to, os_, count)
            elif half:
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
                line[p] = exp32(line[p] - top)
        sums[i] = dot(line, ones)


@serial
def _part(half, q, keys, values, stride, seen, scale, scores, ones, tops, sums, out, stream):  # noqa: ANN001, ANN202
    """One part for some queries: q, out [n, D]; addresses of its first key and value."""
    count = min(PART, max(0, seen.max()))
    _scores(half, q, keys, values, stride, count, scale, scores, stream)
    _exponentials(scores, seen, ones, tops, sums)
    out[:] = f32(0.0)
    for first in range(0, count, BLOCK):
        some = U(min(BLOCK, count - first))
        here = values + U(first) * stride
        _mix_block(half, U(scores.ctypes.data) + U(4 * first), U(4 * PART), here, stride,
                   U(out.ctypes.data), U(4 * q.shape[1]), U(q.shape[0]), U(q.shape[1]),
                   some)  # fmt: skip


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
def _finish(sums, tops, result, out):  # noqa: ANN001, ANN202
    for i in range(sums.size):
        inverse = f32(1.0) / sums[i]
        line, target = result[i], out[i]
        for d in range(line.size):
            target[d] = line[d] * inverse


@threaded
def _attend_many(half, q, keys, values, capacity, position, group, scale, out):  # noqa: ANN001, ANN202
    """One segment: q, out [Hkv, T * G, D] by token; a task is some queries of one head."""
    heads, count, dim = q.shape
    tiles = (count + QUERIES - 1) // QUERIES
    stride = U(dim * (2 if half else 4))
    for task in prange(heads * tiles):
        h, first = task // tiles, task % tiles * QUERIES
        last = min(count, first + QUERIES)
        n = last - first
        scores, ones = np.empty((n, PART), np.float32), np.ones(PART, np.float32)
        tops, sums = np.full(n, f32(-np.inf)), np.zeros(n, np.float32)
        part_tops, part_sums = np.empty(n, np.float32), np.empty(n, np.float32)
        result, part = np.zeros((n, dim), np.float32), np.empty((n, dim), np.float32)
        seen = np.empty(n, np.int64)
        length = position + (last - 1) // group + 1
        for start in range(0, length, PART):
            for i in range(n):
                seen[i] = position + (first + i) // group + 1 - start
            offset = U(h * capacity + start) * stride
            _part(half, q[h, first:last], keys + offset, values + offset, stride, seen, scale,
                  scores, ones, part_tops, part_sums, part, False)  # fmt: skip
            _merge(tops, sums, result, part_tops, part_sums, part)
        _finish(sums, tops, result, out[h, first:last])


@threaded
def _attend_few(half, q, rows, group, scale, out):  # noqa: ANN001, ANN202
    """Some tokens: q, out [Hkv, T * G, D]; a task is one part, for one token and one head.

    rows int64 [T, 4]: addresses of keys and values, capacity, position.
    """
    heads, dim = q.shape[0], q.shape[2]
    stride = U(dim * (2 if half else 4))
    tokens = rows.shape[0]
    starts = np.zeros(tokens + 1, np.int64)
    for t in range(tokens):
        starts[t + 1] = starts[t] + rows[t, 3] // PART + 1
    parts = starts[tokens]
    tops = np.empty((heads, parts, group), np.float32)
    sums = np.empty((heads, parts, group), np.float32)
    results = np.empty((heads, parts, group, dim), np.float32)
    for task in prange(heads * parts):
        h, part, t = task // parts, task % parts, 0
        while starts[t + 1] <= part:
            t += 1
        start = (part - starts[t]) * PART
        scores, ones = np.empty((group, PART), np.float32), np.ones(PART, np.float32)
        seen = np.full(group, rows[t, 3] + 1 - start)
        offset = U(h * rows[t, 2] + start) * stride
        _part(half, q[h, t * group : (t + 1) * group], U(rows[t, 0]) + offset,
              U(rows[t, 1]) + offset, stride, seen, scale, scores, ones, tops[h, part],
              sums[h, part], results[h, part], True)  # fmt: skip
    for task in prange(heads * tokens):
        h, t = task // tokens, task % tokens
        top, total = np.full(group, f32(-np.inf)), np.zeros(group, np.float32)
        result = np.zeros((group, dim), np.float32)
        for part in range(starts[t], starts[t + 1]):
            _merge(top, total, result, tops[h, part], sums[h, part], results[h, part])
        _finish(total, top, result, out[h, t * group : (t + 1) * group])


@threaded
def _append(half, k, v, position, capacity, keys, values):  # noqa: ANN001, ANN202
    """k, v [T, Hkv, D] into the caches at two addresses, from `position` on."""
    tokens, heads, dim = k.shape
    stride, n = U(dim * (2 if half else 4)), U(dim // LANES)
    for t in prange(tokens):
        for h in range(heads):
            offset = U(h * capacity + position + t) * stride
            if half:
                append_f16(U(k[t, h].ctypes.data), keys + offset, n)
                append_f16(U(v[t, h].ctypes.data), values + offset, n)
            else:
                append_f32(U(k[t, h].ctypes.data), keys + offset, n)
                append_f32(U(v[t, h].ctypes.data), values + offset, n)


def attention(q: Floats, k: Floats, v: Floats, state: Any, step: Any, scale: float) -> Floats:
    """q [T, H, D], k and v [T, Hkv, D] -> [T, H, D]; appends k and v to the cache first.

    Head sizes that are no multiple of 16 run on the reference.
    """
    tokens, heads, dim = q.shape
    if dim % LANES:
        answer: Floats = CORE_OPS["attention"](np, q, k, v, state, step, scale)
        return answer
    kv_heads = k.shape[1]
    group = heads // kv_heads
    by_head = np.ascontiguousarray(q.reshape(tokens, kv_heads, group, dim).swapaxes(0, 1)).reshape(
        kv_heads, tokens * group, dim
    )
    out = np.empty(by_head.shape, np.float32)
    few: list[tuple[int, int, int, int]] = []
    few_rows: list[int] = []
    for seg in step.segments:
        state.reserve(seg.slot, seg.position + seg.stop - seg.start)
        keys, values = state.keys[seg.slot], state.values[seg.slot]
        half, capacity = keys.dtype == np.float16, keys.shape[1]
        at_keys, at_values = address(keys), address(values)
        rows = slice(seg.start, seg.stop)
        _append(half, k[rows], v[rows], seg.position, capacity, U(at_keys), U(at_values))
        if seg.stop - seg.start < FEW:
            few_rows += range(seg.start, seg.stop)
            for t in range(seg.stop - seg.start):
                few.append((at_keys, at_values, capacity, seg.position + t))
        else:
            some = slice(seg.start * group, seg.stop * group)
            _attend_many(half, by_head[:, some], U(at_keys), U(at_values), capacity, seg.position,
                         group, f32(scale), out[:, some])  # fmt: skip
    if few:
        table = np.array(few, np.int64)
        if len(few) == tokens:
            _attend_few(half, by_head, table, group, f32(scale), out)
        else:
            at = (np.array(few_rows)[:, None] * group + np.arange(group)).ravel()
            part = np.empty((kv_heads, at.size, dim), np.float32)
            _attend_few(half, np.ascontiguousarray(by_head[:, at]), table, group, f32(scale), part)
            out[:, at] = part
    result = out.reshape(kv_heads, tokens, group, dim).swapaxes(0, 1)
    return np.ascontiguousarray(result).reshape(tokens, heads, dim)
