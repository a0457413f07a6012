"""Kernels that draw tokens from logits, launched by `sampling.py`.

`params` are f64 [n, 8], one line for each token to draw, in the order of PARAMS; `tokens` i32 [n]
are ids, or -1 for what is left to the host. Every sum is in f64 and in a fixed order, so the same
draw gives the same token in any batch. A weight is that of the softmax without its denominator:
1 for the likeliest token.
"""

from __future__ import annotations

import triton
import triton.language as tl

PARAMS = ("row", "valid", "temperature", "top_k", "top_p", "min_p", "share", "")
FIELDS = tl.constexpr(len(PARAMS))
ROW, VALID, TEMPERATURE, TOP_K = (tl.constexpr(i) for i in range(4))
TOP_P, MIN_P, SHARE = (tl.constexpr(i) for i in range(4, 7))
NO_ID = tl.constexpr(2**31 - 1)
EMPTY = tl.constexpr(-(2**63))  # an entry of a list without a score
VARYING = ["rows", "first"]  # kernels are not recompiled for another number of sequences


@triton.jit
def rows_of(logits, params, g, inside, stride):
    """Return where rows begin, and how many of their ids count, none if outside: [rows, 1]."""
    row = tl.load(params + g * FIELDS + ROW, mask=inside, other=0.0).to(tl.int64)
    valid = tl.load(params + g * FIELDS + VALID, mask=inside, other=0.0).to(tl.int32)
    return (logits + row * stride)[:, None], valid[:, None]


@triton.jit
def scores_of(row, valid, ids):
    """Load scores of some ids: f32 [rows, ids]; -inf where there are none, +inf for NaN."""
    x = tl.load(row + ids, mask=ids < valid, other=float("-inf"))
    return tl.where(x != x, float("inf"), x)


@triton.jit
def weights_of(x, params, tops, g, inside, LEAST: tl.constexpr):
    """Return weights of scores [rows, ids], in f32 as on the host; LEAST: min-p zeroes some."""
    top = tl.load(tops + g, mask=inside, other=0.0)
    temperature = tl.load(params + g * FIELDS + TEMPERATURE, mask=inside, other=1.0)
    weights = tl.exp(tl.div_rn(x - top[:, None], temperature.to(tl.float32)[:, None]))
    if LEAST:
        least = tl.load(params + g * FIELDS + MIN_P, mask=inside, other=0.0).to(tl.float32)
        weights = tl.where(weights < least[:, None], 0.0, weights)
    return weights.to(tl.float64)


@triton.jit
def passing(weights, amount, N: tl.constexpr):
    """Return where the running sum of weights [rows, N] passes the amounts, and what is left.

    By rounding an amount may be the whole sum or more: then it is the last entry with any weight.
    """
    k = tl.arange(0, N)[None, :]
    sums = tl.cumsum(weights, axis=1)
    whole = tl.max(sums, axis=1)
    below = (whole.to(tl.int64, bitcast=True) - 1).to(tl.float64, bitcast=True)
    passed = (sums > tl.minimum(amount, below)[:, None]) & (weights > 0)
    at = tl.min(tl.where(passed, k, N - 1), axis=1)
    return at, amount - tl.sum(tl.where(k == at[:, None] - 1, sums, 0.0), axis=1)


@triton.jit(do_not_specialize=VARYING)
def best_of_blocks(
    logits, params, best, at, rows, stride, blocks, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Find the highest score of each block and its lowest id: f32, i32 [n, blocks]."""
    block, g = tl.program_id(0), tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = g < rows
    ids = (block * BLOCK + tl.arange(0, BLOCK))[None, :]
    row, valid = rows_of(logits, params, g, inside, stride)
    x = scores_of(row, valid, ids)
    top = tl.max(x, axis=1)
    lowest = tl.min(tl.where(x == top[:, None], ids, NO_ID), axis=1)
    tl.store(best + g * blocks + block, top, mask=inside)
    tl.store(at + g * blocks + block, lowest, mask=inside)


@triton.jit(do_not_specialize=VARYING)
def best_of_rows(best, at, tops, tokens, rows, blocks, ROWS: tl.constexpr, BLOCKS: tl.constexpr):
    """Find the highest score of each row and its lowest id; -1 if it is not finite."""
    g, k = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCKS)[None, :]
    inside = g < rows
    mask = inside[:, None] & (k < blocks)
    x = tl.load(best + g[:, None] * blocks + k, mask=mask, other=float("-inf"))
    ids = tl.load(at + g[:, None] * blocks + k, mask=mask, other=NO_ID)
    top = tl.max(x, axis=1)
    lowest = tl.min(tl.where(x == top[:, None], ids, NO_ID), axis=1)
    usable = (top > float("-inf")) & (top < float("inf"))
    tl.store(tops + g, top, mask=inside)
    tl.store(tokens + g, tl.where(usable, lowest, -1), mask=inside)


@triton.jit(do_not_specialize=VARYING)
def sums_of_blocks(
    logits,
    params,
    tops,
    sums,
    rows,
    first,
    stride,
    blocks,
    LEAST: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum the weights of each block of ids: f64 [rows, blocks]."""
    block, r = tl.program_id(0), tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = r < rows
    ids = (block * BLOCK + tl.arange(0, BLOCK))[None, :]
    row, valid = rows_of(logits, params, first + r, inside, stride)
    x = scores_of(row, valid, ids)
    weights = weights_of(x, params, tops, first + r, inside, LEAST)
    tl.store(sums + r * blocks + block, tl.sum(weights, axis=1), mask=inside)


@triton.jit(do_not_specialize=VARYING)
def draw_from_all(
    logits,
    params,
    tops,
    sums,
    tokens,
    rows,
    first,
    stride,
    blocks,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Draw tokens from whole rows: the block where the running sum passes, then the id."""
    r, k = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCKS)[None, :]
    inside, g = r < rows, first + r
    mask = inside[:, None] & (k < blocks)
    block_sums = tl.load(sums + r[:, None] * blocks + k, mask=mask, other=0.0)
    share = tl.load(params + g * FIELDS + SHARE, mask=inside, other=0.0)
    block, rest = passing(block_sums, share * tl.sum(block_sums, axis=1), BLOCKS)
    ids = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    row, valid = rows_of(logits, params, g, inside, stride)
    x = scores_of(row, valid, ids)
    at, _ = passing(weights_of(x, params, tops, g, inside, True), rest, BLOCK)
    usable = tl.load(tokens + g, mask=inside, other=-1) >= 0
    tl.store(tokens + g, tl.where(usable, block * BLOCK + at, -1), mask=inside)


@triton.jit(do_not_specialize=VARYING)
def best_of_columns(
    logits, params, best, rows, first, stride, columns, depth, ROWS: tl.constexpr, N: tl.constexpr
):
    """Fold a row into `depth` lines; store each column's highest: [rows, columns].

    For any k columns, at least k scores of the row reach the lowest of their maxima.
    """
    r = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = r < rows
    column = (tl.program_id(0) * N + tl.arange(0, N))[None, :]
    row, valid = rows_of(logits, params, first + r, inside, stride)
    top = tl.full((ROWS, N), float("-inf"), tl.float32)
    for line in range(depth):
        top = tl.maximum(top, scores_of(row, valid, line * columns + column))
    tl.store(best + r[:, None] * columns + column, top, mask=inside[:, None])


@triton.jit(do_not_specialize=VARYING)
def list_scores(
    logits, params, bounds, counts, keys, first, stride, CAPACITY: tl.constexpr, BLOCK: tl.constexpr
):
    """List the scores of a row from its bound up, as keys: i64 [rows, CAPACITY], in any order.

    A key is the score's bits, then the id: the larger, the likelier; equal scores are ordered by
    id. `counts` i32 [rows] says how many there are, including those that did not fit.
    """
    r, ids = tl.program_id(1), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(params + (first + r) * FIELDS + ROW).to(tl.int64)
    valid = tl.load(params + (first + r) * FIELDS + VALID).to(tl.int32)
    x = tl.load(logits + row * stride + ids, mask=ids < valid, other=float("-inf"))
    hits = (x >= tl.load(bounds + r)) & (x < float("inf"))
    one = tl.where(hits, 1, 0)
    place = tl.atomic_add(counts + r, tl.sum(one, axis=0), sem="relaxed") + tl.cumsum(one, 0) - 1
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)  # also for -0
    ordered = tl.where(bits < 0, bits ^ NO_ID, bits).to(tl.int64)
    key = (ordered << 32) | (ids ^ NO_ID).to(tl.int64)
    tl.store(keys + r * CAPACITY + place, key, mask=hits & (place < CAPACITY))


@triton.jit(do_not_specialize=VARYING)
def draw_from_list(
    params,
    tops,
    blocks_sums,
    counts,
    keys,
    tokens,
    rows,
    first,
    blocks,
    CAPACITY: tl.constexpr,
    NUCLEUS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    K: tl.constexpr,
):
    """Draw tokens from the K likeliest of each row, likeliest first: keys i64 [rows, K].

    NUCLEUS: top-p is a share of the whole row's weight, the sum of `blocks_sums` f64 [rows,
    blocks], and -1 marks a row whose nucleus may extend past the list. Otherwise it is a share of
    the top-k.
    """
    r, k = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, K)[None, :]
    inside, g = r < rows, first + r
    line = params + g * FIELDS
    key = tl.load(keys + r[:, None] * K + k, mask=inside[:, None], other=EMPTY)
    ordered = (key >> 32).to(tl.int32)
    score = tl.where(ordered < 0, ordered ^ NO_ID, ordered).to(tl.float32, bitcast=True)
    top = tl.load(tops + g, mask=inside, other=0.0).to(tl.float64)
    temperature = tl.load(line + TEMPERATURE, mask=inside, other=1.0)
    weights = tl.exp((score.to(tl.float64) - top[:, None]) / temperature[:, None])
    weights = tl.where(key != EMPTY, weights, 0.0)
    if not NUCLEUS:
        top_k = tl.load(line + TOP_K, mask=inside, other=1.0).to(tl.int32)
        weights = tl.where(k < top_k[:, None], weights, 0.0)
    sums = tl.cumsum(weights, axis=1)
    whole = tl.max(sums, axis=1)
    total = whole
    if NUCLEUS:
        b = tl.arange(0, BLOCKS)[None, :]
        at, there = r[:, None] * blocks + b, inside[:, None] & (b < blocks)
        total = tl.sum(tl.load(blocks_sums + at, mask=there, other=0.0), axis=1)
    amount = tl.load(line + TOP_P, mask=inside, other=0.0) * total
    least = tl.load(line + MIN_P, mask=inside, other=0.0)
    keep = (sums - weights < amount[:, None]) & (weights >= least[:, None])
    count = tl.maximum(tl.sum(tl.where(keep, 1, 0), axis=1), 1)
    candidates = tl.where(k < count[:, None], weights, 0.0)
    share = tl.load(line + SHARE, mask=inside, other=0.0)
    at, _ = passing(candidates, share * tl.sum(candidates, axis=1), K)
    ids = tl.where(k == at[:, None], (key & NO_ID).to(tl.int32) ^ NO_ID, 0)
    usable = tl.load(tokens + g, mask=inside, other=-1) >= 0
    usable &= tl.load(counts + r, mask=inside, other=0) <= CAPACITY
    if NUCLEUS:
        last = tl.sum(tl.where(k == K - 1, weights, 0.0), axis=1)
        valid = tl.load(line + VALID, mask=inside, other=0.0)
        listed = tl.sum(tl.where(key != EMPTY, 1, 0), axis=1)
        usable &= (whole >= amount) | (last < least) | (listed < K) | (valid <= K)
    tl.store(tokens + g, tl.where(usable, tl.sum(ids, axis=1), -1), mask=inside)
