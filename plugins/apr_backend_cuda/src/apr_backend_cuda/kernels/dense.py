"""Products of many tokens: decode a weight to f16 once, then a plain matrix product.

The factors are those that `linear.py` multiplies, in the same order of columns and the same parts.
Weights are decoded a slab of rows at a time, so that the decoded values stay in the cache.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl

from apr_backend_cuda.kernels.tiles import HALF, SHRINK, shrunk, tile
from apr_backend_cuda.launching.shapes import SHAPES, Candidate
from apr_backend_cuda.launching.tuning import launch
from apr_backend_cuda.weights.matrices import Matrix
from apr_backend_cuda.weights.planes import SUPERBLOCK


@triton.jit
def _shrink(x, out, tokens, cols, width, x_row, TOKENS: tl.constexpr, N: tl.constexpr):
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    k = tl.program_id(1) * N + tl.arange(0, N)
    there = (token < tokens)[:, None]
    value = tl.load(
        x + token[:, None] * x_row + k[None, :], mask=there & (k < cols)[None, :], other=0.0
    )
    at = out + token[:, None] * width + k[None, :]
    tl.store(at, shrunk(value), mask=there & (k < width)[None, :])


@triton.jit
def _decode(
    out,
    first,
    count,
    codes,
    upper,
    scales,
    minima,
    supers,
    codebook,
    blocks,
    cols,
    groups,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    MINIMA: tl.constexpr,
    ROWS: tl.constexpr,
):
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    block, inside = tl.program_id(1), r < count
    rows = (first + r).to(tl.int64)
    for half in tl.static_range(2):
        w = tile(
            codes,
            upper,
            scales,
            minima,
            supers,
            codebook,
            rows,
            inside,
            blocks,
            cols,
            groups,
            block,
            half,
            KIND,
            GROUP,
            ZERO,
            MINIMA,
            ROWS,
        )
        k = block * 256 + half * HALF + tl.arange(0, HALF)
        at = out + r.to(tl.int64)[:, None] * (blocks * 256) + k[None, :]
        tl.store(at, w.to(tl.float16), mask=inside[:, None])


@triton.jit
def _sum(w_rows, x_rows, start, stop, ROWS: tl.constexpr, TOKENS: tl.constexpr, K: tl.constexpr):
    """Return the sum of products over columns [start, stop)."""
    acc = tl.zeros((ROWS, TOKENS), tl.float32)
    for first in range(start, stop, K):
        k = first + tl.arange(0, K)
        acc = tl.dot(tl.load(w_rows + k[None, :]), tl.load(x_rows + k[:, None]), acc)
    return acc


@triton.jit
def _matmul(
    x,
    w,
    out,
    tokens,
    count,
    n_rows,
    width,
    per_part,
    parts,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    K: tl.constexpr,
    TOGETHER: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Write out [tokens, :count] = x w^T; programs that run together share tiles of both."""
    tall, wide = tl.cdiv(count, ROWS), tl.cdiv(tokens, TOKENS)
    group = tl.program_id(0) // (TOGETHER * wide)
    size = tl.minimum(tall - group * TOGETHER, TOGETHER)
    within = tl.program_id(0) % (TOGETHER * wide)
    r = (group * TOGETHER + within % size) * ROWS + tl.arange(0, ROWS)
    token = within // size * TOKENS + tl.arange(0, TOKENS)
    w_rows = w + tl.where(r < count, r, 0).to(tl.int64)[:, None] * width
    x_rows = x + tl.where(token < tokens, token, 0).to(tl.int64)[None, :] * width
    if WHOLE:
        total = _sum(w_rows, x_rows, 0, width, ROWS, TOKENS, K)
    else:
        total = tl.zeros((ROWS, TOKENS), tl.float32)
        for part in range(parts):
            stop = tl.minimum((part + 1) * per_part, width)
            total += _sum(w_rows, x_rows, part * per_part, stop, ROWS, TOKENS, K)
    to = out + token.to(tl.int64)[None, :] * n_rows + r[:, None]
    tl.store(to, total * SHRINK, mask=(r < count)[:, None] & (token < tokens)[None, :])


def multiply_many(x: torch.Tensor, m: Matrix, parts: int, per_part: int) -> torch.Tensor:
    """Return x [T, in] times a packed matrix [out, in] -> [T, out].

    Sums are split into parts of `per_part` superblocks.
    """
    tokens, width = x.shape[0], m.blocks * SUPERBLOCK
    shrunken = _shrunken(x, width)
    out = torch.empty((tokens, m.rows), dtype=torch.float32, device=x.device)
    slab = max(SHAPES.slab // width // 128 * 128, 128)
    decoded = torch.empty((min(slab, m.rows), width), dtype=torch.float16, device=x.device)
    height = min(SHAPES.weight_rows, triton.next_power_of_2(m.rows))
    for first in range(0, m.rows, slab):
        count = min(slab, m.rows - first)
        _decode[(triton.cdiv(count, height), m.blocks)](
            decoded, first, count, **m.arguments(), ROWS=height
        )
        launch(
            _matmul,
            "matmul",
            f"{_size(tokens)} {'whole' if parts == 1 else 'parts'}",
            SHAPES.matmul,
            partial(_grid, count, tokens),
            shrunken,
            decoded,
            out[:, first:],
            tokens,
            count,
            m.rows,
            width,
            per_part * SUPERBLOCK,
            parts,
            WHOLE=parts == 1,
        )
    return out


def _grid(rows: int, tokens: int, size: Candidate) -> tuple[int, ...]:
    """Return the grid of programs of `_matmul`."""
    return (triton.cdiv(rows, size["ROWS"]) * triton.cdiv(tokens, size["TOKENS"]),)


def _shrunken(x: torch.Tensor, width: int) -> torch.Tensor:
    """Return x in f16, scaled down, padded with zeros to a width: [T, width]."""
    tokens, cols = x.shape
    out = torch.empty((tokens, width), dtype=torch.float16, device=x.device)
    shape = {"TOKENS": SHAPES.shrunk[0], "N": min(SHAPES.shrunk[1], triton.next_power_of_2(width))}
    grid = (triton.cdiv(tokens, shape["TOKENS"]), triton.cdiv(width, shape["N"]))
    _shrink[grid](x, out, tokens, cols, width, x.stride(0), **shape)
    return out


def _size(count: int) -> str:
    """Return a key for token counts that share one tuning choice."""
    return "large" if count >= 2048 else "small"
