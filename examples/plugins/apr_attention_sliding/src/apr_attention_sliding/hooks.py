"""Declarations of this distribution."""

from __future__ import annotations

from apr_core.plugin import Attention, Family, hookimpl


@hookimpl
def apr_attention() -> list[Attention]:
    """Declare sliding-window attention."""
    return [
        Attention(
            "sliding_attention",
            "apr_attention_sliding.mixer:SlidingAttention",
            summary="grouped-query attention over a window of positions, in bounded memory",
            state="kv",
        )
    ]


@hookimpl
def apr_families() -> list[Family]:
    """Declare a family with both kinds of layers; `full_attention` is apr-qwen2's."""
    return [
        Family(
            "sliding_demo",
            "apr_attention_sliding.family:SlidingDemo",
            summary="Qwen2's tensors, some layers with a window",
            architectures=("SlidingDemoForCausalLM",),
            model_types=("sliding_demo",),
        )
    ]
