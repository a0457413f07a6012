"""Causal attention over the cache, without a [T, T] array.

One task is one row and one key head, with all query heads that share it, so a key is read once a
group. Scores are kept for one row only; sums run over positions in order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from apr_backend_cpu.compiling import serial, threaded
from apr_backend_cpu.exponential import exp32
from apr_backend_cpu.reductions import dot

Floats = NDArray[np.float32]
f32 = np.float32


@serial
def _attend_row(q, keys, values, length, scale, out):  # noqa: ANN001, ANN202
    """q, out [G, D] of one key head; keys, values [L, D]."""
    group, dim = q.shape
    scores = np.empty((group, length), np.float32)
    for p in range(length):
        for g in range(group):
            scores[g, p] = dot(q[g], keys[p]) * scale
    for g in range(group):
        row = scores[g]
        top = row[0]
        for p in range(length):
            top = max(top, row[p])
        for p in range(length):
            row[p] = exp32(row[p] - top)
        total = f32(0.0)
        for p in range(length):
            total += row[p]
        inverse = f32(1.0) / total
        for p in range(length):
            row[p] *= inverse
    out[:] = f32(0.0)
    for p in range(length):
        for g in range(group):
            weight = scores[g, p]
            for i in range(dim):
                out[g, i] += weight * values[p, i]


@threaded
def _attend(q, keys, values, position, scale, out):  # noqa: ANN001, ANN202
    """q, out [n, Hkv, G, D]; keys, values [Hkv, capacity, D]."""
    heads = q.shape[1]
    for task in prange(q.shape[0] * heads):
        t, h = task // heads, task % heads
        _attend_row(q[t, h], keys[h], values[h], position + t + 1, scale, out[t, h])


@serial
def _append(k, v, position, keys, values):  # noqa: ANN001, ANN202
    for t in range(k.shape[0]):
        for h in range(k.shape[1]):
            keys[h, position + t] = k[t, h]
            values[h, position + t] = v[t, h]


def attention(q: Floats, k: Floats, v: Floats, state: Any, step: Any, scale: float) -> Floats:
    """q [T, H, D], k and v [T, Hkv, D] -> [T, H, D]; appends k and v to the cache first."""
    tokens, heads, dim = q.shape
    kv_heads = k.shape[1]
    grouped = np.ascontiguousarray(q).reshape(tokens, kv_heads, heads // kv_heads, dim)
    out = np.empty_like(grouped)
    for seg in step.segments:
        rows = slice(seg.start, seg.stop)
        state.reserve(seg.slot, seg.position + seg.stop - seg.start)
        keys, values = state.keys[seg.slot], state.values[seg.slot]
        _append(k[rows], v[rows], seg.position, keys, values)
        _attend(grouped[rows], keys, values, seg.position, f32(scale), out[rows])
    return out.reshape(tokens, heads, dim)
