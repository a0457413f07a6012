"""One part of attention: up to 256 positions of a cache, for some queries of one key head.

Scores, their largest, exponentials, their sum and weighted values; and how parts are put together.
"""

from __future__ import annotations

import numpy as np

from apr_backend_cpu.constants import F16, F32, LANES, PART, Q8, TOKENS
from apr_backend_cpu.kernels.attention.q8 import (
    mix_q8_11,
    mix_q8_14,
    mix_q8_41,
    mix_q8_44,
    scores_q8_1,
    scores_q8_4,
    weigh_q8_1,
    weigh_q8_4,
)
from apr_backend_cpu.kernels.attention.q8_rows import round_q8
from apr_backend_cpu.kernels.attention.tiles import (
    KEYS,
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
    total,
    widen,
)
from apr_backend_cpu.kernels.linear.dense import dense_many
from apr_backend_cpu.kernels.source import external, helper
from apr_backend_cpu.kernels.vector.exponential import exp32, exps
from apr_backend_cpu.kernels.vector.memory import U

unpack_f16, unpack_f32 = (external(f"dense_unpack_{name}", "p" * 5) for name in ("f16", "f32"))
BLOCK = 32  # positions whose values stay in the first-level cache
f32 = np.float32


@helper
def row_bytes(kind, dim):
    """Of one position of one head in a cache."""
    if kind == Q8:
        return dim + dim // 16
    return dim * (2 if kind == F16 else 4)


@helper
def _scores(kind, q, keys, values, stride, count, scale, scores, stream, room):
    """q [n, D] times `count` keys at an address -> scores [n, 256].

    With `stream`, the values that are needed next are fetched meanwhile.
    """
    n, op, os_ = U(q.shape[1] // LANES), U(scores.ctypes.data), U(4 * PART)
    qp, qs = U(q.ctypes.data), U(4 * q.shape[1])
    if kind == Q8:
        qp, qs = U(room), U(2 * q.shape[1] + 64)
        for i in range(q.shape[0]):
            round_q8(U(q[i].ctypes.data), qp + U(i) * qs, n)
    for first in range(0, count, KEYS):
        kp, out, i = keys + U(first) * stride, op + U(4 * first), U(0)
        ahead = values + U(first) * stride if stream else kp
        while i + U(4) <= U(q.shape[0]):
            query, to = qp + i * qs, out + i * os_
            if kind == F16:
                scores_f16_4(query, qs, kp, stride, to, os_, scale, n, ahead)
            elif kind == Q8:
                scores_q8_4(query, qs, kp, stride, to, os_, scale, n, ahead)
            else:
                scores_f32_4(query, qs, kp, stride, to, os_, scale, n, ahead)
            i += U(4)
        while i < U(q.shape[0]):
            query, to = qp + i * qs, out + i * os_
            if kind == F16:
                scores_f16_1(query, qs, kp, stride, to, os_, scale, n, ahead)
            elif kind == Q8:
                scores_q8_1(query, qs, kp, stride, to, os_, scale, n, ahead)
            else:
                scores_f32_1(query, qs, kp, stride, to, os_, scale, n, ahead)
            i += U(1)


@helper
def _mix_q8(p, ps, v, vs, op, os_, queries, dims, count, ahead, room):
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
            fetched = ahead + d
            if four and wide:
                mix_q8_44(here, each, values, vs, to, os_, count, fetched)
            elif four:
                mix_q8_41(here, each, values, vs, to, os_, count, fetched)
            elif wide:
                mix_q8_14(here, each, values, vs, to, os_, count, fetched)
            else:
                mix_q8_11(here, each, values, vs, to, os_, count, fetched)
            d += U(4 * LANES) if wide else U(LANES)
        i += U(4) if four else U(1)


@helper
def _mix_block(kind, p, ps, v, vs, op, os_, queries, dims, count, ahead):
    """out [queries, dims] += weights times `count` values; addresses and strides in bytes."""
    size, i = U(2 if kind == F16 else 4), U(0)
    while i < queries:
        four = i + U(4) <= queries
        d, weights, out = U(0), p + i * ps, op + i * os_
        while d < dims:
            wide = d + U(4 * LANES) <= dims
            values, to, fetched = v + d * size, out + d * U(4), ahead + d * size
            if kind == F16 and four and wide:
                mix_f16_44(weights, ps, values, vs, to, os_, count, fetched)
            elif kind == F16 and four:
                mix_f16_41(weights, ps, values, vs, to, os_, count, fetched)
            elif kind == F16 and wide:
                mix_f16_14(weights, ps, values, vs, to, os_, count, fetched)
            elif kind == F16:
                mix_f16_11(weights, ps, values, vs, to, os_, count, fetched)
            elif four and wide:
                mix_f32_44(weights, ps, values, vs, to, os_, count, fetched)
            elif four:
                mix_f32_41(weights, ps, values, vs, to, os_, count, fetched)
            elif wide:
                mix_f32_14(weights, ps, values, vs, to, os_, count, fetched)
            else:
                mix_f32_11(weights, ps, values, vs, to, os_, count, fetched)
            d += U(4 * LANES) if wide else U(LANES)
        i += U(4) if four else U(1)


@helper
def _scores_tiled(kind, arranged, queries, dim, keys, stride, count, scale, scores, room):
    """As `_scores`, for many queries: arranged as `dense_many` wants them; keys are unpacked."""
    n, out = U(dim // LANES), U(scores.ctypes.data)
    for first in range(0, count, LANES):  # a cache has room for whole parts
        kp = keys + U(first) * stride
        if kind == F16:
            unpack_f16(kp, stride, U(LANES), U(room), n)
        else:
            unpack_f32(kp, stride, U(LANES), U(room), n)
        for t in range(0, queries, TOKENS):
            some = U(min(TOKENS, queries - t))
            dense_many(U(room), U(arranged) + U(4 * dim * t), U(4 * dim), some,
                       out + U(4 * (PART * t + first)), U(4 * PART), n)  # fmt: skip
    for i in range(queries):
        line = scores[i]
        for p in range(count):
            line[p] = line[p] * scale


@helper
def _exponentials(scores, seen, tops, sums):
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
        sums[i] = total(U(line.ctypes.data), U(PART // LANES))


@helper
def _most(seen):
    """Positions of a part that some query sees."""
    count = 0
    for i in range(seen.size):
        count = min(PART, max(count, seen[i]))
    return count


@helper
def _clear(out):
    for i in range(out.shape[0]):
        for d in range(out.shape[1]):
            out[i, d] = f32(0.0)


@helper
def part(kind, q, keys, values, stride, seen, scale, scores, tops, sums, out, stream, room):
    """One part for some queries: q, out [n, D]; addresses of its first key and value.

    `room` is for queries rounded to int16, then for weights times scales.
    """
    count = _most(seen)
    _scores(kind, q, keys, values, stride, count, scale, scores, stream, room)
    _exponentials(scores, seen, tops, sums)
    _clear(out)
    queries, dims = U(q.shape[0]), U(q.shape[1])
    for first in range(0, count, BLOCK):
        some, here = U(min(BLOCK, count - first)), values + U(first) * stride
        ahead = keys + U(PART + first) * stride if stream else here  # the next part's keys
        weights, op = U(scores.ctypes.data) + U(4 * first), U(out.ctypes.data)
        if kind == Q8:
            _mix_q8(weights, U(4 * PART), here, stride, op, U(4) * dims, queries, dims, some,
                    ahead, U(room))  # fmt: skip
        else:
            _mix_block(kind, weights, U(4 * PART), here, stride, op, U(4) * dims, queries, dims,
                       some, ahead)  # fmt: skip


@helper
def tiled_part(kind, q, arranged, keys, values, stride, seen, scale, scores, tops, sums, out, room):
    """As `part`, for many queries of float caches: keys and values are unpacked for all of them."""
    queries, dim = q.shape
    count = _most(seen)
    _scores_tiled(kind, arranged, queries, dim, keys, stride, count, scale, scores, room)
    _exponentials(scores, seen, tops, sums)
    _clear(out)
    wide = U(4 * dim)
    for first in range(0, count, BLOCK):
        some, here, step = U(min(BLOCK, count - first)), values + U(first) * stride, stride
        if kind == F16:
            widen(here, stride, U(room), U(dim // LANES), some)
            here, step = U(room), wide
        weights, op = U(scores.ctypes.data) + U(4 * first), U(out.ctypes.data)
        _mix_block(F32, weights, U(4 * PART), here, step, op, wide, U(queries), U(dim), some, here)


@helper
def merge(tops, sums, out, part_tops, part_sums, part_out):
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


@helper
def finish(total, result, out):
    inverse = f32(1.0) / total
    for d in range(result.size):
        out[d] = result[d] * inverse
