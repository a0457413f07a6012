"""Products with weights, and rows of embeddings.

The weight's rows are the matrix units' rows, tokens their columns: W x^T. So one kernel serves one
token and many, weights are decoded in registers once for all tokens of a tile, and a token's sums
are added in the same order in any batch. Where a matrix has too few rows to fill the device, its
columns are split among programs; the number of parts depends on its shape and never on the number
of tokens. Parts are added in order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from apr_backend_cuda.kernels.dense import multiply_many
from apr_backend_cuda.kernels.tiles import HALF, products, tile
from apr_backend_cuda.kernels.together import alike, multiply_together
from apr_backend_cuda.launching.shapes import SHAPES
from apr_backend_cuda.launching.tables import PACKED
from apr_backend_cuda.launching.tuning import launch
from apr_backend_cuda.weights.matrices import Matrix, as_matrix


@triton.jit
def _linear(
    x,
    out,
    tokens,
    x_stride,
    n_rows,
    per_part,
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
    TOKENS: tl.constexpr,
):
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    rows = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    inside = rows < n_rows
    part = tl.program_id(2)
    sums = products(
        x,
        x_stride,
        token,
        tokens,
        part * per_part,
        tl.minimum((part + 1) * per_part, blocks),
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
        KIND,
        GROUP,
        ZERO,
        MINIMA,
        ROWS,
        TOKENS,
    )
    to = out + (part * tokens + token).to(tl.int64)[None, :] * n_rows + rows[:, None]
    tl.store(to, sums, mask=inside[:, None] & (token < tokens)[None, :])


@triton.jit
def _add_parts(parts, out, count, size, N: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    total = tl.zeros((N,), tl.float32)
    for _ in range(count):
        total += tl.load(parts + at, mask=at < size, other=0.0)
        parts += size
    tl.store(out + at, total, mask=at < size)


@triton.jit
def _embed(
    ids,
    out,
    tokens,
    n_rows,
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
    TOKENS: tl.constexpr,
):
    token, block = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS), tl.program_id(1)
    rows = tl.load(ids + token, mask=token < tokens, other=-1).to(tl.int64)
    inside = (rows >= 0) & (rows < n_rows)
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
            TOKENS,
        )
        k = block * 256 + half * HALF + tl.arange(0, HALF)
        to = out + token.to(tl.int64)[:, None] * cols + k[None, :]
        tl.store(to, w, mask=(token < tokens)[:, None] & (k < cols)[None, :])


def linear(x: torch.Tensor, w: Any) -> torch.Tensor:
    """Return x [T, in] times a weight [out, in] -> f32 [T, out]."""
    return multiply(x, as_matrix(w.data))


def linears(
    x: torch.Tensor, ws: tuple[Any, ...], biases: tuple[torch.Tensor | None, ...] | None = None
) -> tuple[torch.Tensor, ...]:
    """Return products with one input, plus biases. Products of a kind share one array."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    matrices = [as_matrix(w.data) for w in ws]
    outputs: dict[int, torch.Tensor] = {}
    for places in alike(matrices):
        own = [matrices[place] for place in places]
        outputs |= dict(zip(places, _of_a_kind(x, own), strict=True))
    pairs = zip(range(len(ws)), biases or (None,) * len(ws), strict=True)
    return tuple(outputs[i] if bias is None else outputs[i] + bias for i, bias in pairs)


def multiply(x: torch.Tensor, m: Matrix) -> torch.Tensor:
    """Return x [T, in] times a matrix [out, in] -> f32 [T, out]."""
    return _alone(x if x.stride(-1) == 1 else x.contiguous(), m, *_parts(m.rows, m.blocks))


def _of_a_kind(x: torch.Tensor, matrices: list[Matrix]) -> list[torch.Tensor]:
    """Return products of matrices that share a launch; all of them set the number of parts."""
    rows = [m.rows for m in matrices]
    parts, per_part = _parts(sum(rows), matrices[0].blocks)
    if len(matrices) == 1 or _is_many(x, matrices[0]):
        return [_alone(x, m, parts, per_part) for m in matrices]
    out = multiply_together(x, matrices, _width(x), parts, per_part)
    return list(torch.split(out[0] if parts == 1 else _added(out), rows, dim=1))


def _alone(x: torch.Tensor, m: Matrix, parts: int, per_part: int) -> torch.Tensor:
    tokens, width = x.shape[0], _width(x)
    if _is_many(x, m):
        return multiply_many(x, m, parts, per_part)
    out = torch.empty((parts, tokens, m.rows), dtype=torch.float32, device=x.device)
    launch(
        _linear,
        "linear",
        f"{m.kind} {width}",
        SHAPES.linear_of(m.rows),
        lambda c: (triton.cdiv(tokens, width), triton.cdiv(m.rows, c["ROWS"]), parts),
        x,
        out,
        tokens,
        x.stride(0),
        m.rows,
        per_part,
        **m.arguments(),
        TOKENS=width,
    )
    return out[0] if parts == 1 else _added(out)


def _is_many(x: torch.Tensor, m: Matrix) -> bool:
    """Return whether there are so many tokens that the weight is decoded first."""
    return x.shape[0] >= SHAPES.many and m.kind in PACKED


def _width(x: torch.Tensor) -> int:
    """Return the tokens per tile: the smallest size that holds all."""
    return next((t for t in SHAPES.tokens if t >= x.shape[0]), SHAPES.tokens[-1])


def _parts(rows: int, blocks: int) -> tuple[int, int]:
    """Return (parts, superblocks per part) of a row: enough programs to fill the device."""
    programs = triton.cdiv(rows, SHAPES.weight_rows)
    wanted = min(SHAPES.parts, blocks, max(1, SHAPES.programs // programs))
    each = triton.cdiv(blocks, wanted)
    return triton.cdiv(blocks, each), each


def _added(parts: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(parts[0])
    _add_parts[(triton.cdiv(out.numel(), 1024),)](parts, out, parts.shape[0], out.numel(), N=1024)
    return out


def embed(ids: torch.Tensor, w: Any) -> torch.Tensor:
    """Return rows of a weight: ids [T] -> f32 [T, D]."""
    m = as_matrix(w.data)
    tokens = ids.shape[0]
    out = torch.empty((tokens, m.cols), dtype=torch.float32, device=ids.device)
    width = min(SHAPES.tokens[-1], triton.next_power_of_2(tokens))
    _embed[(triton.cdiv(tokens, width), m.blocks)](
        ids.contiguous(), out, tokens, m.rows, **m.arguments(), TOKENS=width
    )
    return out
