"""`linear`, `linears`, `mlp` and `embed` of the CPU backend, in terms of the compiled drivers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_backend_cpu import float_linear, packed_linear
from apr_backend_cpu.activations import Activations
from apr_backend_cpu.elementwise import swiglu
from apr_backend_cpu.packed_linear import SUPERBLOCK

Floats = NDArray[np.float32]
U = np.uint64


def prepare(x: Floats | Activations) -> Activations:
    """Wrap an input so that several products share its int8 form."""
    return x if isinstance(x, Activations) else Activations(x)


def _packed(driver: Callable[..., None], x: Floats | Activations, w: Any) -> Floats:
    a = prepare(x)
    a.quantize()
    tokens = a.dense.shape[0]
    out = np.empty((tokens, w.rows), np.float32)
    driver(
        U(w.data.ctypes.data), U(w.data.shape[1]), U(w.rows), U(a.q.shape[1] // SUPERBLOCK),
        U(a.q.ctypes.data), U(a.scales.ctypes.data), U(a.sums.ctypes.data), U(tokens),
        U(out.ctypes.data),
    )  # fmt: skip
    return out


def _float(driver: Callable[..., None], x: Floats | Activations, w: Any) -> Floats:
    a = prepare(x)
    tokens, cols = a.dense.shape
    dense = a.dense
    width = w.data.shape[1] * w.data.itemsize // (2 if w.format in ("f16", "bf16") else 4)
    if width != cols:  # the weight's rows were padded to whole vectors at upload
        dense = np.concatenate([dense, np.zeros((tokens, width - cols), np.float32)], axis=1)
    out = np.empty((tokens, w.rows), np.float32)
    driver(
        U(w.data.ctypes.data), U(w.data.strides[0]), U(w.rows), U(dense.ctypes.data),
        U(dense.strides[0]), U(tokens), U(out.ctypes.data), U(width // 16),
    )  # fmt: skip
    return out


def linear_q4_k(x: Floats | Activations, w: Any) -> Floats:
    """x [T, in] -> [T, out]."""
    return _packed(packed_linear.linear_q4_k, x, w)


def linear_q5_k(x: Floats | Activations, w: Any) -> Floats:
    """x [T, in] -> [T, out]."""
    return _packed(packed_linear.linear_q5_k, x, w)


def linear_q6_k(x: Floats | Activations, w: Any) -> Floats:
    """x [T, in] -> [T, out]."""
    return _packed(packed_linear.linear_q6_k, x, w)


def linear_q8_0(x: Floats | Activations, w: Any) -> Floats:
    """x [T, in] -> [T, out]."""
    return _packed(packed_linear.linear_q8_0, x, w)


def linear_f32(x: Floats | Activations, w: Any) -> Floats:
    """x [T, in] -> [T, out]."""
    return _float(float_linear.linear_f32, x, w)


def linear_f16(x: Floats | Activations, w: Any) -> Floats:
    """x [T, in] -> [T, out]."""
    return _float(float_linear.linear_f16, x, w)


def linear_bf16(x: Floats | Activations, w: Any) -> Floats:
    """x [T, in] -> [T, out]."""
    return _float(float_linear.linear_bf16, x, w)


def linears(x: Floats, ws: tuple[Any, ...]) -> tuple[Floats, ...]:
    """Products with one input, which is quantized at most once."""
    a = Activations(x)
    return tuple(w.linear(a, w) for w in ws)


def mlp(x: Floats, gate: Any, up: Any, down: Any) -> Floats:
    """down(silu(gate(x)) * up(x))."""
    a = Activations(x)
    hidden = swiglu(gate.linear(a, gate), up.linear(a, up))
    result: Floats = down.linear(hidden, down)
    return result


def embed(ids: NDArray[np.int64], w: Any) -> Floats:
    """Rows of the embedding in any format: the few rows asked for are decoded."""
    rows = w.data[ids]
    if w.decode is None:
        return rows[:, : w.cols].astype(np.float32)
    packed = np.ascontiguousarray(rows).view(np.uint8)[:, : w.row_bytes]
    decoded: Floats = w.decode(np.ascontiguousarray(packed), w.cols)
    return decoded
