"""Norms, gates and rotary embedding: a program per row, or per stretch of values."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from apr_backend_cuda.launching.shapes import SHAPES

# four for each thread of four warps: from here on a row's sum is of the same values, in the same
# order, alone and beside others
FULL = 512


@triton.jit
def sigmoid_of(x):
    """Return 1 / (1 + exp(-x)) without overflow."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def softplus_of(x):
    """Return log(1 + exp(x)) without overflow; a series where log would lose precision."""
    e = tl.exp(-tl.abs(x))
    log1p = tl.where(e < 1e-3, e * (1.0 - e * (0.5 - e * 0.33333333)), tl.log(1.0 + e))
    return tl.maximum(x, 0.0) + log1p


@triton.jit
def _norm(
    x,
    more,
    w,
    z,
    total,
    out,
    rows,
    cols,
    inner,
    outer_stride,
    inner_stride,
    z_outer,
    z_inner,
    eps,
    offset,
    ADD: tl.constexpr,
    GATE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Normalize rows of x, or of x + more, by their root mean square; `z` gates the result."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    k = tl.arange(0, WIDTH)
    inside = (row < rows)[:, None] & (k < cols)[None, :]
    at = (row // inner * outer_stride + row % inner * inner_stride)[:, None] + k[None, :]
    to = row[:, None] * cols + k[None, :]
    value = tl.load(x + at, mask=inside, other=0.0)
    if ADD:
        value += tl.load(more + to, mask=inside, other=0.0)
        tl.store(total + to, value, mask=inside)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, axis=1) / cols + eps)
    gain = tl.load(w + k, mask=k < cols, other=0.0) + offset
    result = value * scale[:, None] * gain[None, :]
    if GATE:
        z_at = (row // inner * z_outer + row % inner * z_inner)[:, None] + k[None, :]
        gate = tl.load(z + z_at, mask=inside, other=0.0)
        result *= gate * sigmoid_of(gate)
    tl.store(out + to, result, mask=inside)


@triton.jit
def _gate(
    a,
    b,
    out,
    rows_size,
    inner,
    a_outer,
    a_inner,
    b_outer,
    b_inner,
    cols,
    size,
    OP: tl.constexpr,
    N: tl.constexpr,
):
    """Apply an op to one or two arrays [outer, inner, cols] with a contiguous last axis."""
    i = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    inside = i < size
    outer, rest = i // rows_size, i % rows_size
    middle, k = rest // cols, rest % cols
    x = tl.load(a + outer * a_outer + middle * a_inner + k, mask=inside, other=0.0)
    if OP == "sigmoid":
        result = sigmoid_of(x)
    elif OP == "silu":
        result = x * sigmoid_of(x)
    elif OP == "softplus":
        result = softplus_of(x)
    else:
        y = tl.load(b + outer * b_outer + middle * b_inner + k, mask=inside, other=0.0)
        if OP == "swiglu":
            result = x * sigmoid_of(x) * y
        elif OP == "geglu":  # the tanh form of gelu is x sigmoid(2 sqrt(2 / pi) (x + ...))
            result = x * sigmoid_of(1.5957691216057308 * (x + 0.044715 * x * x * x)) * y
        else:
            result = x * sigmoid_of(y)
    tl.store(out + i, result, mask=inside)


@triton.jit
def _rope(
    x,
    positions,
    inv_freq,
    out,
    rows,
    heads,
    dim,
    n,
    outer_stride,
    inner_stride,
    magnitude,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Rotate pairs (i, i + n) in the heads of tokens, times magnitude; copy the rest."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    token, head = row // heads, row % heads
    at = x + (token * outer_stride + head * inner_stride)[:, None]
    k = tl.arange(0, WIDTH)
    there = (row < rows)[:, None]
    inside, rotary = there & (k < dim)[None, :], there & (k < 2 * n)[None, :]
    value = tl.load(at + k[None, :], mask=inside, other=0.0)
    other = tl.load(at + tl.where(k < n, k + n, k - n)[None, :], mask=rotary, other=0.0)
    freq = tl.load(inv_freq + tl.where(k < n, k, k - n), mask=k < 2 * n, other=0.0)
    position = tl.load(positions + token, mask=row < rows, other=0).to(tl.float32)
    angle = position[:, None] * freq[None, :]
    sign = tl.where(k < n, -1.0, 1.0)[None, :]
    turned = (value * tl.cos(angle) + sign * other * tl.sin(angle)) * magnitude
    to = out + row[:, None] * dim + k[None, :]
    tl.store(to, tl.where((k < 2 * n)[None, :], turned, value), mask=inside)


def _strides(x: torch.Tensor) -> tuple[torch.Tensor, int, int, int, int]:
    """Return (contiguous-row array, inner, outer stride, inner stride, cols) of 2 or 3 axes."""
    x = x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
    if x.dim() == 2:
        return x, 1, x.stride(0), 0, x.shape[1]
    if x.dim() != 3:
        x = x.reshape(-1, 1, x.shape[-1])
    return x, x.shape[1], x.stride(0), x.stride(1), x.shape[2]


def tile_shape(rows: int, cols: int) -> dict[str, int]:
    """Return rows and columns of a program's tile: at least FULL values for any row count."""
    width = triton.next_power_of_2(cols)
    height = max(FULL // width, triton.next_power_of_2(rows))
    return {"ROWS": max(1, min(SHAPES.rows // width, height)), "WIDTH": width}


def rms_norm(x: torch.Tensor, w: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
    """Return x [..., D] over its root mean square, times (w + offset)."""
    return _normed(x, w, eps, offset)


def gated_rms_norm(x: torch.Tensor, w: torch.Tensor, z: torch.Tensor, eps: float) -> torch.Tensor:
    """Return the norm of x [..., D] times w, gated by silu(z)."""
    return _normed(x, w, eps, 0.0, z)


def _normed(
    x: torch.Tensor, w: torch.Tensor, eps: float, offset: float, z: torch.Tensor | None = None
) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    x, inner, outer_stride, inner_stride, cols = _strides(x)
    z_outer = z_inner = 0
    if z is not None:
        z, _, z_outer, z_inner, _ = _strides(z)
    rows = out.numel() // cols
    shape = tile_shape(rows, cols)
    _norm[(triton.cdiv(rows, shape["ROWS"]),)](
        x,
        x,
        w,
        x if z is None else z,
        x,
        out,
        rows,
        cols,
        inner,
        outer_stride,
        inner_stride,
        z_outer,
        z_inner,
        eps,
        offset,
        ADD=False,
        GATE=z is not None,
        **shape,
    )
    return out


def add_rms_norm(
    h: torch.Tensor, y: torch.Tensor, w: torch.Tensor, eps: float, offset: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (h + y, its norm), both [T, D]."""
    h, inner, outer_stride, inner_stride, cols = _strides(h)
    total = torch.empty(h.shape, dtype=torch.float32, device=h.device)
    out = torch.empty_like(total)
    rows = out.numel() // cols
    shape = tile_shape(rows, cols)
    _norm[(triton.cdiv(rows, shape["ROWS"]),)](
        h,
        y.contiguous(),
        w,
        h,
        total,
        out,
        rows,
        cols,
        inner,
        outer_stride,
        inner_stride,
        0,
        0,
        eps,
        offset,
        ADD=True,
        GATE=False,
        **shape,
    )
    return total, out


def add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return x [T, N] + y [T, N] or [N]."""
    return x + y


def scale(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Return x * factor."""
    return x * factor


def softcap(x: torch.Tensor, cap: float) -> torch.Tensor:
    """Return cap * tanh(x / cap)."""
    return torch.tanh(x / cap).mul_(cap)


def _elementwise(op: str, a: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    out = torch.empty(a.shape, dtype=torch.float32, device=a.device)
    a, inner, a_outer, a_inner, cols = _strides(a)
    b_outer = b_inner = 0
    if b is not None:
        b, _, b_outer, b_inner, _ = _strides(b)
    stretch = min(SHAPES.stretch, triton.next_power_of_2(out.numel()))
    _gate[(triton.cdiv(out.numel(), stretch),)](
        a,
        a if b is None else b,
        out,
        inner * cols,
        inner,
        a_outer,
        a_inner,
        b_outer,
        b_inner,
        cols,
        out.numel(),
        OP=op,
        N=stretch,
    )
    return out


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    """Return 1 / (1 + exp(-x))."""
    return _elementwise("sigmoid", x)


def silu(x: torch.Tensor) -> torch.Tensor:
    """Return x * sigmoid(x)."""
    return _elementwise("silu", x)


def softplus(x: torch.Tensor) -> torch.Tensor:
    """Return log(1 + exp(x))."""
    return _elementwise("softplus", x)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up."""
    return _elementwise("swiglu", gate, up)


def geglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return gelu(gate) * up, gelu in its tanh form."""
    return _elementwise("geglu", gate, up)


def sigmoid_gate(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Return x * sigmoid(gate)."""
    return _elementwise("sigmoid_gate", x, gate)


def rope(
    x: torch.Tensor, positions: torch.Tensor, inv_freq: torch.Tensor, magnitude: float = 1.0
) -> torch.Tensor:
    """Apply rotary embedding to x [T, H, D] by positions [T] and inv_freq [n]."""
    x, heads, outer_stride, inner_stride, dim = _strides(x)
    out = torch.empty((x.shape[0], heads, dim), dtype=torch.float32, device=x.device)
    rows = x.shape[0] * heads
    shape = tile_shape(rows, dim)
    _rope[(triton.cdiv(rows, shape["ROWS"]),)](
        x,
        positions,
        inv_freq,
        out,
        rows,
        heads,
        dim,
        inv_freq.shape[0],
        outer_stride,
        inner_stride,
        magnitude,
        **shape,
    )
    return out
