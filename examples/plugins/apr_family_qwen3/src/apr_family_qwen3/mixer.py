"""Grouped-query attention with norms of queries and keys, head by head, with plain weights."""

from typing import Any

import numpy as np

from apr_core.plugin import BoundOps, Mixer, State, StateMakers, Step, Weights


class QKNormAttention(Mixer):
    """Grouped-query attention with query and key norms. Written only in ops."""

    matrices = ("q_proj", "k_proj", "v_proj", "o_proj")
    vectors = ("q_norm", "k_norm")

    def __init__(
        self, *, num_kv_heads: int, head_dim: int, rope_theta: float, rms_norm_eps: float
    ) -> None:
        self.kv_heads, self.dim, self.eps = num_kv_heads, head_dim, rms_norm_eps
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        self.constants = {"inv_freq": np.float32(rope_theta) ** -exponents}  # [D / 2]

    def new_state(self, states: StateMakers) -> State:
        """Make the state of keys and values."""
        return states.kv(self.kv_heads, self.dim)

    def __call__(self, o: BoundOps, w: Weights, x: Any, step: Step, state: State) -> Any:
        """Map x [T, hidden] to [T, hidden]."""
        q, k, v = o.linears(x, (w.q_proj, w.k_proj, w.v_proj))
        q, k, v = (y.reshape(len(x), -1, self.dim) for y in (q, k, v))  # [T, H or Hkv, D]
        q = o.rope(o.rms_norm(q, w.q_norm, self.eps, 0.0), step.positions, w.inv_freq)
        k = o.rope(o.rms_norm(k, w.k_norm, self.eps, 0.0), step.positions, w.inv_freq)
        out = o.attention(q, k, v, state, step, self.dim**-0.5)  # [T, H, D]
        return o.linear(out.reshape(len(x), -1), w.o_proj)
