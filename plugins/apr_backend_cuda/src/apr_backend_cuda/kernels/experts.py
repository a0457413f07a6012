"""The ops of a mixture of experts: choosing experts, products with theirs, and their sum.

Which pairs of row and expert there are is read on the device, in a grid that depends on shapes
alone, so that a recorded step routes anew. A program multiplies a tile of one expert's matrix by
all rows that chose it; most programs of a decode step find none and end.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from apr_backend_cuda.kernels.rows import sigmoid_of
from apr_backend_cuda.kernels.tiles import products
from apr_backend_cuda.launching.shapes import SHAPES
from apr_backend_cuda.launching.tuning import launch
from apr_backend_cuda.weights.matrices import as_matrix


@triton.jit
def _route(logits, ids, weights, stride, experts, k, N: tl.constexpr, K: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    e, j = tl.arange(0, N), tl.arange(0, K)
    left = tl.load(logits + row * stride + e, mask=e < experts, other=-float("inf"))
    top, chosen = tl.full((K,), -float("inf"), tl.float32), tl.zeros((K,), tl.int32)
    for i in range(k):
        best = tl.minimum(tl.argmax(left, axis=0), experts - 1)  # of equal ones the first
        top = tl.where(j == i, tl.max(left, axis=0), top)
        chosen = tl.where(j == i, best, chosen)
        left = tl.where(e == best, -float("inf"), left)
    share = tl.exp(top - tl.max(top, axis=0))
    share = tl.where(j < k, share / tl.sum(share, axis=0), 0.0)
    tl.store(ids + row * k + j, chosen.to(tl.int64), mask=j < k)
    tl.store(weights + row * k + j, share, mask=j < k)


@triton.jit
def _pairs_of(ids, lists, counts, pairs, N: tl.constexpr):
    """List the pairs of an expert, in order, and count them."""
    e, total = tl.program_id(0), 0
    for first in range(0, pairs, N):
        pair = first + tl.arange(0, N)
        is_its = tl.load(ids + pair, mask=pair < pairs, other=-1) == e
        mine = is_its.to(tl.int32)
        at = total + tl.cumsum(mine, 0) - mine
        tl.store(lists + e.to(tl.int64) * pairs + at, pair, mask=is_its)
        total += tl.sum(mine, axis=0)
    tl.store(counts + e, total)


@triton.jit
def _expert_products(
    x,
    out,
    lists,
    counts,
    x_stride,
    x_rows,
    pairs,
    size,
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
    e = tl.program_id(1).to(tl.int64)
    local = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside, count = local < size, tl.load(counts + e)
    for first in range(0, count, TOKENS):
        t = first + tl.arange(0, TOKENS)
        pair = tl.load(lists + e * pairs + t, mask=t < count, other=0)
        row = tl.where(t < count, pair // (pairs // x_rows), x_rows)  # x_rows: none
        sums = products(
            x,
            x_stride,
            row,
            x_rows,
            0,
            blocks,
            codes,
            upper,
            scales,
            minima,
            supers,
            codebook,
            e * size + local,
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
        to = out + pair.to(tl.int64)[None, :] * size + local[:, None]
        tl.store(to, sums, mask=inside[:, None] & (t < count)[None, :])


@triton.jit
def _mix(y, weights, shared, gate, out, k, cols, size, N: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    inside, row, c = i < size, i // cols, i % cols
    total = tl.zeros((N,), tl.float32)
    for j in range(k):
        value = tl.load(y + (row * k + j) * cols + c, mask=inside, other=0.0)
        total += tl.load(weights + row * k + j, mask=inside, other=0.0) * value
    own = tl.load(shared + i, mask=inside, other=0.0)
    own *= sigmoid_of(tl.load(gate + row, mask=inside, other=0.0))
    tl.store(out + i, total + own, mask=inside)


def route(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids of the k likeliest experts, int64 [T, k], and their weights, f32 [T, k]."""
    rows, experts = logits.shape
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    ids = torch.empty((rows, k), dtype=torch.int64, device=logits.device)
    weights = torch.empty((rows, k), dtype=torch.float32, device=logits.device)
    width = {"N": triton.next_power_of_2(experts), "K": triton.next_power_of_2(k)}
    _route[(rows,)](logits, ids, weights, logits.stride(0), experts, k, **width)
    return ids, weights


def expert_linear(x: torch.Tensor, ids: torch.Tensor, w: Any) -> torch.Tensor:
    """Return products of x [T, in] or [T, k, in] with the experts ids [T, k]: f32 [T, k, out]."""
    m, (experts, size, _), (rows, k) = as_matrix(w.data), w.shape, ids.shape
    x = x.reshape(-1, x.shape[-1])
    x, ids = x if x.stride(-1) == 1 else x.contiguous(), ids.contiguous()
    pairs = rows * k
    lists = torch.empty((experts, pairs), dtype=torch.int32, device=x.device)
    counts = torch.empty(experts, dtype=torch.int32, device=x.device)
    out = torch.empty((rows, k, size), dtype=torch.float32, device=x.device)
    _pairs_of[(experts,)](ids, lists, counts, pairs, N=min(1024, triton.next_power_of_2(pairs)))
    tokens = next((t for t in SHAPES.tokens if t * experts >= pairs), SHAPES.tokens[-1])
    launch(
        _expert_products,
        "linear",  # the same work for each tile, and the same choices
        f"{m.kind} {tokens}",
        SHAPES.linear_of(size),
        lambda c: (triton.cdiv(size, c["ROWS"]), experts),
        x,
        out,
        lists,
        counts,
        x.stride(0),
        x.shape[0],
        pairs,
        size,
        **m.arguments(),
        TOKENS=tokens,
    )
    return out


def mix_experts(
    y: torch.Tensor, weights: torch.Tensor, shared: torch.Tensor, gate: torch.Tensor
) -> torch.Tensor:
    """Return the sum of weights [T, k] * y [T, k, N], plus sigmoid(gate [T, 1]) * shared [T, N]."""
    y, weights, shared, gate = (each.contiguous() for each in (y, weights, shared, gate))
    out, n = torch.empty_like(shared), SHAPES.stretch
    grid = (triton.cdiv(out.numel(), n),)
    _mix[grid](y, weights, shared, gate, out, weights.shape[1], out.shape[1], out.numel(), N=n)
    return out
