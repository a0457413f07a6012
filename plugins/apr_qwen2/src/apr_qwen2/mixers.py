"""Grouped-query attention with rotary positions, in the variants of most dense decoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_core.plugin import BoundOps, Mixer, State, StateMakers, Step, Weights, rope_frequencies

Array = Any


class FullAttention(Mixer):
    """Grouped-query attention. Written only in ops.

    `bias`: there are biases on q, k and v. `window`: positions that a query looks at, its own
    included; 0 is all. `qk_norm`: epsilon and offset of norms of queries and keys, head by head.
    `scale` of scores is `head_dim ** -0.5` if None.
    """

    matrices = ("q_proj", "k_proj", "v_proj", "o_proj")

    def __init__(
        self,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        rope_theta: float,
        rotary_dim: int,
        bias: bool = True,
        rope_scaling: Mapping[str, Any] | None = None,
        window: int = 0,
        qk_norm: tuple[float, float] | None = None,
        scale: float | None = None,
    ) -> None:
        self.heads, self.kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.window, self.bias, self.qk_norm = window, bias, qk_norm
        self.vectors: tuple[str, ...] = ("q_bias", "k_bias", "v_bias") if bias else ()
        self.vectors += ("q_norm", "k_norm") if qk_norm else ()
        inv_freq, self.magnitude = rope_frequencies(rope_theta, rotary_dim, rope_scaling)
        self.constants = {"inv_freq": inv_freq}
        self.scale = head_dim**-0.5 if scale is None else scale

    def new_state(self, states: StateMakers) -> State:
        """Make the state of keys and values; `states` makes the core's state kinds."""
        return states.kv(self.kv_heads, self.head_dim, self.window)

    def __call__(self, o: BoundOps, w: Weights, x: Array, step: Step, state: State) -> Array:
        """Map x [T, hidden] to [T, hidden]."""
        biases = (w.q_bias, w.k_bias, w.v_bias) if self.bias else None
        q, k, v = o.linears(x, (w.q_proj, w.k_proj, w.v_proj), biases)
        q = q.reshape(-1, self.heads, self.head_dim)
        k, v = (y.reshape(-1, self.kv_heads, self.head_dim) for y in (k, v))
        if self.qk_norm:
            q, k = o.rms_norm(q, w.q_norm, *self.qk_norm), o.rms_norm(k, w.k_norm, *self.qk_norm)
        q = o.rope(q, step.positions, w.inv_freq, self.magnitude)
        k = o.rope(k, step.positions, w.inv_freq, self.magnitude)
        out = o.attention(q, k, v, state, step, self.scale)  # [T, H, D]
        return o.linear(out.reshape(-1, self.heads * self.head_dim), w.o_proj)
