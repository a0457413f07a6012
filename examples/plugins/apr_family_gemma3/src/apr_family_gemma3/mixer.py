"""Grouped-query attention with norms of queries and keys, over everything or over a window."""

from __future__ import annotations

from typing import Any

import numpy as np

from apr_core.plugin import BoundOps, Mixer, State, StateMakers, Step, Weights, WindowState

Array = Any


class GlobalAttention(Mixer):
    """Attention over all positions so far. `rope_factor` divides positions (linear scaling)."""

    matrices = ("q_proj", "k_proj", "v_proj", "o_proj")
    vectors = ("q_norm", "k_norm")

    def __init__(
        self,
        *,
        num_kv_heads: int,
        head_dim: int,
        rope_theta: float,
        rope_factor: float,
        scale: float,
        norm_eps: float,
        norm_offset: float,
    ) -> None:
        self.kv_heads, self.head_dim, self.scale = num_kv_heads, head_dim, scale
        self.eps, self.offset = norm_eps, norm_offset
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        inv_freq = np.float32(rope_theta) ** -exponents / np.float32(rope_factor)
        self.constants = {"inv_freq": inv_freq}  # [D / 2]

    def new_state(self, states: StateMakers) -> State:
        """Make a state of the keys and values of everything so far."""
        return states.kv(self.kv_heads, self.head_dim)

    def __call__(self, o: BoundOps, w: Weights, x: Array, step: Step, state: State) -> Array:
        """Map x [T, hidden] to [T, hidden]."""
        q, k, v = o.linears(x, (w.q_proj, w.k_proj, w.v_proj))
        q, k, v = (y.reshape(len(x), -1, self.head_dim) for y in (q, k, v))  # [T, H or Hkv, D]
        q = o.rope(o.rms_norm(q, w.q_norm, self.eps, self.offset), step.positions, w.inv_freq)
        k = o.rope(o.rms_norm(k, w.k_norm, self.eps, self.offset), step.positions, w.inv_freq)
        out = self.attend(o, q, k, v, step, state)  # [T, H, D]
        return o.linear(out.reshape(len(x), -1), w.o_proj)

    def attend(self, o: BoundOps, q: Array, k: Array, v: Array, step: Step, state: State) -> Array:
        """Attend: q [T, H, D], k and v [T, Hkv, D] -> [T, H, D]."""
        return o.attention(q, k, v, state, step, self.scale)


class LocalAttention(GlobalAttention):
    """Attention over the last `window` positions, the query's own included."""

    def __init__(self, *, window: int, **options: Any) -> None:
        super().__init__(**options)
        self.window = window

    def new_state(self, states: StateMakers) -> WindowState:
        """Make a state of the keys and values of the window."""
        return states.window(self.kv_heads, self.head_dim, self.window)

    def attend(self, o: BoundOps, q: Array, k: Array, v: Array, step: Step, state: State) -> Array:
        """Attend: q [T, H, D], k and v [T, Hkv, D] -> [T, H, D]."""
        return o.local_attention(q, k, v, state, step, self.scale)
