"""One part of attention: up to 256 cached positions, for some queries of one key head.

A part gives scores, their maximum, exponentials, the sum of these, and weighted values; parts are
then merged. `methods` are those of a kind of cache, as `constants` describes.
"""

from __future__ import annotations

import numpy as np

from apr_backend_cpu.constants import (
    CACHE_KIND,
    CACHE_LINE,
    ITEM,
    LANES,
    MIX,
    PART,
    Q8,
    SCORES,
    TOKENS,
    UNPACK_KEYS,
    WEIGH,
    WIDEN,
)
from apr_backend_cpu.kernels.attention.q8_rows import round_q8
from apr_backend_cpu.kernels.attention.tiles import KEYS, largest, mix_f32_61, mix_f32_64
from apr_backend_cpu.kernels.linear.dense import dense_many
from apr_backend_cpu.kernels.source import helper
from apr_backend_cpu.kernels.vector.exponential import exp32, softmax_weights
from apr_backend_cpu.kernels.vector.memory import U, call
from apr_backend_cpu.kernels.vector.rows import fetch

WIDE, SIX = 4 * LANES, 6  # dims and queries that are mixed together
BLOCK = 32  # positions whose values, in all dims, fit the first-level cache
SQUARE = 64  # positions and dims of unpacked values that fit it beside the weights and sums
f32 = np.float32


@helper
def row_bytes(methods, dim):
    """Return the bytes of one position of one head in a cache."""
    size = np.int64(methods[ITEM]) * dim
    return size + dim // 16 if methods[CACHE_KIND] == U(Q8) else size


@helper
def _scores(methods, q, keys, values, stride, low, count, scores, stream, workspace):
    """Write q [n, D] times keys `low` to `count` at an address to scores [n, 256].

    With `stream`, prefetch the values that are needed next.
    """
    n, op, os_ = U(q.shape[1] // LANES), U(scores.ctypes.data), U(4 * PART)
    qp, qs = U(q.ctypes.data), U(4 * q.shape[1])
    if methods[CACHE_KIND] == U(Q8):
        qp, qs = U(workspace), U(2 * q.shape[1] + 64)
        for i in range(q.shape[0]):
            round_q8(U(q[i].ctypes.data), qp + U(i) * qs, n)
    for first in range(low, count, KEYS):
        kp, out, i = keys + U(first) * stride, op + U(4 * first), U(0)
        ahead = values + U(first) * stride if stream else kp
        while i < U(q.shape[0]):
            some = min(U(4), U(q.shape[0]) - i)
            function = methods[SCORES + 1 if some > U(1) else SCORES]
            call(function, (qp + i * qs, qs, kp, stride, out + i * os_, os_, some, n, ahead))
            i += some


@helper
def _mix(methods, p, ps, v, vs, op, os_, queries, dims, count, ahead, workspace):
    """Add weights times `count` values to out [queries, dims]; addresses and strides in bytes.

    `workspace` holds weights times the scales of 8-bit values: 16 float32 per position and block,
    for four queries.
    """
    eight, size, i = methods[CACHE_KIND] == U(Q8), methods[ITEM], U(0)
    block = U(32) * U(np.gcd(np.int64(dims) // 32, 8)) if eight else dims
    while i < queries:
        some = min(U(4), queries - i)
        four = some > U(1)
        weights, each, a_block, out, d = p + i * ps, ps, U(0), op + i * os_, U(0)
        if eight:
            a_block = U(4 * LANES) * count
            each = a_block * (dims // block)
            function = methods[WEIGH + 1 if four else WEIGH]
            call(
                function,
                (weights, ps, v + dims, vs, workspace, each, some, count, dims // U(LANES)),
            )
            weights = workspace
        while d < dims:
            wide = d + U(WIDE) <= (d // block + U(1)) * block
            function = methods[MIX + (2 if four else 0) + (1 if wide else 0)]
            here = weights + d // block * a_block
            call(
                function,
                (here, each, v + d * size, vs, out + d * U(4), os_, some, count, ahead + d * size),
            )
            d += U(WIDE) if wide else U(LANES)
        i += some


@helper
def _scores_tiled(
    methods, arranged, queries, dim, keys, values, stride, low, count, scores, workspace
):
    """Write scores as `_scores` does, for many queries; keys are unpacked.

    Queries are arranged for `dense_many`. The next keys and values are prefetched meanwhile.
    """
    n, out = U(dim // LANES), U(scores.ctypes.data)
    nbytes = U(LANES) * stride
    lines = nbytes // U(CACHE_LINE * ((queries + TOKENS - 1) // TOKENS)) + U(1)
    for first in range(low, count, LANES):  # capacities are whole parts
        kp, skip = keys + U(first) * stride, U(first) * stride
        call(methods[UNPACK_KEYS], (kp, stride, U(LANES), U(workspace), n))
        for t in range(0, queries, TOKENS):
            some = U(min(TOKENS, queries - t))
            fetch(kp + nbytes, lines)
            fetch(values + skip, lines)
            kp, skip = kp + lines * U(CACHE_LINE), skip + lines * U(CACHE_LINE)
            dense_many(
                U(workspace),
                U(arranged) + U(4 * dim * t),
                U(4 * dim),
                some,
                out + U(4 * (PART * t + first)),
                U(4 * PART),
                n,
            )


@helper
def _mix_square(p, v, vs, op, os_, queries, dims, count):
    """Add weights times values as `_mix` does, in float32, for one square and many queries."""
    for i in range(0, queries, SIX):
        some, d = U(min(SIX, queries - i)), U(0)
        weights, out = p + U(4 * PART * i), op + U(i) * os_
        while d < dims:
            at, to = v + U(4) * d, out + U(4) * d
            if d + U(WIDE) <= dims:
                mix_f32_64(weights, U(4 * PART), at, vs, to, os_, some, count)
                d += U(WIDE)
            else:
                mix_f32_61(weights, U(4 * PART), at, vs, to, os_, some, count)
                d += U(LANES)


@helper
def _mix_tiled(methods, scores, values, stride, low, count, out, workspace):
    """Add weights times values as `_mix` does, for many queries, unpacking square by square."""
    op, wide = U(out.ctypes.data), U(4 * out.shape[1])
    for first in range(low // SQUARE * SQUARE, count, SQUARE):
        some, weights = U(min(SQUARE, count - first)), U(scores.ctypes.data) + U(4 * first)
        for d in range(0, out.shape[1], SQUARE):
            dims = U(min(SQUARE, out.shape[1] - d))
            here = values + U(first) * stride + U(d) * methods[ITEM]
            call(methods[WIDEN], (here, stride, U(workspace), dims // U(LANES), some))
            _mix_square(
                weights, U(workspace), U(4) * dims, op + U(4 * d), wide, out.shape[0], dims, some
            )


@helper
def _exponentials(scores, seen, window, scale, count, tops, sums):
    """Replace scores [n, 256] by weights; query i sees the last `window` of seen[i] positions.

    Only `count` of each row are used, rounded up to whole vectors.
    """
    n = (count + LANES - 1) // LANES
    for i in range(scores.shape[0]):
        line = scores[i][: n * LANES]
        rest = line[max(seen[i], 0) :]
        for p in range(rest.size):
            rest[p] = f32(-np.inf)
        for p in range(min(line.size, seen[i] - window)):
            line[p] = f32(-np.inf)
        tops[i] = largest(U(line.ctypes.data), U(n)) * scale
        if tops[i] == f32(-np.inf):  # this query sees no position of this part
            for p in range(line.size):
                line[p] = f32(0.0)
            sums[i] = f32(0.0)
        else:
            sums[i] = softmax_weights(U(line.ctypes.data), U(n), scale, tops[i])


@helper
def _most(seen):
    """Return how many positions of a part any query sees."""
    count = 1
    for i in range(seen.size):
        count = min(PART, max(count, seen[i]))
    return count


@helper
def _least(seen, window):
    """Return how many positions of a part no query sees, as they left its window: whole blocks."""
    low = PART
    for i in range(seen.size):
        low = min(low, max(0, seen[i] - window))
    return low // BLOCK * BLOCK


@helper
def _clear(out):
    for i in range(out.shape[0]):
        for d in range(out.shape[1]):
            out[i, d] = f32(0.0)


@helper
def part(
    methods,
    q,
    keys,
    values,
    stride,
    seen,
    window,
    scale,
    scores,
    tops,
    sums,
    out,
    stream,
    workspace,
):
    """Compute one part for some queries: q, out [n, D]; addresses of its first key and value.

    `workspace` holds queries rounded to int16, then weights times scales.
    """
    count, low = _most(seen), _least(seen, window)
    _scores(methods, q, keys, values, stride, low, count, scores, stream, workspace)
    _exponentials(scores, seen, window, scale, count, tops, sums)
    _clear(out)
    queries, dims = U(q.shape[0]), U(q.shape[1])
    for first in range(low, count, BLOCK):
        some, here = U(min(BLOCK, count - first)), values + U(first) * stride
        ahead = keys + U(PART + first) * stride if stream else here  # the next part's keys
        weights, op = U(scores.ctypes.data) + U(4 * first), U(out.ctypes.data)
        _mix(
            methods,
            weights,
            U(4 * PART),
            here,
            stride,
            op,
            U(4) * dims,
            queries,
            dims,
            some,
            ahead,
            U(workspace),
        )


@helper
def tiled_part(
    methods, arranged, keys, values, stride, seen, window, scale, scores, tops, sums, out, workspace
):
    """Compute a part as `part` does, for many queries of a float cache, unpacking it once."""
    count, low, (queries, dim) = _most(seen), _least(seen, window), out.shape
    _scores_tiled(
        methods, arranged, queries, dim, keys, values, stride, low, count, scores, workspace
    )
    _exponentials(scores, seen, window, scale, count, tops, sums)
    _clear(out)
    _mix_tiled(methods, scores, values, stride, low, count, out, workspace)


@helper
def merge(tops, sums, out, part_tops, part_sums, part_out):
    """Merge a part into the result of the parts before it."""
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
    """Divide a query's result by the sum of its weights, into `out`."""
    inverse = f32(1.0) / total
    for d in range(result.size):
        out[d] = result[d] * inverse
