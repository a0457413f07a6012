"""Causal attention with grouped heads, over keys and values in pages (`pages.py`).

A program has the rows of one kv head: tokens of a tile times the query heads that share it. It goes
through the context in ranges of RANGE positions, with an online softmax in each, and joins ranges
in order. One token of a long context is not enough work for the device: then every range has its
own program, and a second kernel joins them by the same arithmetic. So a row's result does not
depend on how the work was divided (Dao et al., "Flash-Decoding", 2023).

With a window a program begins at the first position that its rows look at. Then there are as many
parts as a window has ranges: range n is part n modulo that.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from apr_backend_cuda.kernels.tiles import NEARLY_F32, pointer
from apr_backend_cuda.launching.shapes import SHAPES
from apr_backend_cuda.launching.tuning import launch
from apr_backend_cuda.run.steps import tables_of
from apr_backend_cuda.states.device import pages_of
from apr_backend_cuda.states.pages import PAGE
from apr_core.plugin import Step

RANGE = 1024  # positions per online softmax
ALL = 1 << 30  # positions of a window that has all
SPLIT_BYTES = 1 << 28  # of partial results before ranges are joined, at most


@triton.jit
def _append(
    k,
    v,
    table,
    pages,
    tiles,
    keys_at,
    values_at,
    dim,
    k_row,
    k_head,
    v_row,
    v_head,
    F16: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
):
    tile, head = tl.program_id(0), tl.program_id(1)
    first, count = tl.load(tiles + tile * 8), tl.load(tiles + tile * 8 + 1)
    position = tl.load(tiles + tile * 8 + 2) + tl.arange(0, ROWS)
    slot = tl.load(tiles + tile * 8 + 5).to(tl.int64)
    r, d = tl.arange(0, ROWS), tl.arange(0, DIM)
    inside = (r < count)[:, None] & (d < dim)[None, :]
    row = (first + r).to(tl.int64)[:, None]
    key = tl.load(k + row * k_row + head * k_head + d[None, :], mask=inside, other=0.0)
    value = tl.load(v + row * v_row + head * v_head + d[None, :], mask=inside, other=0.0)
    page = tl.load(table + slot * pages + position // PAGE, mask=r < count, other=0)  # [ROWS]
    at = (head * PAGE + position % PAGE)[:, None] * dim + d[None, :]
    if F16:
        keys = pointer(page + keys_at, tl.float16)
        values = pointer(page + values_at, tl.float16)
        tl.store(keys[:, None] + at, key.to(tl.float16), mask=inside)
        tl.store(values[:, None] + at, value.to(tl.float16), mask=inside)
    else:
        keys = pointer(page + keys_at, tl.float32)
        values = pointer(page + values_at, tl.float32)
        tl.store(keys[:, None] + at, key, mask=inside)
        tl.store(values[:, None] + at, value, mask=inside)


@triton.jit
def _times(a, b, acc, F16: tl.constexpr):
    """Return acc + a b; in half precision if keys and values are f16."""
    if F16:
        total = tl.dot(a.to(tl.float16), b, acc)
    else:
        total = tl.dot(a, b, acc, input_precision=NEARLY_F32)
    return total


@triton.jit
def _join(total, total_m, total_l, acc, m, l):
    """Merge two unnormalised softmaxes over different positions into one."""
    new = tl.maximum(total_m, m)
    safe = tl.where(new == float("-inf"), 0.0, new)
    a, b = tl.exp(total_m - safe), tl.exp(m - safe)
    return total * a[:, None] + acc * b[:, None], new, total_l * a + l * b


@triton.jit
def _rows_at(page, at, row, dim, KEYS: tl.constexpr, DIM: tl.constexpr, F16: tl.constexpr):
    """Return addresses of keys or values in a page, from a row of it on: [KEYS, DIM]."""
    offset = (row + tl.arange(0, KEYS))[:, None] * dim + tl.arange(0, DIM)[None, :]
    if F16:
        addresses = pointer(page + at, tl.float16) + offset
    else:
        addresses = pointer(page + at, tl.float32) + offset
    return addresses


@triton.jit
def _range(
    q,
    table,
    keys_at,
    values_at,
    begin,
    end,
    last,
    seen,
    window,
    head,
    dim,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    KEYS: tl.constexpr,
    F16: tl.constexpr,
):
    """Return the softmax of rows over positions [begin, end): (acc, m, l).

    `seen` is each row's own position, the last of the `window` that it looks at.
    """
    m = tl.full((ROWS,), float("-inf"), tl.float32)
    l = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, DIM), tl.float32)
    d = tl.arange(0, DIM)
    for start in range(begin, end, KEYS):
        page, first = tl.load(table + start // PAGE), head * PAGE + start % PAGE
        position = start + tl.arange(0, KEYS)
        inside = (position < last)[:, None] & (d < dim)[None, :]
        at = _rows_at(page, keys_at, first, dim, KEYS, DIM, F16)
        key = tl.load(at, mask=inside, other=0.0)
        scores = _times(q, tl.trans(key), tl.zeros((ROWS, KEYS), tl.float32), F16)
        back = seen[:, None] - position[None, :]
        scores = tl.where((back >= 0) & (back < window), scores, float("-inf"))
        new = tl.maximum(m, tl.max(scores, axis=1))
        safe = tl.where(new == float("-inf"), 0.0, new)
        weights = tl.exp(scores - safe[:, None])
        old = tl.exp(m - safe)
        at = _rows_at(page, values_at, first, dim, KEYS, DIM, F16)
        value = tl.load(at, mask=inside, other=0.0)
        acc = _times(weights, value, acc * old[:, None], F16)
        l = l * old + tl.sum(weights, axis=1)
        m = new
    return acc, m, l


@triton.jit
def _range_of(part, first, ranges):
    """Return the range from `first` on whose results are those of a part: its number, modulo."""
    return first + (part + ranges - first % ranges) % ranges


@triton.jit
def _attend(
    q,
    out,
    maxima,
    sums,
    tiles,
    table,
    pages,
    keys_at,
    values_at,
    q_row,
    q_head,
    heads,
    dim,
    scale,
    all_rows,
    window,
    ranges,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    KEYS: tl.constexpr,
    RANGE: tl.constexpr,
    SPLIT: tl.constexpr,
    F16: tl.constexpr,
):
    tile, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, count = tl.load(tiles + tile * 8), tl.load(tiles + tile * 8 + 1)
    position = tl.load(tiles + tile * 8 + 2)
    table += tl.load(tiles + tile * 8 + 5).to(tl.int64) * pages
    last = position + count
    r = tl.arange(0, ROWS)
    token, query = r // GROUP, head * GROUP + r % GROUP
    valid = token < count
    row = (first + token).to(tl.int64)
    d = tl.arange(0, DIM)
    inside = valid[:, None] & (d < dim)[None, :]
    at = q + row[:, None] * q_row + query[:, None] * q_head + d[None, :]
    queries = tl.load(at, mask=inside, other=0.0) * scale
    seen = position + tl.where(valid, token, 0)
    low = tl.maximum(position + 1 - window, 0)  # the first row looks at nothing before
    if SPLIT:
        begin = _range_of(part, low // RANGE, ranges) * RANGE
        total, total_m, total_l = _range(
            queries,
            table,
            keys_at,
            values_at,
            tl.maximum(begin, low // KEYS * KEYS),
            tl.minimum(begin + RANGE, last),
            last,
            seen,
            window,
            head,
            dim,
            ROWS,
            DIM,
            PAGE,
            KEYS,
            F16,
        )
        to = (part * all_rows + row) * heads + query
        tl.store(maxima + to, total_m, mask=valid)
        tl.store(sums + to, total_l, mask=valid)
    else:
        total_m = tl.full((ROWS,), float("-inf"), tl.float32)
        total_l = tl.zeros((ROWS,), tl.float32)
        total = tl.zeros((ROWS, DIM), tl.float32)
        for begin in range(low // RANGE * RANGE, last, RANGE):
            acc, m, l = _range(
                queries,
                table,
                keys_at,
                values_at,
                tl.maximum(begin, low // KEYS * KEYS),
                tl.minimum(begin + RANGE, last),
                last,
                seen,
                window,
                head,
                dim,
                ROWS,
                DIM,
                PAGE,
                KEYS,
                F16,
            )
            total, total_m, total_l = _join(total, total_m, total_l, acc, m, l)
        total /= total_l[:, None]
        to = row * heads + query
    tl.store(out + to[:, None] * dim + d[None, :], total, mask=inside)


@triton.jit
def _join_ranges(
    parts,
    maxima,
    sums,
    out,
    segments,
    owner,
    heads,
    dim,
    all_rows,
    window,
    ranges,
    RANGE: tl.constexpr,
    DIM: tl.constexpr,
):
    row, head = tl.program_id(0), tl.program_id(1)
    segment = tl.load(owner + row)
    first = tl.load(segments + segment * 4)
    seen = tl.load(segments + segment * 4 + 2) + row - first
    d = tl.arange(0, DIM)
    one = tl.arange(0, 1)
    total_m = tl.full((1,), float("-inf"), tl.float32)
    total_l = tl.zeros((1,), tl.float32)
    total = tl.zeros((1, DIM), tl.float32)
    for number in range(tl.maximum(seen + 1 - window, 0) // RANGE, seen // RANGE + 1):
        at = (number % ranges) * all_rows * heads + row.to(tl.int64) * heads + head
        acc = tl.load(parts + at * dim + d, mask=d < dim, other=0.0)[None, :]
        m, l = tl.load(maxima + at + one), tl.load(sums + at + one)
        total, total_m, total_l = _join(total, total_m, total_l, acc, m, l)
    to = out + (row * heads + head) * dim + d
    tl.store(to[None, :], total / total_l[:, None], mask=(d < dim)[None, :])


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, state: Any, step: Step, scale: float
) -> torch.Tensor:
    """Attend q [T, H, D] after storing k and v [T, Hkv, D] in the state -> f32 [T, H, D]."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    tables, state = tables_of(step, q.device), pages_of(state)
    rows, heads, dim = q.shape
    kv_heads = k.shape[1]
    table = tables.of_pages(state)
    shared = {
        "DIM": max(16, triton.next_power_of_2(dim)), "PAGE": PAGE, "F16": state.dtype == "f16"
    }  # fmt: skip
    height = min(SHAPES.written, triton.next_power_of_2(tables.longest))
    written = tables.tiles_of(height)
    _append[(len(written), kv_heads)](
        k,
        v,
        table,
        table.shape[1],
        written,
        state.keys_at,
        state.values_at,
        dim,
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        ROWS=height,
        **shared,
    )
    group = heads // kv_heads
    small, large = SHAPES.queries[state.dtype]
    tile = small if tables.longest * group <= small else large
    while tile < group:
        tile *= 2
    tiles = tables.tiles_of(tile // group)
    window = state.window or ALL
    ranges = min(triton.cdiv(tables.end, RANGE), (window + tile) // RANGE + 2)  # of a tile
    split = (
        ranges > 1
        and len(tiles) * kv_heads < SHAPES.programs
        and 4 * ranges * q.numel() <= SPLIT_BYTES
    )
    shape = (ranges, rows, heads, dim) if split else (rows, heads, dim)
    out = torch.empty(shape, dtype=torch.float32, device=q.device)
    maxima, sums = torch.empty((2, *shape[:-1]), dtype=torch.float32, device=q.device)
    grid = (len(tiles), kv_heads, ranges if split else 1)
    launch(
        _attend,
        "attend",
        f"{shared['DIM']} {tile}",
        SHAPES.attend,
        lambda _: grid,
        q,
        out,
        maxima,
        sums,
        tiles,
        table,
        table.shape[1],
        state.keys_at,
        state.values_at,
        q.stride(0),
        q.stride(1),
        heads,
        dim,
        scale,
        rows,
        window,
        ranges,
        GROUP=group,
        ROWS=tile,
        RANGE=RANGE,
        KEYS=SHAPES.keys[state.dtype],
        SPLIT=split,
        **shared,
    )
    return _joined(out, maxima, sums, tables, window) if split else out


def _joined(
    parts: torch.Tensor, maxima: torch.Tensor, sums: torch.Tensor, tables: Any, window: int
) -> torch.Tensor:
    ranges, rows, heads, dim = parts.shape
    out = torch.empty((rows, heads, dim), dtype=torch.float32, device=parts.device)
    _join_ranges[(rows, heads)](
        parts,
        maxima,
        sums,
        out,
        tables.segments,
        tables.owner,
        heads,
        dim,
        rows,
        window,
        ranges,
        RANGE=RANGE,
        DIM=max(16, triton.next_power_of_2(dim)),
    )
    return out
