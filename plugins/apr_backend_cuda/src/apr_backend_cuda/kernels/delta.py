"""Ops of the gated delta net: decays and the delta rule.

With one token per sequence the recurrence runs with its state in registers, read and written once.
Prompts run the chunked form (Yang et al., "Gated Delta Networks", 2024): chunks of 64 on the grid
of absolute positions, first all chunks in parallel (`_prepare`), then one after the other
(`_scan`). State, decays and all sums are float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from apr_backend_cuda.kernels.rows import sigmoid_of, softplus_of, tile_shape
from apr_backend_cuda.kernels.tiles import NEARLY_F32, pointer
from apr_backend_cuda.launching.shapes import SHAPES
from apr_backend_cuda.run.steps import Tables, tables_of
from apr_backend_cuda.states.device import arrays_of
from apr_core.plugin import Step

CHUNK = 64
EPS = 1e-6


@triton.jit
def _gates(
    a,
    b,
    A_log,
    dt_bias,
    decay,
    beta,
    rows,
    heads,
    a_row,
    b_row,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    h = tl.arange(0, WIDTH)
    inside = (row < rows)[:, None] & (h < heads)[None, :]
    bias = tl.load(dt_bias + h, mask=h < heads, other=0.0)
    rate = tl.exp(tl.load(A_log + h, mask=h < heads, other=0.0))
    x = tl.load(a + row[:, None] * a_row + h[None, :], mask=inside, other=0.0) + bias[None, :]
    to = row[:, None] * heads + h[None, :]
    tl.store(decay + to, -rate[None, :] * softplus_of(x), mask=inside)
    gate = tl.load(b + row[:, None] * b_row + h[None, :], mask=inside, other=0.0)
    tl.store(beta + to, sigmoid_of(gate), mask=inside)


def delta_gates(
    a: torch.Tensor, b: torch.Tensor, A_log: torch.Tensor, dt_bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log decay and beta of a, b [T, Hv]."""
    a, b = (x if x.stride(-1) == 1 else x.contiguous() for x in (a, b))
    decay, beta = torch.empty((2, *a.shape), dtype=torch.float32, device=a.device)
    shape = tile_shape(*a.shape)
    _gates[(triton.cdiv(a.shape[0], shape["ROWS"]),)](
        a, b, A_log, dt_bias, decay, beta, *a.shape, a.stride(0), b.stride(0), **shape
    )
    return decay, beta


@triton.jit
def _token(
    q,
    k,
    v,
    decay,
    beta,
    table,
    segments,
    out,
    heads,
    key_dim,
    value_dim,
    group,
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    decay_row,
    beta_row,
    eps,
    scale,
    K: tl.constexpr,
    V: tl.constexpr,
):
    """Run the recurrence over a segment's rows: a head, some columns of its state [Dk, V]."""
    segment, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, count = tl.load(segments + segment * 4), tl.load(segments + segment * 4 + 1)
    i, j = tl.arange(0, K), part * V + tl.arange(0, V)
    inside = (i < key_dim)[:, None] & (j < value_dim)[None, :]
    slot = tl.load(segments + segment * 4 + 3)
    state = pointer(tl.load(table + slot), tl.float32)
    state += head * key_dim * value_dim + i[:, None] * value_dim + j[None, :]
    S = tl.load(state, mask=inside, other=0.0)
    for row in range(first, first + count):
        key = tl.load(k + row * k_row + head // group * k_head + i, mask=i < key_dim, other=0.0)
        query = tl.load(q + row * q_row + head // group * q_head + i, mask=i < key_dim, other=0.0)
        key = key / tl.sqrt(tl.sum(key * key, axis=0) + eps)
        query = query / tl.sqrt(tl.sum(query * query, axis=0) + eps) * scale
        value = tl.load(v + row * v_row + head * v_head + j, mask=j < value_dim, other=0.0)
        S *= tl.exp(tl.load(decay + row * decay_row + head))
        read = tl.sum(S * key[:, None], axis=0)
        S += key[:, None] * ((value - read) * tl.load(beta + row * beta_row + head))[None, :]
        result = tl.sum(S * query[:, None], axis=0)
        tl.store(out + (row * heads + head) * value_dim + j, result, mask=j < value_dim)
    tl.store(state, S, mask=inside)


def gated_delta(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    state: Any,
    step: Step,
) -> torch.Tensor:
    """Run the gated delta rule: q, k [T, Hk, Dk], v, gates [T, Hv] -> f32 [T, Hv, Dv]."""
    q, k, v, log_decay, beta = (
        x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v, log_decay, beta)
    )
    tables = tables_of(step, q.device)
    run = _recurrent if tables.longest == 1 else _chunked
    return run(q, k, v, log_decay, beta, tables.of_arrays(arrays_of(state), "delta"), tables)


def _recurrent(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    table: torch.Tensor,
    tables: Tables,
) -> torch.Tensor:
    rows, heads, value_dim = v.shape
    key_dim = q.shape[-1]
    out = torch.empty((rows, heads, value_dim), dtype=torch.float32, device=v.device)
    width = min(SHAPES.columns[0], triton.next_power_of_2(value_dim))
    _token[(len(tables.step.segments), heads, triton.cdiv(value_dim, width))](
        q,
        k,
        v,
        log_decay,
        beta,
        table,
        tables.segments,
        out,
        heads,
        key_dim,
        value_dim,
        heads // q.shape[1],
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        log_decay.stride(0),
        beta.stride(0),
        EPS,
        key_dim**-0.5,
        K=triton.next_power_of_2(key_dim),
        V=width,
    )
    return out


@triton.jit
def _dot(a, b):
    return tl.dot(a, b, input_precision=NEARLY_F32)


@triton.jit
def _normed_rows(x, r, inside, row_stride, eps, K: tl.constexpr):
    """Return rows [C, K] of x, scaled to unit length."""
    at = (r * row_stride)[:, None] + tl.arange(0, K)[None, :]
    value = tl.load(x + at, mask=inside, other=0.0)
    return value / tl.sqrt(tl.sum(value * value, axis=1) + eps)[:, None]


@triton.jit
def _prepare(
    q,
    k,
    v,
    decay,
    beta,
    chunks,
    queries,
    keys,
    W,
    U,
    within,
    sums,
    heads,
    key_dim,
    value_dim,
    group,
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    decay_row,
    beta_row,
    eps,
    scale,
    C: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
):
    """Compute the parts of a chunk that do not depend on the state, for one head.

    Rows are stored in the order of heads. Barriers split the kernel into sections that load what
    they need, so that registers suffice.
    """
    chunk, head = tl.program_id(0), tl.program_id(1)
    first, count = tl.load(chunks + chunk * 8), tl.load(chunks + chunk * 8 + 1)
    r = tl.arange(0, C)
    valid = r < count
    start = first.to(tl.int64)
    place = start * heads + head  # of the chunk's first row
    i, j = tl.arange(0, K), tl.arange(0, V)
    in_keys = valid[:, None] & (i < key_dim)[None, :]
    to_keys = place * key_dim + (r * (heads * key_dim))[:, None] + i[None, :]
    k += start * k_row + head // group * k_head
    q += start * q_row + head // group * q_head
    b = tl.load(beta + start * beta_row + r * beta_row + head, mask=valid, other=0.0)
    g = tl.load(decay + start * decay_row + r * decay_row + head, mask=valid, other=0.0)
    c = tl.cumsum(g, axis=0)  # [C]
    tl.store(sums + place + r * heads, c, mask=valid)
    # mask the exponent, not the result: exp of a positive exponent outside may overflow
    lower = r[:, None] >= r[None, :]
    D = tl.exp(tl.where(lower, c[:, None] - c[None, :], float("-inf")))
    key = _normed_rows(k, r, in_keys, k_row, eps, K)
    tl.store(keys + to_keys, key, mask=in_keys)
    A = tl.where(r[:, None] > r[None, :], _dot(key * b[:, None], tl.trans(key)) * D, 0.0)
    query = _normed_rows(q, r, in_keys, q_row, eps, K) * scale
    tl.store(queries + to_keys, query, mask=in_keys)
    seen = _dot(query, tl.trans(key)) * D
    at = place * C + (r * (heads * C))[:, None] + r[None, :]
    tl.store(within + at, seen, mask=valid[:, None])
    tl.debug_barrier()
    X = tl.where(r[:, None] == r[None, :], 1.0, 0.0)  # becomes (1 + A)^-1, row by row
    for row in range(1, count):
        a = tl.sum(tl.where((r == row)[:, None], A, 0.0), axis=0)  # [C]
        new = tl.sum(a[:, None] * X, axis=0)
        X -= tl.where((r == row)[:, None], new[None, :], 0.0)
    tl.debug_barrier()
    key = _normed_rows(k, r, in_keys, k_row, eps, K)
    tl.store(W + to_keys, _dot(X, key * (b * tl.exp(c))[:, None]), mask=in_keys)
    tl.debug_barrier()
    in_values = valid[:, None] & (j < value_dim)[None, :]
    at = v + start * v_row + head * v_head + (r * v_row)[:, None] + j[None, :]
    value = tl.load(at, mask=in_values, other=0.0)
    to_values = place * value_dim + (r * (heads * value_dim))[:, None] + j[None, :]
    tl.store(U + to_values, _dot(X, value * b[:, None]), mask=in_values)


@triton.jit
def _scan(
    queries,
    keys,
    W,
    U,
    within,
    sums,
    chunks,
    starts,
    segments,
    table,
    out,
    heads,
    key_dim,
    value_dim,
    C: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
):
    """Run a segment's chunks one after the other: a head, some columns of its state [Dk, V]."""
    segment, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    i, j, r = tl.arange(0, K), part * V + tl.arange(0, V), tl.arange(0, C)
    inside = (i < key_dim)[:, None] & (j < value_dim)[None, :]
    slot = tl.load(segments + segment * 4 + 3)
    state = pointer(tl.load(table + slot), tl.float32)
    state += head * key_dim * value_dim + i[:, None] * value_dim + j[None, :]
    S = tl.load(state, mask=inside, other=0.0)
    for chunk in range(tl.load(starts + segment), tl.load(starts + segment + 1)):
        first, count = tl.load(chunks + chunk * 8), tl.load(chunks + chunk * 8 + 1)
        valid = r < count
        place = first.to(tl.int64) * heads + head  # of the chunk's first row
        in_keys = valid[:, None] & (i < key_dim)[None, :]
        in_values = valid[:, None] & (j < value_dim)[None, :]
        at_keys = (r * (heads * key_dim))[:, None] + i[None, :]
        at_values = (r * (heads * value_dim))[:, None] + j[None, :]
        # barriers keep operands of one product from being held in registers during another
        w = tl.load(W + place * key_dim + at_keys, mask=in_keys, other=0.0)
        value = tl.load(U + place * value_dim + at_values, mask=in_values, other=0.0)
        value -= _dot(w, S)  # [C, V]
        tl.debug_barrier()
        c = tl.load(sums + place + r * heads, mask=valid, other=0.0)
        query = tl.load(queries + place * key_dim + at_keys, mask=in_keys, other=0.0)
        result = _dot(query * tl.exp(c)[:, None], S)
        tl.debug_barrier()
        at = (r * (heads * C))[:, None] + r[None, :]
        seen = tl.load(within + place * C + at, mask=valid[:, None], other=0.0)
        result = tl.dot(seen, value, result, input_precision=NEARLY_F32)
        tl.store(out + place * value_dim + at_values, result, mask=in_values)
        tl.debug_barrier()
        last = tl.sum(tl.where(r == count - 1, c, 0.0), axis=0)
        key = tl.load(keys + place * key_dim + at_keys, mask=in_keys, other=0.0)
        left = tl.where(valid, tl.exp(tl.where(valid, last - c, 0.0)), 0.0)
        S *= tl.exp(last)
        S = tl.dot(tl.trans(key), value * left[:, None], S, input_precision=NEARLY_F32)
    tl.store(state, S, mask=inside)


def _chunked(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    table: torch.Tensor,
    tables: Tables,
) -> torch.Tensor:
    rows, heads, value_dim = v.shape
    key_dim, device = q.shape[-1], v.device
    chunks, starts = tables.on_grid(CHUNK)
    queries, keys, W = torch.empty(
        (3, rows, heads, key_dim), dtype=torch.float32, device=device
    ).unbind()
    U, out = torch.empty((2, rows, heads, value_dim), dtype=torch.float32, device=device).unbind()
    within = torch.empty((rows, heads, CHUNK), dtype=torch.float32, device=device)
    sums = torch.empty((rows, heads), dtype=torch.float32, device=device)
    padded = max(16, triton.next_power_of_2(key_dim))
    _prepare[(len(chunks), heads)](
        q,
        k,
        v,
        log_decay,
        beta,
        chunks,
        queries,
        keys,
        W,
        U,
        within,
        sums,
        heads,
        key_dim,
        value_dim,
        heads // q.shape[1],
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        log_decay.stride(0),
        beta.stride(0),
        EPS,
        key_dim**-0.5,
        C=CHUNK,
        K=padded,
        V=max(16, triton.next_power_of_2(value_dim)),
        num_warps=8,
    )
    width = max(16, min(SHAPES.columns[1], triton.next_power_of_2(value_dim)))
    _scan[(len(tables.step.segments), heads, triton.cdiv(value_dim, width))](
        queries,
        keys,
        W,
        U,
        within,
        sums,
        chunks,
        starts,
        tables.segments,
        table,
        out,
        heads,
        key_dim,
        value_dim,
        C=CHUNK,
        K=padded,
        V=width,
        num_warps=4,
        num_stages=1,
    )
    return out
