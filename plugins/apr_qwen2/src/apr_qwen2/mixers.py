"""Full attention as Qwen2 has it: biases on q, k and v, rotary positions over the whole head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_core.plugin import BoundOps, Mixer, State, StateMakers, Step, Weights, rope_frequencies

Array = Any


class FullAttention(Mixer):
    """Grouped-query attention. Written only in ops."""

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
    ) -> None:
        self.heads, self.kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.vectors: tuple[str, ...] = ("q_bias", "k_bias", "v_bias") if bias else ()
        inv_freq, magnitude = rope_frequencies(rope_theta, rotary_dim, rope_scaling)
        self.constants = {"inv_freq": inv_freq}
        self.scale = magnitude**2 * head_dim**-0.5  # queries and keys are rotated as a whole

    def new_state(self, states: StateMakers) -> State:
        """Make the state of keys and values; `states` makes the core's state kinds."""
        return states.kv(self.kv_heads, self.head_dim)

    def __call__(self, o: BoundOps, w: Weights, x: Array, step: Step, state: State) -> Array:
        """Map x [T, hidden] to [T, hidden]."""
        biases = (w.q_bias, w.k_bias, w.v_bias) if self.vectors else None
        q, k, v = o.linears(x, (w.q_proj, w.k_proj, w.v_proj), biases)
        q = o.rope(q.reshape(-1, self.heads, self.head_dim), step.positions, w.inv_freq)
        k = o.rope(k.reshape(-1, self.kv_heads, self.head_dim), step.positions, w.inv_freq)
        v = v.reshape(-1, self.kv_heads, self.head_dim)
        out = o.attention(q, k, v, state, step, self.scale)  # [T, H, D]
        return o.linear(out.reshape(-1, self.heads * self.head_dim), w.o_proj)
