"""The mixer's op, as a reference. Backends may have a faster one of the same name."""

from __future__ import annotations

from typing import Any

from apr_core.plugin import op

Array = Any


@op
def window_attention(
    xp: Any, q: Array, k: Array, v: Array, state: Any, step: Any, scale: float
) -> Array:
    """Compute causal attention over the last `state.window` positions, the query's included.

    q [T, H, D], k and v [T, Hkv, D] -> [T, H, D]. Query head h reads kv head h // (H / Hkv). k and
    v are appended to the state, a WindowState, first.
    """
    outs = []
    for seg in step.segments:
        rows = slice(seg.start, seg.stop)
        keys, values, first = state.append(seg.slot, seg.position, k[rows], v[rows])
        ahead = seg.position - first  # columns before the first row's own
        outs.append(_attend(xp, q[rows], keys, values, ahead, state.window, scale))
    return xp.concatenate(outs, axis=0)


def _attend(
    xp: Any, q: Array, keys: Array, values: Array, ahead: int, window: int, scale: float
) -> Array:
    """Attend in one sequence: q [n, H, D] to k, v [Hkv, L, D]; row i is column `ahead` + i."""
    n, heads, dim = q.shape
    kv_heads, length, _ = keys.shape
    grouped = xp.moveaxis(q.reshape(n, kv_heads, heads // kv_heads, dim), 0, 2)  # [Hkv, G, n, D]
    scores = xp.matmul(grouped, xp.swapaxes(keys, -1, -2)[:, None]) * scale  # [Hkv, G, n, L]
    row, column = xp.arange(n)[:, None] + ahead, xp.arange(length)[None, :]
    seen = (column <= row) & (column > row - window)
    scores = xp.where(seen, scores, -xp.inf)
    weights = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
    weights = weights / xp.sum(weights, axis=-1, keepdims=True)
    out = xp.matmul(weights, values[:, None])  # [Hkv, G, n, D]
    return xp.moveaxis(out, 2, 0).reshape(n, heads, dim)
