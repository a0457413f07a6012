"""Tasks of attention: appending to a cache, parts of 256 positions, and merging parts."""

from __future__ import annotations

import numpy as np

from apr_backend_cpu.constants import (
    APPEND,
    CACHE_COLUMNS,
    CACHE_KIND,
    CAPACITY,
    FIRST_PART,
    KEYS_AT,
    LANES,
    PART,
    POSITION,
    Q8,
    SEGMENT,
    START,
    STOP,
    VALUES_AT,
)
from apr_backend_cpu.kernels.attention.parts import finish, merge, part, row_bytes, tiled_part
from apr_backend_cpu.kernels.linear.dense import arrange
from apr_backend_cpu.kernels.source import helper, kernel
from apr_backend_cpu.kernels.vector.memory import (
    as_float,
    call,
    floats_at,
    ints_at,
    matrix_at,
    words_at,
)

MOST = 32  # arguments of an instruction, at most
f32 = np.float32
U = np.uint64


@helper
def first_part(position, window):
    """Return the number of the first part that a query sees."""
    return max(0, position + 1 - window) // PART


@kernel()
def append_task(arguments, i, scratch):
    """Append a token's keys and values to the cache.

    Arguments: k, v, segments, their number, Hkv, D, methods of the cache.
    """
    a = ints_at(arguments, MOST)
    heads, dim, methods = a[4], a[5], words_at(a[6], CACHE_COLUMNS)
    stride, n = row_bytes(methods, dim), U(dim // LANES)
    number = 0
    while number + 1 < a[3] and i >= ints_at(a[2] + 8 * SEGMENT * (number + 1), SEGMENT)[START]:
        number += 1
    seg = ints_at(a[2] + 8 * SEGMENT * number, SEGMENT)
    position = seg[POSITION] + i - seg[START]
    for h in range(heads):
        offset, source = (h * seg[CAPACITY] + position) * stride, 4 * dim * (i * heads + h)
        call(methods[APPEND], (U(a[0] + source), U(seg[KEYS_AT] + offset), n))
        call(methods[APPEND], (U(a[1] + source), U(seg[VALUES_AT] + offset), n))


@kernel()
def attend_many_task(arguments, i, scratch):
    """Attend with some queries of one key head of a segment.

    Arguments: q, out, segment, H, Hkv, D, scale, methods, window, tiles, queries per task. Queries
    of a key head count token by token: number n is token n // G, head n % G of its group.
    """
    a = ints_at(arguments, MOST)
    heads, kv_heads, dim, window, tiles, most = a[3], a[4], a[5], a[8], a[9], a[10]
    methods, scale = words_at(a[7], CACHE_COLUMNS), as_float(a[6])
    eight = methods[CACHE_KIND] == U(Q8)
    seg, group, h = ints_at(a[2], SEGMENT), heads // kv_heads, i // tiles
    first = i % tiles * most
    n = min((seg[STOP] - seg[START]) * group - first, most)
    stride = U(row_bytes(methods, dim))
    size, at = 4 * most * dim, scratch
    q, result, part_result = (
        matrix_at(at, n, dim), matrix_at(at + size, n, dim), matrix_at(at + 2 * size, n, dim)
    )  # fmt: skip
    arranged = at  # float caches: the arranged queries, in the place of q
    at += 3 * size
    place, seen = ints_at(at, n), ints_at(at + 8 * most, n)  # place: offset of a query in q and out
    tops, sums = floats_at(at + 16 * most, n), floats_at(at + 20 * most, n)
    part_tops, part_sums = floats_at(at + 24 * most, n), floats_at(at + 28 * most, n)
    scores, workspace = matrix_at(at + 32 * most, n, PART), at + 32 * most + 4 * most * PART
    for j in range(n):
        token, member = (first + j) // group, (first + j) % group
        place[j] = 4 * dim * ((seg[START] + token) * heads + h * group + member)
        source = floats_at(a[0] + place[j], dim)
        for d in range(dim):
            result[j, d] = f32(0.0)
        if eight:
            for d in range(dim):
                q[j, d] = source[d]
        else:
            arrange(U(a[0] + place[j]), U(arranged + 4 * dim * j), U(dim // LANES))
        tops[j], sums[j] = f32(-np.inf), f32(0.0)
    begin = first_part(seg[POSITION] + first // group, window) * PART
    for start in range(begin, seg[POSITION] + (first + n - 1) // group + 1, PART):
        for j in range(n):
            seen[j] = seg[POSITION] + (first + j) // group + 1 - start
        offset = U(h * seg[CAPACITY] + start) * stride
        keys, values = U(seg[KEYS_AT]) + offset, U(seg[VALUES_AT]) + offset
        if eight:
            part(
                methods,
                q,
                keys,
                values,
                stride,
                seen,
                window,
                scale,
                scores,
                part_tops,
                part_sums,
                part_result,
                False,
                workspace,
            )
        else:
            tiled_part(
                methods,
                arranged,
                keys,
                values,
                stride,
                seen,
                window,
                scale,
                scores,
                part_tops,
                part_sums,
                part_result,
                workspace,
            )
        merge(tops, sums, result, part_tops, part_sums, part_result)
    for j in range(n):
        finish(sums[j], result[j], floats_at(a[1] + place[j], dim))


@kernel()
def attend_few_task(arguments, i, scratch):
    """Compute one part for a token and a key head.

    Arguments: q, tokens, their number, H, Hkv, D, scale, methods, window, parts, tops, sums,
    results.
    """
    a = ints_at(arguments, MOST)
    heads, kv_heads, dim, window, parts = a[3], a[4], a[5], a[8], a[9]
    methods = words_at(a[7], CACHE_COLUMNS)
    group, h, number = heads // kv_heads, i // parts, i % parts
    t = 0
    while t + 1 < a[2] and number >= ints_at(a[1] + 8 * SEGMENT * (t + 1), SEGMENT)[FIRST_PART]:
        t += 1
    token = ints_at(a[1] + 8 * SEGMENT * t, SEGMENT)
    start = (first_part(token[POSITION], window) + number - token[FIRST_PART]) * PART
    stride = U(row_bytes(methods, dim))
    offset = U(h * token[CAPACITY] + start) * stride
    scores, seen = matrix_at(scratch, group, PART), ints_at(scratch + 4 * PART * group, group)
    workspace = scratch + 4 * PART * group + 64 * group
    for j in range(group):
        seen[j] = token[POSITION] + 1 - start
    q = matrix_at(a[0] + 4 * dim * (token[START] * heads + h * group), group, dim)
    part(
        methods,
        q,
        U(token[KEYS_AT]) + offset,
        U(token[VALUES_AT]) + offset,
        stride,
        seen,
        window,
        as_float(a[6]),
        scores,
        floats_at(a[10] + 4 * group * i, group),
        floats_at(a[11] + 4 * group * i, group),
        matrix_at(a[12] + 4 * group * dim * i, group, dim),
        True,
        workspace,
    )


@kernel()
def merge_task(arguments, i, scratch):
    """Merge a token's parts for a key head.

    Arguments: those of `attend_few_task`, then out.
    """
    a = ints_at(arguments, MOST)
    heads, kv_heads, dim, window, parts = a[3], a[4], a[5], a[8], a[9]
    group, h, t = heads // kv_heads, i // a[2], i % a[2]
    token = ints_at(a[1] + 8 * SEGMENT * t, SEGMENT)
    result = matrix_at(scratch, group, dim)
    top, total = (
        floats_at(scratch + 4 * group * dim, group),
        floats_at(scratch + 4 * group * (dim + 1), group),
    )
    for j in range(group):
        for d in range(dim):
            result[j, d] = f32(0.0)
        top[j], total[j] = f32(-np.inf), f32(0.0)
    first, skipped = token[FIRST_PART], first_part(token[POSITION], window)
    for number in range(first, first + token[POSITION] // PART + 1 - skipped):
        at = h * parts + number
        merge(
            top,
            total,
            result,
            floats_at(a[10] + 4 * group * at, group),
            floats_at(a[11] + 4 * group * at, group),
            matrix_at(a[12] + 4 * group * dim * at, group, dim),
        )
    out = a[13] + 4 * dim * (token[START] * heads + h * group)
    for j in range(group):
        finish(total[j], result[j], floats_at(out + 4 * dim * j, dim))
