"""Declarations of this distribution. Imports nothing but apr_core's declarations."""

from __future__ import annotations

from apr_core.plugin import Attention, Family, hookimpl


@hookimpl
def apr_families() -> list[Family]:
    """Declare the family of Qwen2 and Qwen2.5."""
    return [
        Family(
            "qwen2",
            "apr_qwen2.family:Qwen2",
            summary="Qwen2 and Qwen2.5, dense",
            architectures=("Qwen2ForCausalLM",),
            model_types=("qwen2",),
        )
    ]


@hookimpl
def apr_attention() -> list[Attention]:
    """Declare grouped-query attention."""
    return [
        Attention(
            "full_attention",
            "apr_qwen2.mixers:FullAttention",
            summary="grouped-query attention; biases, q/k norms or a window as asked",
            state="kv",
        )
    ]
