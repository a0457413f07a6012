"""Norms, gates and rotary positions: their instructions (see kernels/elementwise.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_backend_cpu.constants import SUPERBLOCK
from apr_backend_cpu.run.arrays import address, bits
from apr_backend_cpu.run.program import constant, instructions, new, strided

Floats = NDArray[np.float32]


def rms_norm(x: Floats, w: Floats, eps: float, offset: float) -> Floats:
    """Return x / sqrt(mean(x^2) + eps) * (offset + w) over the last axis."""
    s = strided(x)
    out = new(x.shape)
    with instructions(s.array, w, out) as p:
        p.add(
            "norm_task",
            s.rows,
            0,
            s.address,
            s.outer,
            s.count,
            s.inner,
            s.size,
            address(w),
            bits(eps),
            bits(offset),
            address(out),
        )
        p.rounds(out, s.size)
    return out


def add_rms_norm(
    h: Floats, y: Floats, w: Floats, eps: float, offset: float
) -> tuple[Floats, Floats]:
    """Return (h + y, rms_norm(h + y)) of contiguous [T, D] rows."""
    h, y = strided(h, whole=True).array, strided(y, whole=True).array
    total, out = new(h.shape), new(h.shape)
    with instructions(h, y, w, total, out) as p:
        p.add(
            "add_norm_task",
            h.shape[0],
            0,
            address(h),
            address(y),
            h.shape[1],
            address(w),
            bits(eps),
            bits(offset),
            address(total),
            address(out),
        )
        p.rounds(out, h.shape[1])
    return total, out


def add(x: Floats, y: Floats) -> Floats:
    """Return x + y of contiguous rows [T, N]; y may be one row [N] for all."""
    x, y = strided(x, whole=True).array, y if y.ndim == 1 else strided(y, whole=True).array
    size, out = x.shape[-1], new(x.shape)
    with instructions(x, y, out) as p:
        p.add(
            "add_task",
            x.size // size,
            address(x),
            address(y),
            4 * size * (y.ndim > 1),
            size,
            address(out),
        )
    return out


def scale(x: Floats, factor: float) -> Floats:
    """Return x * factor of rows [T, N]."""
    x = strided(x, whole=True).array
    out = new(x.shape)
    with instructions(x, out) as p:
        p.add(
            "scale_task", x.size // x.shape[-1], address(x), x.shape[-1], bits(factor), address(out)
        )
    return out


def softcap(x: Floats, cap: float) -> Floats:
    """Return cap * tanh(x / cap) of rows [T, N]."""
    x = strided(x, whole=True).array
    size, out = x.shape[-1], new(x.shape)
    with instructions(x, out) as p:
        p.add(
            "softcap_task",
            x.size // size * -(-size // SUPERBLOCK),
            address(x),
            size,
            bits(cap),
            address(out),
        )
    return out


def padded(x: Floats, size: int) -> Floats:
    """Return contiguous rows [T, N], padded to `size` with zeros."""
    x = strided(x, whole=True).array
    out = new((x.shape[0], size))
    with instructions(x, out) as p:
        p.add("pad_task", x.shape[0], address(x), x.shape[1], size, address(out))
    return out


def swiglu(gate: Floats, up: Floats) -> Floats:
    """Return silu(gate) * up of [T, F] rows."""
    return _gated("swiglu_task", gate, up)


def geglu(gate: Floats, up: Floats) -> Floats:
    """Return gelu(gate) * up of [T, F] rows, gelu in its tanh form."""
    return _gated("geglu_task", gate, up)


def _gated(task: str, gate: Floats, up: Floats) -> Floats:
    g, u = strided(gate), strided(up)  # halves of rows are read where they are
    tokens, size = gate.shape
    out = new(gate.shape)
    with instructions(g.array, u.array, out) as p:
        p.add(
            task,
            tokens * -(-size // SUPERBLOCK),
            0,
            g.address,
            g.outer,
            u.address,
            u.outer,
            size,
            address(out),
        )
        p.rounds(out, size)
    return out


def sigmoid_gate(x: Floats, gate: Floats) -> Floats:
    """Return x * sigmoid(gate), [T, H, D]."""
    x, g = strided(x, whole=True).array, strided(gate)
    tokens, heads, dim = x.shape
    out = new(x.shape)
    with instructions(x, g.array, out) as p:
        p.add(
            "sigmoid_gate_task",
            tokens * -(-heads * dim // SUPERBLOCK),
            0,
            address(x),
            g.address,
            g.outer,
            g.inner,
            heads,
            dim,
            address(out),
        )
        p.rounds(out, heads * dim)
    return out


def rope(
    x: Floats, positions: NDArray[np.int64], inv_freq: Floats, magnitude: float = 1.0
) -> Floats:
    """Apply NeoX rotary embedding to the first 2 * len(inv_freq) dims of x [T, H, D]."""
    s = strided(x)
    out = new(x.shape)
    with instructions(s.array, inv_freq, positions, out) as p:
        p.add(
            "rope_task",
            x.shape[0],
            s.address,
            s.outer,
            s.inner,
            x.shape[1],
            s.size,
            address(positions),
            address(inv_freq),
            inv_freq.size,
            address(out),
            bits(magnitude),
            scratch=8 * inv_freq.size,
        )
    return out


def gated_rms_norm(x: Floats, w: Floats, z: Floats, eps: float) -> Floats:
    """Return w * x / sqrt(mean(x^2) + eps) * silu(z) over the last axis of [T, H, D]."""
    x, gate = strided(x, whole=True).array, strided(z)
    tokens, heads, dim = x.shape
    some = max(1, SUPERBLOCK // dim)  # heads per superblock
    out = new(x.shape)
    with instructions(x, w, gate.array, out) as p:
        p.add(
            "gated_norm_task",
            tokens * -(-heads // some),
            0,
            address(x),
            address(w),
            gate.address,
            gate.outer,
            gate.inner,
            heads,
            dim,
            bits(eps),
            address(out),
            some,
        )
        if SUPERBLOCK % dim == 0:
            p.rounds(out, heads * dim)
    return out


def delta_gates(a: Floats, b: Floats, A_log: Floats, dt_bias: Floats) -> Any:
    """Return log decay -exp(A_log) * softplus(a + dt_bias), and sigmoid(b), [T, Hv] each."""
    x, y = strided(a), strided(b)
    rates = constant(A_log, np.exp)
    log_decay, beta = new(a.shape), new(b.shape)
    with instructions(x.array, y.array, rates, dt_bias, log_decay, beta) as p:
        p.add(
            "delta_gates_task",
            a.shape[0],
            x.address,
            x.outer,
            y.address,
            y.outer,
            x.size,
            address(rates),
            address(dt_bias),
            address(log_decay),
            address(beta),
        )
    return log_decay, beta
