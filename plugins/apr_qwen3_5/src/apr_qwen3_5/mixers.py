"""The two mixers of Qwen3.5: gated full attention and the gated delta net. Written only in ops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_core.plugin import (
    BoundOps,
    Mixer,
    RecurrentState,
    State,
    StateMakers,
    Step,
    Weights,
    rope_frequencies,
)
from apr_qwen3_5.ops import CHUNK

Array = Any


class GatedAttention(Mixer):
    """Grouped-query attention with q/k norms, partial rotary positions and an output gate."""

    matrices = ("q_proj", "k_proj", "v_proj", "o_proj")
    vectors = ("q_norm", "k_norm")

    def __init__(
        self,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        rope_theta: float,
        rotary_dim: int,
        norm_eps: float,
        norm_offset: float,
        rope_scaling: Mapping[str, Any] | None = None,
    ) -> None:
        self.heads, self.kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.eps, self.offset = norm_eps, norm_offset
        inv_freq, self.magnitude = rope_frequencies(rope_theta, rotary_dim, rope_scaling)
        self.constants = {"inv_freq": inv_freq}

    def new_state(self, states: StateMakers) -> State:
        """Make the state of keys and values; `states` makes the core's state kinds."""
        return states.kv(self.kv_heads, self.head_dim)

    def __call__(self, o: BoundOps, w: Weights, x: Array, step: Step, state: State) -> Array:
        """Map x [T, hidden] to [T, hidden]. Per head, q_proj's rows hold query, then gate."""
        qg, k, v = o.linears(x, (w.q_proj, w.k_proj, w.v_proj))
        qg = qg.reshape(-1, self.heads, 2 * self.head_dim)  # [T, H, 2D]
        q, gate = qg[..., : self.head_dim], qg[..., self.head_dim :]
        q = o.rms_norm(q, w.q_norm, self.eps, self.offset)
        k = k.reshape(-1, self.kv_heads, self.head_dim)
        k = o.rms_norm(k, w.k_norm, self.eps, self.offset)
        q = o.rope(q, step.positions, w.inv_freq, self.magnitude)
        k = o.rope(k, step.positions, w.inv_freq, self.magnitude)
        v = v.reshape(-1, self.kv_heads, self.head_dim)
        out = o.attention(q, k, v, state, step, self.head_dim**-0.5)  # [T, H, D]
        out = o.sigmoid_gate(out, gate).reshape(-1, self.heads * self.head_dim)
        return o.linear(out, w.o_proj)


class GatedDeltaNet(Mixer):
    """Linear attention by the gated delta rule, behind a short causal convolution."""

    matrices = ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj")
    vectors = ("conv1d", "A_log", "dt_bias", "linear_norm")

    def __init__(
        self,
        *,
        num_k_heads: int,
        num_v_heads: int,
        k_head_dim: int,
        v_head_dim: int,
        conv_kernel: int,
        norm_eps: float,
    ) -> None:
        self.k_heads, self.v_heads = num_k_heads, num_v_heads
        self.k_dim, self.v_dim = k_head_dim, v_head_dim
        self.kernel, self.eps = conv_kernel, norm_eps

    def new_state(self, states: StateMakers) -> RecurrentState:
        """Make the state: the convolution's last inputs and every value head's state matrix."""
        channels = 2 * self.k_heads * self.k_dim + self.v_heads * self.v_dim
        return states.recurrent(
            CHUNK, conv=(self.kernel - 1, channels), delta=(self.v_heads, self.k_dim, self.v_dim)
        )

    def __call__(
        self, o: BoundOps, w: Weights, x: Array, step: Step, state: RecurrentState
    ) -> Array:
        """Map x [T, hidden] to [T, hidden]."""
        pre, z, a, b = o.linears(x, (w.in_proj_qkv, w.in_proj_z, w.in_proj_a, w.in_proj_b))
        mixed = o.causal_conv1d(pre, w.conv1d, state, step)  # [T, q | k | v]
        n = self.k_heads * self.k_dim
        q = mixed[:, :n].reshape(-1, self.k_heads, self.k_dim)
        k = mixed[:, n : 2 * n].reshape(-1, self.k_heads, self.k_dim)
        v = mixed[:, 2 * n :].reshape(-1, self.v_heads, self.v_dim)
        log_decay, beta = o.delta_gates(a, b, w.A_log, w.dt_bias)  # [T, Hv] each
        out = o.gated_delta(q, k, v, log_decay, beta, state, step)  # [T, Hv, Dv]
        z = z.reshape(-1, self.v_heads, self.v_dim)
        out = o.gated_rms_norm(out, w.linear_norm, z, self.eps)
        return o.linear(out.reshape(-1, self.v_heads * self.v_dim), w.out_proj)
