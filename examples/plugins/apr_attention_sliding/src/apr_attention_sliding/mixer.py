"""Sliding-window attention: a layer's state does not grow with the sequence."""

from __future__ import annotations

from typing import Any

import numpy as np

from apr_core.plugin import BoundOps, Mixer, MixerExample, State, StateMakers, Step, Weights

Array = Any
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj")
BIASES = ("q_bias", "k_bias", "v_bias")


class SlidingAttention(Mixer):
    """Grouped-query attention over the last `window` positions. Written only in ops."""

    matrices = MATRICES

    def __init__(
        self, *, num_kv_heads: int, head_dim: int, rope_theta: float, window: int, bias: bool
    ) -> None:
        self.kv_heads, self.dim, self.window = num_kv_heads, head_dim, window
        self.vectors: tuple[str, ...] = BIASES if bias else ()
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        self.constants = {"inv_freq": np.float32(rope_theta) ** -exponents}  # [D / 2]

    @staticmethod
    def example() -> MixerExample:
        """Return a small case for the conformance kit: a window shorter than its prompts."""
        shapes = {"q_proj": (64, 48), "k_proj": (32, 48), "v_proj": (32, 48), "o_proj": (48, 64)}
        biases = {"q_bias": (64,), "k_bias": (32,), "v_bias": (32,)}
        options = {"num_kv_heads": 2, "head_dim": 16, "rope_theta": 1e4, "window": 24, "bias": True}
        return MixerExample(options, 48, {**shapes, **biases})

    def new_state(self, states: StateMakers) -> State:
        """Make the state of the window's keys and values."""
        return states.kv(self.kv_heads, self.dim, self.window)

    def __call__(self, o: BoundOps, w: Weights, x: Array, step: Step, state: State) -> Array:
        """Map x [T, hidden] to [T, hidden]."""
        biases = (w.q_bias, w.k_bias, w.v_bias) if self.vectors else None
        q, k, v = o.linears(x, (w.q_proj, w.k_proj, w.v_proj), biases)
        q, k, v = (y.reshape(len(x), -1, self.dim) for y in (q, k, v))  # [T, H or Hkv, D]
        q, k = (o.rope(y, step.positions, w.inv_freq) for y in (q, k))
        out = o.attention(q, k, v, state, step, self.dim**-0.5)  # [T, H, D]
        return o.linear(out.reshape(len(x), -1), w.o_proj)
