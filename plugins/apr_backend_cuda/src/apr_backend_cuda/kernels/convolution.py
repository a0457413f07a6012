"""The causal convolution before the delta rule, and the rows that it keeps."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from apr_backend_cuda.kernels.rows import sigmoid_of
from apr_backend_cuda.kernels.tiles import pointer
from apr_backend_cuda.launching.shapes import SHAPES
from apr_backend_cuda.run.steps import tables_of
from apr_backend_cuda.states.device import arrays_of
from apr_core.plugin import Step


@triton.jit
def _keep(x, past, first, count, c, channels, x_row, KEPT: tl.constexpr, PADDED: tl.constexpr):
    """Put a segment's last inputs into its state [KEPT, channels]; `c` are a program's channels."""
    i = tl.arange(0, PADDED)
    back = count - KEPT + i
    inside = (i < KEPT)[:, None] & (c < channels)[None, :]
    row = (first + back).to(tl.int64)
    new = tl.load(
        x + row[:, None] * x_row + c[None, :], mask=inside & (back >= 0)[:, None], other=0.0
    )
    old = tl.load(
        past + (back + KEPT)[:, None] * channels + c[None, :],
        mask=inside & (back < 0)[:, None],
        other=0.0,
    )
    tl.debug_barrier()  # all are read before any are written
    tl.store(past + i[:, None] * channels + c[None, :], new + old, mask=inside)


@triton.jit
def _conv(
    x,
    w,
    table,
    tiles,
    out,
    channels,
    x_row,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    N: tl.constexpr,
    PADDED: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Convolve some rows and channels of a segment: inputs of this step after the state's.

    If a tile is a `WHOLE` segment, no other program reads its state, and this one updates it.
    """
    tiles += tl.program_id(0) * 8
    first, count = tl.load(tiles), tl.load(tiles + 1)
    before = tl.load(tiles + 4)  # rows of the segment that precede the tile
    c = tl.program_id(1) * N + tl.arange(0, N)
    r = tl.arange(0, ROWS)
    inside = (r < count)[:, None] & (c < channels)[None, :]
    past = pointer(tl.load(table + tl.load(tiles + 5)), tl.float32)
    total = tl.zeros((ROWS, N), tl.float32)
    for j in tl.static_range(TAPS):
        back = before + r - (TAPS - 1) + j  # index into this step's rows; below zero, the state's
        new = inside & (back >= 0)[:, None]
        row = (first - before + back).to(tl.int64)
        value = tl.load(x + row[:, None] * x_row + c[None, :], mask=new, other=0.0)
        old = inside & (back < 0)[:, None]
        at = past + (back + TAPS - 1)[:, None] * channels + c[None, :]
        value += tl.load(at, mask=old, other=0.0)
        total += value * tl.load(w + c * TAPS + j, mask=c < channels, other=0.0)[None, :]
    to = out + (first + r).to(tl.int64)[:, None] * channels + c[None, :]
    tl.store(to, total * sigmoid_of(total), mask=inside)
    if WHOLE and TAPS > 1:
        _keep(x, past, first, count, c, channels, x_row, TAPS - 1, PADDED)


@triton.jit
def _conv_state(
    x, table, segments, channels, x_row, KEPT: tl.constexpr, PADDED: tl.constexpr, N: tl.constexpr
):
    """Store the last inputs of each segment, for its next step."""
    segments += tl.program_id(0) * 4
    c = tl.program_id(1) * N + tl.arange(0, N)
    past = pointer(tl.load(table + tl.load(segments + 3)), tl.float32)
    _keep(x, past, tl.load(segments), tl.load(segments + 1), c, channels, x_row, KEPT, PADDED)


def causal_conv1d(x: torch.Tensor, w: torch.Tensor, state: Any, step: Step) -> torch.Tensor:
    """Return the depthwise causal convolution, then silu: x [T, C], w [C, 1, K] -> f32 [T, C]."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    tables = tables_of(step, x.device)
    rows, channels = x.shape
    taps = w.shape[-1]
    table = tables.of_arrays(arrays_of(state), "conv")
    out = torch.empty((rows, channels), dtype=torch.float32, device=x.device)
    most_rows, width = SHAPES.conv
    width = min(width, triton.next_power_of_2(channels))
    groups = triton.cdiv(channels, width)
    height = min(most_rows, triton.next_power_of_2(tables.longest))
    tiles = tables.tiles_of(height)
    whole = tables.longest <= height
    padded = triton.next_power_of_2(max(1, taps - 1))
    _conv[(len(tiles), groups)](
        x,
        w,
        table,
        tiles,
        out,
        channels,
        x.stride(0),
        TAPS=taps,
        ROWS=height,
        N=width,
        PADDED=padded,
        WHOLE=whole,
    )
    if taps > 1 and not whole:
        _conv_state[(len(tables.segments), groups)](
            x, table, tables.segments, channels, x.stride(0), KEPT=taps - 1, PADDED=padded, N=width
        )
    return out
