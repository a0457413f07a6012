"""Defines ops, and those that every decoder needs. Knows arrays, but no device or format.

A reference body is written against an array namespace `xp` (NumPy, or torch through a shim) and is
the truth every kernel is compared with. A composite is written in other bound ops; its default body
costs nothing to support, and a backend may replace it by one fused kernel.

Layouts are part of each meaning: activations are [rows, features], q is [rows, heads, head_dim],
a row belongs to a sequence slot at a position (`step`), and state is owned by the op that uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apr_core.model.state import KVState
    from apr_core.model.step import Step
    from apr_core.ops.binding import BoundOps, Weight

Array = Any  # numpy.ndarray, or what the backend's namespace works on


@dataclass(frozen=True, slots=True)
class Op:
    """An operation. `body` takes `xp` first, or the bound ops `o` if it is a composite.

    One that `reads_weight` has a Weight as its last argument, and a kernel for each format of it.
    """

    name: str
    body: Callable[..., Any]
    is_composite: bool = False
    reads_weight: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body itself, as tests and other references do."""
        return self.body(*args, **kwargs)


def op(body: Callable[..., Any]) -> Op:
    """Declare an op by its reference body `body(xp, ...)`."""
    return Op(body.__name__, body)


def matrix_op(body: Callable[..., Any]) -> Op:
    """Declare an op `body(xp, ..., w)` on a Weight: what it sees packed, in any format."""
    return Op(body.__name__, body, reads_weight=True)


def composite(body: Callable[..., Any]) -> Op:
    """Declare a composite by its default body `body(o, ...)` in terms of other ops."""
    return Op(body.__name__, body, is_composite=True)


@matrix_op
def embed(xp: Any, ids: Array, w: Weight) -> Array:
    """Return rows of the embedding: ids [T] -> [T, D]."""
    return xp.take(w.data, ids, axis=0)


@matrix_op
def linear(xp: Any, x: Array, w: Weight) -> Array:
    """Multiply by a weight stored as [out, in]: x [T, in] -> [T, out]."""
    return xp.matmul(x, w.data.T)


@op
def add(xp: Any, x: Array, y: Array) -> Array:
    """Return x + y for rows [T, N]; y may also be one row [N], such as a bias, added to all."""
    return x + y


@op
def scale(xp: Any, x: Array, factor: float) -> Array:
    """Return x * factor, elementwise."""
    return x * factor


@op
def softcap(xp: Any, x: Array, cap: float) -> Array:
    """Return cap * tanh(x / cap), elementwise: logits within (-cap, cap)."""
    return xp.tanh(x / cap) * cap


@composite
def linears(
    o: BoundOps, x: Array, ws: tuple[Weight, ...], biases: tuple[Array | None, ...] | None = None
) -> tuple[Array, ...]:
    """Multiply one input by several weights, so that a backend can prepare the input once.

    `biases` has a vector [out] for each weight, or None where that has no bias.
    """
    products = (o.linear(x, w) for w in ws)
    pairs = zip(products, biases or (None,) * len(ws), strict=True)
    return tuple(y if bias is None else o.add(y, bias) for y, bias in pairs)


@op
def rms_norm(xp: Any, x: Array, w: Array, eps: float, offset: float) -> Array:
    """Return the RMS norm over the last axis: x / sqrt(mean(x^2) + eps) * (offset + w)."""
    scale = 1.0 / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + eps)
    return x * scale * (w + offset)


@composite
def add_rms_norm(
    o: BoundOps, h: Array, y: Array, w: Array, eps: float, offset: float
) -> tuple[Array, Array]:
    """Return the residual sum and its norm: (h + y, rms_norm(h + y))."""
    h = o.add(h, y)
    return h, o.rms_norm(h, w, eps, offset)


@op
def rope(xp: Any, x: Array, positions: Array, inv_freq: Array, magnitude: float = 1.0) -> Array:
    """Rotate pairs (i, i + n) of the first 2n dims (NeoX pairing); the rest pass through.

    x [T, H, D], positions [T], inv_freq [n] float32 with 2n <= D. What is rotated is multiplied by
    `magnitude`.
    """
    n = inv_freq.shape[0]
    angle = xp.asarray(positions[:, None], dtype=inv_freq.dtype) * inv_freq[None, :]  # [T, n]
    cos, sin = (f(angle)[:, None, :] * magnitude for f in (xp.cos, xp.sin))  # [T, 1, n]
    a, b = x[..., :n], x[..., n : 2 * n]
    return xp.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., 2 * n :]], axis=-1)


@op
def attention(
    xp: Any, q: Array, k: Array, v: Array, state: KVState, step: Step, scale: float
) -> Array:
    """Compute causal attention with grouped heads; append k and v to the cache first.

    q [T, H, D], k and v [T, Hkv, D] -> [T, H, D]. Query head h reads kv head h // (H / Hkv). If the
    state has a `window`, a query sees that many positions at most, the last one its own.
    """
    outs = []
    for seg in step.segments:
        keys, values = state.append(
            seg.slot, seg.position, k[seg.start : seg.stop], v[seg.start : seg.stop]
        )  # [Hkv, L, D] each: the last L
        outs.append(_attend(xp, q[seg.start : seg.stop], keys, values, state.window, scale))
    return xp.concatenate(outs, axis=0)


def _attend(xp: Any, q: Array, keys: Array, values: Array, window: int, scale: float) -> Array:
    """Compute attention for one sequence: the last n of L rows, q [n, H, D], over [Hkv, L, D]."""
    n, heads, dim = q.shape
    kv_heads, length, _ = keys.shape
    grouped = xp.moveaxis(q.reshape(n, kv_heads, heads // kv_heads, dim), 0, 2)  # [Hkv, G, n, D]
    scores = xp.matmul(grouped, xp.swapaxes(keys, -1, -2)[:, None]) * scale  # [Hkv, G, n, L]
    row, column = xp.arange(n)[:, None] + (length - n), xp.arange(length)[None, :]
    seen = (column <= row) & (column > row - (window or length))
    scores = xp.where(seen, scores, -xp.inf)
    weights = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
    weights = weights / xp.sum(weights, axis=-1, keepdims=True)
    out = xp.matmul(weights, values[:, None])  # [Hkv, G, n, D]
    return xp.moveaxis(out, 2, 0).reshape(n, heads, dim)


@op
def sigmoid(xp: Any, x: Array) -> Array:
    """Return 1 / (1 + exp(-x)), elementwise, written so that no exponent overflows."""
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, 1.0 / (1.0 + e), e / (1.0 + e))


@op
def silu(xp: Any, x: Array) -> Array:
    """Return x * sigmoid(x), elementwise."""
    return x * sigmoid(xp, x)


@op
def softplus(xp: Any, x: Array) -> Array:
    """Return log(1 + exp(x)), elementwise, written so that no exponent overflows."""
    return xp.maximum(x, 0.0) + xp.log1p(xp.exp(-xp.abs(x)))


@op
def swiglu(xp: Any, gate: Array, up: Array) -> Array:
    """Return silu(gate) * up, elementwise."""
    return silu(xp, gate) * up


@op
def sigmoid_gate(xp: Any, x: Array, gate: Array) -> Array:
    """Return x * sigmoid(gate), elementwise."""
    return x * sigmoid(xp, gate)


@composite
def mlp(o: BoundOps, x: Array, gate: Weight, up: Weight, down: Weight) -> Array:
    """Return the gated feed-forward down(silu(gate(x)) * up(x))."""
    g, u = o.linears(x, (gate, up))
    return o.linear(o.swiglu(g, u), down)


CORE_OPS = {each.name: each for each in tuple(globals().values()) if isinstance(each, Op)}
