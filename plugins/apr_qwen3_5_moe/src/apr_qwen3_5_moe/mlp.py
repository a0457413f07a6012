"""The feed-forward of Qwen3.5 with experts. Written only in ops."""

from __future__ import annotations

from typing import Any

from apr_core.plugin import BoundOps, FeedForward, Weights

Array = Any


class Experts(FeedForward):
    """`chosen` of the experts, each down(silu(gate(x)) * up(x)), and a shared one behind a gate."""

    matrices = ("router", "shared_gate", "shared_gate_proj", "shared_up_proj", "shared_down_proj")
    stacks = dict.fromkeys(("experts_gate_up", "experts_down"), "expert_linear")
    activation = "silu"

    def __init__(self, *, top_k: int) -> None:
        self.chosen = top_k

    def __call__(self, o: BoundOps, w: Weights, x: Array) -> Array:
        """Map x [T, hidden] to [T, hidden]. Rows of `experts_gate_up` are gates, then ups."""
        logits, gate = o.linears(x, (w.router, w.shared_gate))  # [T, E], [T, 1]
        ids, weights = o.route(logits, self.chosen)  # [T, k] each
        both = o.expert_linear(x, ids, w.experts_gate_up)  # [T, k, 2 * inner]
        size = both.shape[-1] // 2
        both = both.reshape(-1, 2 * size)
        inner = o.swiglu(both[:, :size], both[:, size:]).reshape(-1, self.chosen, size)
        y = o.expert_linear(inner, ids, w.experts_down)  # [T, k, hidden]
        shared = o.mlp(x, w.shared_gate_proj, w.shared_up_proj, w.shared_down_proj)
        return o.mix_experts(y, weights, shared, gate)
